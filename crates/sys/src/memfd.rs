//! Sealed memory files: bulk that one process hands to another, which then cannot be changed under its reader.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

/// Every seal that keeps content as it is.
const SEALED: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// A memory file that holds `content` and can no longer be changed.
pub fn sealed(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    // Executability is never wanted, and `vm.memfd_noexec` may forbid it; the flag is unknown before 6.3.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    let mut file = File::from(fd);
    file.write_all(content)?;
    let fd = OwnedFd::from(file);
    fcntl_add_seals(&fd, SEALED)?;
    Ok(fd)
}

/// The content of a memory file from elsewhere, which must be sealed and at most `limit` bytes long.
pub fn read_sealed(fd: OwnedFd, limit: usize) -> io::Result<Vec<u8>> {
    if !fcntl_get_seals(&fd)?.contains(SEALED) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "memory file is not sealed",
        ));
    }
    let mut file = File::from(fd);
    let length = file.metadata()?.len();
    if length > limit as u64 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("memory file of {length} bytes is over the limit of {limit}"),
        ));
    }
    file.rewind()?;
    let mut content = Vec::with_capacity(length as usize);
    file.read_to_end(&mut content)?;
    Ok(content)
}
