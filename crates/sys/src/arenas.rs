//! How many heaps the C allocator keeps for a process with many threads.

/// Bounds the heaps that threads get of their own: each holds on to what its busiest moment needed.
pub fn limit(count: libc::c_int) {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes a number inside the allocator; an unknown parameter is refused.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, count);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}
