//! The C allocator's settings, for a process whose resident memory is what counts.

/// Blocks from this size up are mappings of their own, which go back to the kernel when they are freed.
const OWN_MAPPING: libc::c_int = 32 * 1024;

/// Keeps the heap small: large blocks in mappings of their own, the rest returned as soon as the top is free, no slack.
pub fn stay_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes numbers inside the allocator; an unknown parameter is refused.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4096);
        libc::mallopt(libc::M_TOP_PAD, 0);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives every free page of the heap back to the kernel.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
