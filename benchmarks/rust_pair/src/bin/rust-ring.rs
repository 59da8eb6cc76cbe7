// The device half of a split virtqueue with rust-vmm's virtio-queue crate: what ring.c does, as that crate's users do it.
//
//   rust-ring descriptors BATCHES   each descriptor's buffer is looked up, and used at once: the least that can be done
//   rust-ring buffers BATCHES       a request has a Reader and a Writer, which know all its buffers, as our chains do
//
// A batch is 256 chains of 3 descriptors over a ring of 1,024 entries and memory of two regions. A chain is added to the
// used ring when it is done, and at the end of a batch the driver is asked whether it wants to know. Prints the nanoseconds
// that a chain took.
//
// SPDX-License-Identifier: Apache-2.0

use std::error::Error;
use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::time::Instant;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const SIZE: u16 = 1024;
const CHAINS: u16 = 256;
const LENGTHS: [u32; 3] = [16, 64, 1];
const MEMORY: usize = 1 << 20;
const WARM_UP: u32 = 100;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

const TABLE: u64 = MEMORY as u64;
const AVAILABLE: u64 = TABLE + 16 * SIZE as u64;
const USED: u64 = AVAILABLE + 8192;
const END: usize = USED as usize + 16384;

type Memory = GuestMemoryMmap<()>;
type Chain<'a> = DescriptorChain<&'a Memory>;
type Outcome<T> = Result<T, Box<dyn Error>>;
type Take = fn(&Memory, &mut Chain) -> Outcome<u32>;

fn describe(memory: &Memory, index: u16) -> Outcome<()> {
    let at = GuestAddress(TABLE + 16 * u64::from(index));
    let place = index as usize % LENGTHS.len();
    let last = place == LENGTHS.len() - 1;
    let (flags, next) = if last { (WRITE, 0) } else { (NEXT, index + 1) };
    memory.write_obj(u64::from(index) * 64, at)?;
    memory.write_obj(LENGTHS[place], GuestAddress(at.0 + 8))?;
    memory.write_obj(flags, GuestAddress(at.0 + 12))?;
    memory.write_obj(next, GuestAddress(at.0 + 14))?;
    Ok(())
}

fn set_up() -> Outcome<(Memory, Queue)> {
    let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY / 2), (GuestAddress(MEMORY as u64 / 2), END - MEMORY / 2)])?;
    for index in 0..CHAINS * LENGTHS.len() as u16 {
        describe(&memory, index)?;
    }
    for position in 0..SIZE {
        let head = position % CHAINS * LENGTHS.len() as u16;
        memory.write_obj(head, GuestAddress(AVAILABLE + 4 + 2 * u64::from(position)))?;
    }
    let mut queue = Queue::new(SIZE)?;
    queue.set_size(SIZE);
    queue.set_desc_table_address(Some(TABLE as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_ready(true);
    Ok((memory, queue))
}

fn take_descriptors(memory: &Memory, chain: &mut Chain) -> Outcome<u32> {
    let mut written = 0;
    for descriptor in chain {
        black_box(memory.get_slice(descriptor.addr(), descriptor.len() as usize)?);
        written = descriptor.len();
    }
    Ok(written)
}

fn take_buffers(memory: &Memory, chain: &mut Chain) -> Outcome<u32> {
    let reader = chain.clone().reader(memory)?;
    let writer = chain.clone().writer(memory)?;
    black_box(&reader);
    Ok(black_box(&writer).available_bytes() as u32)
}

// Give back all that waits; whether to tell the driver.
fn serve(memory: &Memory, queue: &mut Queue, take: Take) -> Outcome<bool> {
    while let Some(mut chain) = queue.iter(memory)?.next() {
        let written = take(memory, &mut chain)?;
        queue.add_used(memory, chain.head_index(), written)?;
    }
    Ok(queue.needs_notification(memory)?)
}

fn run(take: Take, batches: u32) -> Outcome<f64> {
    let (memory, mut queue) = set_up()?;
    let mut index = 0u16;
    let mut start = Instant::now();
    for batch in 0..WARM_UP + batches {
        if batch == WARM_UP {
            start = Instant::now();
        }
        index = index.wrapping_add(CHAINS);
        memory.store(index, GuestAddress(AVAILABLE + 2), Ordering::Release)?;
        if !serve(&memory, &mut queue, take)? {
            return Err("a batch was not to be told of".into());
        }
    }
    let spent = start.elapsed();
    let used: u16 = memory.load(GuestAddress(USED + 2), Ordering::Acquire)?;
    if used != index {
        return Err("a chain was not given back".into());
    }
    Ok(spent.as_nanos() as f64 / (f64::from(batches) * f64::from(CHAINS)))
}

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let take: Take = match words.first().map(String::as_str) {
        Some("descriptors") => take_descriptors,
        Some("buffers") => take_buffers,
        _ => return Err("rust-ring: give descriptors or buffers, and a number of batches".into()),
    };
    let batches = words.get(1).and_then(|word| word.parse().ok()).filter(|&count| count > 0);
    println!("{:.2}", run(take, batches.ok_or("rust-ring: give a number of batches above 0")?)?);
    Ok(())
}
