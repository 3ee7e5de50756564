//! The reader's side of a BPF ring buffer (Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c).
//!
//! libbpf's maps the data twice in a row, so that a record that goes on at the beginning lies in one piece. All pages of
//! that count as the tool's memory. Here the data is mapped once, and the few such records are put together.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use anyhow::{Context, Result};
use libbpf_rs::{Map, MapCore};
use memmap2::{MmapOptions, MmapRaw};

use crate::kernel::page_size;

/// Before each record: its length with two flags, and a word that only the kernel needs
/// (`BPF_RINGBUF_BUSY_BIT`, `BPF_RINGBUF_DISCARD_BIT`, `BPF_RINGBUF_HDR_SZ` of include/uapi/linux/bpf.h).
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const HEADER: u64 = 8;

/// How much of the buffer is read before its room is given back: the kernel looks there for each record that it writes,
/// and should seldom find that another CPU has written to it.
const GIVE_BACK: u64 = 1 << 4;

/// A ring buffer that is read.
pub struct Ring<'m> {
    map: &'m Map<'m>,
    consumer: MmapRaw,
    producer: MmapRaw,
    size: u64,
    /// A record that goes on at the beginning, in one piece.
    whole: Vec<u8>,
}

impl<'m> Ring<'m> {
    /// Read this map of type ring buffer.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn of(map: &'m Map<'m>) -> Result<Self> {
        let (size, page) = (u64::from(map.max_entries()), page_size());
        let fd = map.as_fd().as_raw_fd();
        let consumer = MmapOptions::new().len(page).map_raw(fd);
        let producer = MmapOptions::new().offset(page as u64).len(page + size as usize).map_raw_read_only(fd);
        let failed = "cannot map the event buffer";
        Ok(Self {
            map,
            consumer: consumer.context(failed)?,
            producer: producer.context(failed)?,
            size,
            whole: Vec::new(),
        })
    }

    /// What becomes readable when the kernel wakes the reader.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// Hand every record that is complete to `take`, in the order in which their room was reserved, but no more than
    /// the buffer holds: a stream that never rests must not keep the tool from its signals. Whether there is more.
    ///
    /// # Errors
    /// What `take` returns, after which the next call goes on behind that record.
    pub fn drain(&mut self, take: impl FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        // SAFETY: both mappings begin with a page that the kernel keeps for a position alone, and that only this reader
        // writes in the first. The data of the second follows its page.
        let (consumed, produced, data) = unsafe {
            (
                AtomicU64::from_ptr(self.consumer.as_mut_ptr().cast()),
                AtomicU64::from_ptr(self.producer.as_mut_ptr().cast()),
                self.producer.as_mut_ptr().add(page_size()).cast_const(),
            )
        };
        // SAFETY: `size` bytes are mapped there, and the kernel lets records be read until they are given back.
        unsafe { drain(consumed, produced, data, self.size, &mut self.whole, take) }
    }
}

