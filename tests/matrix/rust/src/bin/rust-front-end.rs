// A front-end on the vhost crate to hold to the specification: it starts what rings there are, and maps what it is asked to.
//
//   rust-front-end SOCKET
//
// It ends with the connection. The crate hands mappings to its user, who has to keep the book of them: that is Window. What
// a message alone tells of itself is left to the crate.
//
// SPDX-License-Identifier: Apache-2.0

use std::error::Error;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use rust_peers::window::{map_at, Window};
use rust_peers::{memory_file, PAGE};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{
    Error as UserError, Frontend, FrontendReqHandler, VhostUserFrontend, VhostUserProtocolFeatures as P,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

const MEMORY: u64 = 1 << 20;
const SIZE: u16 = 16;
const SPACE: u64 = 4 * PAGE;
const MOST: u64 = 2;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;

type Done<T> = Result<T, Box<dyn Error>>;

/// Serve the back-end channel until it can't be used any more. What can't be done is a status.
fn serve(mut handler: FrontendReqHandler<Window>) {
    loop {
        match handler.handle_request() {
            Ok(_) | Err(UserError::ReqHandlerError(_)) => (),
            Err(error) => return eprintln!("rust-front-end: back-end channel: {error}"),
        }
    }
}

/// Agree on protocol features, none without those that it needs, and on what comes of them.
fn negotiate(frontend: &mut Frontend) -> Done<(P, u64)> {
    let mut ours = P::MQ | P::REPLY_ACK | P::CONFIG | P::CONFIGURE_MEM_SLOTS | P::RESET_DEVICE;
    let offered = frontend.get_protocol_features()?;
    if offered.contains(P::BACKEND_REQ | P::REPLY_ACK) {
        ours |= P::BACKEND_REQ | P::SHARED_OBJECT;
    }
    if offered.contains(P::BACKEND_REQ | P::REPLY_ACK | P::BACKEND_SEND_FD) {
        ours |= P::BACKEND_SEND_FD | P::SHMEM;
    }
    let agreed = offered & ours;
    frontend.set_protocol_features(agreed)?;
    if agreed.contains(P::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    let rings = if agreed.contains(P::MQ) { frontend.get_queue_num()?.min(MOST) } else { 1 };
    if agreed.contains(P::CONFIG) {
        frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])?;
    }
    if agreed.contains(P::BACKEND_REQ) {
        let sizes = if agreed.contains(P::SHMEM) { frontend.get_shmem_config()?.memory_sizes } else { [0; 256] };
        let window = Window::reserve(sizes, agreed.contains(P::CONFIG), agreed.contains(P::SHARED_OBJECT))?;
        let mut handler = FrontendReqHandler::new(Arc::new(window))?;
        handler.set_reply_ack_flag(true);
        frontend.set_backend_request_fd(&handler.get_tx_raw_fd())?;
        thread::spawn(move || serve(handler));
    }
    Ok((agreed, rings))
}

fn share_memory(frontend: &mut Frontend, agreed: P) -> Done<usize> {
    let file = memory_file(MEMORY)?;
    let at = map_at(0, MEMORY, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0)?;
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: MEMORY,
        userspace_addr: at as u64,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    if agreed.contains(P::CONFIGURE_MEM_SLOTS) && frontend.get_max_mem_slots()? > 0 {
        frontend.add_mem_region(&region)?;
    } else {
        frontend.set_mem_table(&[region])?;
    }
    Ok(at)
}

fn start(frontend: &mut Frontend, ring: usize, memory: usize, enables: bool) -> Done<[EventFd; 3]> {
    let at = memory as u64 + ring as u64 * SPACE;
    let addresses = VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: at,
        avail_ring_addr: at + PAGE,
        used_ring_addr: at + 2 * PAGE,
        log_addr: None,
    };
    let events = [EventFd::new(0)?, EventFd::new(0)?, EventFd::new(0)?];
    frontend.set_vring_num(ring, SIZE)?;
    frontend.set_vring_base(ring, 0)?;
    frontend.set_vring_addr(ring, &addresses)?;
    frontend.set_vring_err(ring, &events[2])?;
    frontend.set_vring_call(ring, &events[1])?;
    frontend.set_vring_kick(ring, &events[0])?;
    events[0].write(1)?; // the crate leaves it to its users
    if enables {
        frontend.set_vring_enable(ring, true)?;
    }
    Ok(events)
}

fn main() -> Done<()> {
    let path = std::env::args().nth(1).ok_or("rust-front-end: give the path of a socket")?;
    let mut frontend = Frontend::connect(path, MOST)?;
    frontend.set_owner()?;
    let features = frontend.get_features()? & (VERSION_1 | PROTOCOL_FEATURES);
    let enables = features & PROTOCOL_FEATURES != 0;
    let (agreed, rings) = if enables { negotiate(&mut frontend)? } else { (P::empty(), 1) };
    frontend.set_features(features)?;
    let memory = share_memory(&mut frontend, agreed)?;
    let mut events = Vec::new();
    for ring in 0..rings as usize {
        events.push(start(&mut frontend, ring, memory, enables)?);
    }
    let mut over = libc::pollfd { fd: frontend.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which is ours. Nothing is to come: what comes is the end, or as good as it.
    unsafe { libc::poll(&mut over, 1, -1) };
    Ok(())
}
