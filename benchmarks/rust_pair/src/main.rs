// The SHMEM pair of pair.c with rust-vmm's vhost crate on both sides: same command line, same output.
//
//   rust-pair frontend --fd N [--window BYTES]
//   rust-pair backend --fd N [--file-fd M] [--window BYTES] --count PAIRS --len BYTES [--live K]
//
// The front-end is minimal, as rust-vmm leaves the mapping to its user: mmap with MAP_FIXED, then PROT_NONE again.
//
// SPDX-License-Identifier: Apache-2.0

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Instant;

use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{Backend, Error, FrontendReqHandler, HandlerResult, VhostUserFrontendReqHandler};

const PAGE: u64 = 4096;
const WARM_UP: u64 = 100;

struct Options {
    role: String,
    fd: RawFd,
    file_fd: RawFd,
    window: u64,
    count: u64,
    len: u64,
    live: u64,
}

// ---- the front-end ----

struct Window {
    base: usize,
}

impl Window {
    fn reserve(size: u64) -> io::Result<Self> {
        let base = map_at(null_mut(), size, libc::PROT_NONE, RESERVED, -1, 0)?;
        Ok(Window { base })
    }

    fn address(&self, request: &VhostUserMMap) -> *mut libc::c_void {
        (self.base + request.shm_offset as usize) as *mut libc::c_void
    }
}

const RESERVED: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

fn map_at(at: *mut libc::c_void, len: u64, protection: i32, flags: i32, fd: RawFd, offset: u64) -> io::Result<usize> {
    // SAFETY: with MAP_FIXED the caller names a range inside its own reservation, which nothing else uses.
    let got = unsafe { libc::mmap(at, len as usize, protection, flags, fd, offset as libc::off_t) };
    if got == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(got as usize)
}

impl VhostUserFrontendReqHandler for Window {
    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        let writable = request.flags & VhostUserMMapFlags::WRITABLE.bits() != 0;
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        map_at(self.address(request), request.len, protection, flags, fd.as_raw_fd(), request.fd_offset)?;
        Ok(0)
    }

    fn shmem_unmap(&self, request: &VhostUserMMap) -> HandlerResult<u64> {
        map_at(self.address(request), request.len, libc::PROT_NONE, RESERVED | libc::MAP_FIXED, -1, 0)?;
        Ok(0)
    }
}

fn serve(options: &Options) -> Result<(), Error> {
    let window = Window::reserve(options.window).map_err(Error::ReqHandlerError)?;
    let mut handler = FrontendReqHandler::new(Arc::new(window))?;
    handler.set_reply_ack_flag(true);
    // The handler insists on a socketpair of its own: put ours in the place of its receiving end.
    // SAFETY: both fds are open; the handler goes on owning the number it has.
    if unsafe { libc::dup2(options.fd, handler.as_raw_fd()) } < 0 || unsafe { libc::close(options.fd) } < 0 {
        return Err(Error::SocketError(io::Error::last_os_error()));
    }
    loop {
        match handler.handle_request() {
            Ok(_) => (),
            Err(Error::Disconnected) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

// ---- the back-end ----

fn request(shm_offset: u64, len: u64) -> VhostUserMMap {
    VhostUserMMap { shm_offset, len, flags: VhostUserMMapFlags::WRITABLE.bits(), ..Default::default() }
}

fn open_file(options: &Options) -> io::Result<File> {
    if options.file_fd >= 0 {
        // SAFETY: the fd was handed to this process for this purpose alone.
        return Ok(unsafe { File::from_raw_fd(options.file_fd) });
    }
    // SAFETY: a plain system call with a constant name.
    let fd = unsafe { libc::memfd_create(c"rust-pair".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the fd is new and ours.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(options.len)?;
    Ok(file)
}

// Live single pages below and above the measured mapping, never side by side, as in pair.c.
fn leave_live(backend: &Backend, file: &File, options: &Options) -> io::Result<()> {
    for i in 0..options.live {
        let above = if i < options.live / 2 { 0 } else { options.len + PAGE };
        backend.shmem_map(&request(i * 2 * PAGE + above, PAGE), file)?;
    }
    Ok(())
}

fn measure(options: &Options) -> io::Result<f64> {
    // SAFETY: the fd was handed to this process for this purpose alone.
    let backend = Backend::from_stream(unsafe { UnixStream::from_raw_fd(options.fd) });
    backend.set_reply_ack_flag(true);
    backend.set_shmem_flag(true);
    let file = open_file(options)?;
    let measured = request(options.live / 2 * 2 * PAGE, options.len);
    leave_live(&backend, &file, options)?;
    let mut start = Instant::now();
    for i in 0..WARM_UP + options.count {
        if i == WARM_UP {
            start = Instant::now();
        }
        backend.shmem_map(&measured, &file)?;
        backend.shmem_unmap(&measured)?;
    }
    Ok(start.elapsed().as_nanos() as f64 / options.count as f64)
}

// ---- the command line ----

fn parse() -> Option<Options> {
    let mut words = std::env::args().skip(1);
    let role = words.next()?;
    let mut options = Options { role, fd: -1, file_fd: -1, window: 1 << 28, count: 1, len: 2 << 20, live: 0 };
    while let Some(name) = words.next() {
        let value: u64 = words.next()?.parse().ok()?;
        match name.as_str() {
            "--fd" => options.fd = value as RawFd,
            "--file-fd" => options.file_fd = value as RawFd,
            "--window" => options.window = value,
            "--count" => options.count = value,
            "--len" => options.len = value,
            "--live" => options.live = value,
            _ => return None,
        }
    }
    let needed = options.len + (options.live + 1) * 2 * PAGE;
    (options.fd >= 0 && options.count > 0 && needed <= options.window).then_some(options)
}

fn run(options: &Options) -> Result<(), String> {
    match options.role.as_str() {
        "frontend" => serve(options).map_err(|error| error.to_string()),
        "backend" => {
            println!("{:.1}", measure(options).map_err(|error| error.to_string())?);
            Ok(())
        }
        other => Err(format!("no role {other}")),
    }
}

fn main() {
    let Some(options) = parse() else {
        eprintln!("rust-pair: give frontend or backend, --fd, --count above 0, a --window with room for --live");
        std::process::exit(2);
    };
    if let Err(error) = run(&options) {
        eprintln!("rust-pair: {error}");
        std::process::exit(1);
    }
}
