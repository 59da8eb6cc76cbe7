//! What both programs need.
//!
//! SPDX-License-Identifier: Apache-2.0

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

pub mod window;

pub const PAGE: u64 = 4096;

/// A file in memory, of zeros.
pub fn memory_file(size: u64) -> io::Result<File> {
    // SAFETY: a plain system call with a constant name.
    let fd = unsafe { libc::memfd_create(c"rust-peers".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the fd is new and ours.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}