/// # Safety
/// At `data` lie `size` bytes, a power of two. What lies there between the two positions is written to by nobody else,
/// but for the first word of each record.
unsafe fn drain(
    consumed: &AtomicU64,
    produced: &AtomicU64,
    data: *const u8,
    size: u64,
    whole: &mut Vec<u8>,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<bool> {
    let mut at = consumed.load(Ordering::Relaxed);
    let (mut given_back, mut end, last) = (at, at, at + size);
    let mut status = Ok(());
    let mut is_busy = false;
    while status.is_ok() && at < last {
        if at == end {
            end = produced.load(Ordering::Acquire);
        }
        if at >= end {
            break;
        }
        let begin = at & (size - 1);
        // SAFETY: a header lies within the data, as positions are multiples of 8.
        let header = unsafe { AtomicU32::from_ptr(data.add(begin as usize).cast_mut().cast()) }.load(Ordering::Acquire);
        is_busy = header & BUSY != 0;
        if is_busy {
            break;
        }
        let length = u64::from(header & !(BUSY | DISCARDED));
        if header & DISCARDED == 0 {
            let from = (begin + HEADER) & (size - 1);
            // Records are shorter than the buffer; what claims otherwise is cut.
            let length = length.min(size - HEADER) as usize;
            let before_end = length.min((size - from) as usize);
            // SAFETY: within the data.
            let piece = unsafe { std::slice::from_raw_parts(data.add(from as usize), before_end) };
            let record = if before_end == length {
                piece
            } else {
                whole.clear();
                whole.extend_from_slice(piece);
                // SAFETY: within the data.
                whole.extend_from_slice(unsafe { std::slice::from_raw_parts(data, length - before_end) });
                &*whole
            };
            status = take(record);
        }
        at += (length + HEADER).next_multiple_of(8);
        if at - given_back >= size / GIVE_BACK {
            consumed.store(at, Ordering::Release);
            given_back = at;
        }
    }
    consumed.store(at, Ordering::Release);
    // The kernel, which completes a record and then looks at what was consumed, must not see an older position than a
    // later look here sees of the record.
    fence(Ordering::SeqCst);
    status.map(|()| !is_busy && at < produced.load(Ordering::Acquire))
}

#[cfg(test)]
mod tests {
    use anyhow::bail;
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 256;

    /// What the kernel does: a buffer, and the two positions.
    struct Kernel {
        data: Vec<u64>,
        consumed: AtomicU64,
        produced: AtomicU64,
    }

    impl Kernel {
        fn at(position: u64) -> Self {
            Self {
                data: vec![0x5a5a_5a5a_5a5a_5a5a; SIZE / 8],
                consumed: AtomicU64::new(position),
                produced: AtomicU64::new(position),
            }
        }

        fn put(&mut self, at: u64, bytes: &[u8]) {
            for (index, byte) in bytes.iter().enumerate() {
                let at = (at as usize + index) % SIZE;
                self.data[at / 8] = self.data[at / 8] & !(0xff << (at % 8 * 8)) | u64::from(*byte) << (at % 8 * 8);
            }
        }

        /// False where there is no room.
        fn write(&mut self, record: &[u8], flags: u32) -> bool {
            let begin = *self.produced.get_mut();
            let end = begin + (record.len() as u64 + HEADER).next_multiple_of(8);
            if end - *self.consumed.get_mut() > SIZE as u64 {
                return false;
            }
            self.put(begin, &(record.len() as u32 | flags).to_le_bytes());
            self.put(begin + HEADER, record);
            *self.produced.get_mut() = end;
            true
        }

        fn complete(&mut self, at: u64, length: u32) {
            self.put(at, &length.to_le_bytes());
        }

        fn read(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<bool> {
            // SAFETY: the buffer has this size, and nobody writes to it.
            unsafe {
                drain(
                    &self.consumed,
                    &self.produced,
                    self.data.as_ptr().cast(),
                    SIZE as u64,
                    &mut Vec::new(),
                    &mut take,
                )
            }
        }

        fn records(&self) -> Vec<Vec<u8>> {
            let mut records = Vec::new();
            let more = self.read(|record| {
                records.push(record.to_vec());
                Ok(())
            });
            assert!(!more.unwrap());
            records
        }
    }

    #[test]
    fn what_is_not_complete_waits_and_what_is_discarded_is_passed_over() {
        let mut kernel = Kernel::at(0);
        assert!(kernel.write(b"one", 0) && kernel.write(b"dropped", DISCARDED) && kernel.write(b"two", BUSY));
        assert!(kernel.write(b"three", 0));
        assert_eq!(kernel.records(), [b"one"]);
        assert_eq!(kernel.consumed.load(Ordering::Relaxed), 32);
        kernel.complete(32, 3);
        assert_eq!(kernel.records(), [b"two".to_vec(), b"three".to_vec()]);
        assert!(kernel.records().is_empty());
    }

    #[test]
    fn the_room_of_a_record_that_was_refused_is_given_back_too() {
        let mut kernel = Kernel::at(0);
        assert!(kernel.write(b"one", 0) && kernel.write(b"two", 0));
        assert!(kernel.read(|_| bail!("no")).is_err());
        assert_eq!(kernel.records(), [b"two"]);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_once_in_order(
            start in 0u64..1 << 40,
            batches in prop::collection::vec(prop::collection::vec((prop::collection::vec(any::<u8>(), 0..100), any::<bool>()), 0..6), 1..40),
        ) {
            let mut kernel = Kernel::at(start * 8);
            for batch in batches {
                let mut expected = Vec::new();
                for (record, is_discarded) in batch {
                    let was_written = kernel.write(&record, if is_discarded { DISCARDED } else { 0 });
                    if was_written && !is_discarded {
                        expected.push(record);
                    }
                }
                prop_assert_eq!(kernel.records(), expected);
                prop_assert_eq!(kernel.consumed.load(Ordering::Relaxed), kernel.produced.load(Ordering::Relaxed));
            }
        }

        #[test]
        fn no_bytes_lead_out_of_the_buffer(data in prop::collection::vec(any::<u64>(), SIZE / 8), written in 0u64..=SIZE as u64) {
            let kernel = Kernel { data, consumed: AtomicU64::new(0), produced: AtomicU64::new(written & !7) };
            kernel.read(|record| {
                assert!(record.len() < SIZE);
                Ok(())
            }).unwrap();
        }
    }
}
