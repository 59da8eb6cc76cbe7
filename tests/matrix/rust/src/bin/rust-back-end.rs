// A back-end on vhost-user-backend to hold to the specification: two queues that echo, and two regions of shared memory.
//
//   rust-back-end SOCKET
//
// Once ring 0 runs it maps a page for writing and two pages for reading, and takes the latter away again. The crate tells
// a device of a kick, and of nothing else that happens to a ring: a timer looks whether ring 0 was started and enabled.
// One connection after the other is served, each with a daemon of its own.
//
// SPDX-License-Identifier: Apache-2.0

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rust_peers::{memory_file, PAGE};
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags, VhostUserShMemConfig};
use vhost::vhost_user::{Backend, Listener, VhostUserFrontendReqHandler, VhostUserProtocolFeatures as P};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{new_event_consumer_and_notifier, EventConsumer, EventFlag, EventNotifier};
use vmm_sys_util::timerfd::TimerFd;

const QUEUES: usize = 2;
const LARGEST: usize = 256;
const REGIONS: [u64; 2] = [1 << 20, 1 << 20];
const CONFIG: [u8; 16] = *b"rust-vmm's echo.";
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;
/// What the timer tells: the numbers up to QUEUES are those of the rings and of the end.
const LOOK: u16 = QUEUES as u16 + 1;
const OFTEN: Duration = Duration::from_millis(1);

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>;

struct Device {
    memory: Memory,
    file: File,
    timer: Mutex<TimerFd>,
    requests: Mutex<Option<Backend>>,
    mapped: AtomicBool,
}

impl Device {
    fn new(memory: Memory) -> io::Result<Self> {
        let mut timer = TimerFd::new()?;
        timer.reset(OFTEN, Some(OFTEN))?;
        let mapped = AtomicBool::new(false);
        Ok(Device { memory, file: memory_file(2 * PAGE)?, timer: Mutex::new(timer), requests: Mutex::new(None), mapped })
    }

    /// Ask for what is mapped from the start. No lock is held: the answer may come after the next request of the front-end.
    fn map(&self, backend: &Backend) -> io::Result<()> {
        let page = mapping(0, PAGE, VhostUserMMapFlags::WRITABLE);
        let two = mapping(4 * PAGE, 2 * PAGE, VhostUserMMapFlags::empty());
        backend.shmem_map(&page, &self.file)?;
        backend.shmem_map(&two, &self.file)?;
        backend.shmem_unmap(&two)?;
        Ok(())
    }

    fn look(&self, ring: &VringRwLock) -> io::Result<()> {
        self.timer.lock().unwrap().wait()?;
        let runs = ring.get_ref().is_enabled() && ring.get_ref().get_queue().ready();
        let backend = self.requests.lock().unwrap().clone();
        match backend {
            Some(backend) if runs && !self.mapped.swap(true, Ordering::AcqRel) => self.map(&backend),
            _ => Ok(()),
        }
    }

    /// Give back all chains that are there, until the driver will notify of the next.
    fn serve(&self, ring: &VringRwLock) -> Result<(), virtio_queue::Error> {
        loop {
            ring.disable_notification()?;
            let chains: Vec<Chain> = ring.get_mut().get_queue_mut().iter(self.memory.memory())?.collect();
            for chain in &chains {
                ring.add_used(chain.head_index(), self.echo(chain)?)?;
            }
            if !chains.is_empty() && ring.needs_notification()? {
                let _ = ring.signal_used_queue();
            }
            if !ring.enable_notification()? {
                return Ok(());
            }
        }
    }

    /// Write back what is to be read, as much of it as there is room for; the number of bytes.
    fn echo(&self, chain: &Chain) -> Result<u32, virtio_queue::Error> {
        let memory = self.memory.memory();
        let mut data = Vec::new();
        chain.clone().reader(&memory)?.take(PAGE).read_to_end(&mut data).map_err(|_| virtio_queue::Error::InvalidChain)?;
        let mut room = chain.clone().writer(&memory)?;
        data.truncate(room.available_bytes());
        room.write_all(&data).map_err(|_| virtio_queue::Error::InvalidChain)?;
        Ok(data.len() as u32)
    }
}

fn mapping(at: u64, len: u64, flags: VhostUserMMapFlags) -> VhostUserMMap {
    VhostUserMMap { shmid: 0, shm_offset: at, len, flags: flags.bits(), ..Default::default() }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        LARGEST
    }

    fn features(&self) -> u64 {
        VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX | INDIRECT_DESC
    }

    fn protocol_features(&self) -> P {
        let plain = P::MQ | P::CONFIG | P::RESET_DEVICE | P::CONFIGURE_MEM_SLOTS;
        plain | P::BACKEND_REQ | P::BACKEND_SEND_FD | P::SHMEM
    }

    fn reset_device(&self) {
        self.mapped.store(false, Ordering::Release);
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let (start, end) = (offset as usize, offset as usize + size as usize);
        CONFIG.get(start..end).unwrap_or_default().to_vec()
    }

    fn set_config(&self, _offset: u32, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn set_backend_req_fd(&self, backend: Backend) {
        *self.requests.lock().unwrap() = Some(backend);
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::new(REGIONS.len() as u32, &REGIONS))
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(&self, event: u16, _set: EventSet, rings: &[VringRwLock], _thread: usize) -> io::Result<()> {
        let done = match event {
            LOOK => self.look(&rings[0]),
            ring => self.serve(&rings[ring as usize]).map_err(io::Error::other),
        };
        if let Err(error) = done {
            eprintln!("rust-back-end: {error}"); // an error would end the thread of the rings
        }
        Ok(())
    }
}

fn serve(listener: &mut Listener) -> Result<(), String> {
    let memory = Memory::new(GuestMemoryMmap::new());
    let device = Arc::new(Device::new(memory.clone()).map_err(in_words)?);
    let mut daemon = VhostUserDaemon::new("rust-back-end".into(), device.clone(), memory).map_err(in_words)?;
    let timer = device.timer.lock().unwrap().as_raw_fd();
    daemon.get_epoll_handlers()[0].register_listener(timer, EventSet::IN, LOOK.into()).map_err(in_words)?;
    daemon.start(listener).map_err(in_words)?;
    daemon.wait().unwrap_or_else(|error| eprintln!("rust-back-end: {error}"));
    Ok(())
}

fn in_words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn main() -> Result<(), String> {
    let path = std::env::args().nth(1).ok_or("rust-back-end: give the path of a socket")?;
    let mut listener = Listener::new(path, true).map_err(in_words)?;
    loop {
        serve(&mut listener)?;
    }
}
