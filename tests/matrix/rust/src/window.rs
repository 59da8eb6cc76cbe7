//! The shared memory regions of a front-end: what is mapped where, and whether a request fits in; and its shared objects.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Mutex;

use libc::{EEXIST, EINVAL, ENOENT, ENOSYS, ENOTSUP, PROT_NONE, PROT_READ, PROT_WRITE};
use libc::{MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED};
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags, VhostUserSharedMsg};
use vhost::vhost_user::{HandlerResult, VhostUserFrontendReqHandler};

use crate::PAGE;

const RESERVED: i32 = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

/// The shared memory regions: their sizes, where their addresses are reserved, and what is mapped there.
pub struct Window {
    has_config: bool,
    shares: bool,
    sizes: [u64; 256],
    bases: BTreeMap<u8, usize>,
    live: Mutex<BTreeMap<(u8, u64), u64>>,
    objects: Mutex<BTreeSet<[u8; 16]>>,
}

impl Window {
    pub fn reserve(sizes: [u64; 256], has_config: bool, shares: bool) -> io::Result<Self> {
        let mut bases = BTreeMap::new();
        for (shmid, size) in (0..=255).zip(sizes).filter(|(_, size)| *size > 0) {
            bases.insert(shmid, map_at(0, size, PROT_NONE, RESERVED, -1, 0)?);
        }
        Ok(Window { has_config, shares, sizes, bases, live: Mutex::default(), objects: Mutex::default() })
    }

    /// Where a range lies in our addresses, if it is one of whole pages within its region.
    fn place(&self, request: &VhostUserMMap) -> io::Result<usize> {
        let (start, len) = (request.shm_offset, request.len);
        let base = self.bases.get(&request.shmid).ok_or_else(|| refusal(ENOENT))?;
        let end = start.checked_add(len).filter(|end| *end <= self.sizes[request.shmid as usize]);
        if end.is_none() || len == 0 || (start | len | request.fd_offset) % PAGE != 0 {
            return Err(refusal(EINVAL));
        }
        Ok(base + start as usize)
    }
}

fn refusal(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// The whole request lies in the file, if that has an end.
fn is_within(request: &VhostUserMMap, fd: RawFd) -> io::Result<bool> {
    // SAFETY: the fd is open, and is not closed here.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    let found = file.metadata()?;
    let end = request.fd_offset.checked_add(request.len);
    Ok(!found.is_file() || end.is_some_and(|end| end <= found.len().next_multiple_of(PAGE)))
}

pub fn map_at(at: usize, len: u64, protection: i32, flags: i32, fd: RawFd, offset: u64) -> io::Result<usize> {
    // SAFETY: with MAP_FIXED the caller names a range inside its own reservation, which nothing else uses.
    let got = unsafe { libc::mmap(at as *mut _, len as usize, protection, flags, fd, offset as i64) };
    if got == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(got as usize)
}

impl VhostUserFrontendReqHandler for Window {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        if self.has_config {
            Ok(0)
        } else {
            Err(refusal(ENOTSUP))
        }
    }

    fn shared_object_add(&self, object: &VhostUserSharedMsg) -> HandlerResult<u64> {
        let is_new = self.shares && self.objects.lock().unwrap().insert(*object.uuid.as_bytes());
        is_new.then_some(0).ok_or_else(|| refusal(EEXIST))
    }

    fn shared_object_remove(&self, object: &VhostUserSharedMsg) -> HandlerResult<u64> {
        let was_there = self.objects.lock().unwrap().remove(object.uuid.as_bytes());
        was_there.then_some(0).ok_or_else(|| refusal(ENOENT))
    }

    /// The crate has the fd come with the request, and takes none for the answer.
    fn shared_object_lookup(&self, object: &VhostUserSharedMsg, _: &dyn AsRawFd) -> HandlerResult<u64> {
        let is_there = self.objects.lock().unwrap().contains(object.uuid.as_bytes());
        Err(refusal(if is_there { ENOSYS } else { ENOENT }))
    }

    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        let at = self.place(request)?;
        if !is_within(request, fd.as_raw_fd())? {
            return Err(refusal(EINVAL));
        }
        let mut live = self.live.lock().unwrap();
        let (shmid, start, end) = (request.shmid, request.shm_offset, request.shm_offset + request.len);
        if live.iter().any(|((other, from), len)| *other == shmid && *from < end && start < from + len) {
            return Err(refusal(EEXIST));
        }
        let writable = request.flags & VhostUserMMapFlags::WRITABLE.bits() != 0;
        let protection = if writable { PROT_READ | PROT_WRITE } else { PROT_READ };
        map_at(at, request.len, protection, MAP_SHARED | MAP_FIXED, fd.as_raw_fd(), request.fd_offset)?;
        live.insert((shmid, start), request.len);
        Ok(0)
    }

    fn shmem_unmap(&self, request: &VhostUserMMap) -> HandlerResult<u64> {
        let mut live = self.live.lock().unwrap();
        let key = (request.shmid, request.shm_offset);
        if live.get(&key) != Some(&{ request.len }) {
            return Err(refusal(ENOENT));
        }
        let at = self.bases[&request.shmid] + request.shm_offset as usize;
        map_at(at, request.len, PROT_NONE, RESERVED | MAP_FIXED, -1, 0)?;
        live.remove(&key);
        Ok(0)
    }
}
