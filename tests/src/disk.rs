//! A disk in memory that nobody else uses, so that what is done to it is known to the request.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;

use crate::{Guard, Outcome, Stop};

/// include/uapi/linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
/// Without it, the device cannot have partitions.
const LO_FLAGS_PARTSCAN: u32 = 8;
/// Size of struct loop_config, and where it holds the flags.
const LOOP_CONFIG: usize = 304;
const LOOP_CONFIG_FLAGS: usize = 60;

const SIZE: u64 = 32 << 20;

/// include/uapi/linux/blkpg.h
const BLKPG: libc::Ioctl = 0x1269;
const BLKPG_ADD_PARTITION: libc::c_int = 1;

#[repr(C)]
struct BlkpgIoctlArg {
    op: libc::c_int,
    flags: libc::c_int,
    datalen: libc::c_int,
    data: *mut BlkpgPartition,
}

#[repr(C)]
struct BlkpgPartition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    pno: libc::c_int,
    devname: [u8; 64],
    volname: [u8; 64],
}

/// A loop device over memory. Detached again when dropped.
pub struct Disk {
    /// The kernel's name, such as `loop0`.
    pub name: String,
    device: File,
}

/// What the kernel has counted for a disk: /sys/block/DISK/stat.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Reads that have ended.
    pub reads: u64,
    /// Writes, and the flushes that were asked for.
    pub writes: u64,
    /// Discards.
    pub discards: u64,
    /// Time of all of these, from when each was made, in ms.
    pub milliseconds: u64,
}

impl Stat {
    /// All requests.
    pub fn requests(&self) -> u64 {
        self.reads + self.writes + self.discards
    }

    /// What was added since an earlier reading.
    pub fn since(&self, before: Stat) -> Stat {
        Stat {
            reads: self.reads - before.reads,
            writes: self.writes - before.writes,
            discards: self.discards - before.discards,
            milliseconds: self.milliseconds - before.milliseconds,
        }
    }
}

impl Disk {
    /// Make one, or skip the test where that cannot be.
    pub fn make() -> Outcome<Self> {
        let skip =
            |what: &str| Stop::Skip(format!("cannot make a loop device: {what}: {}", std::io::Error::last_os_error()));
        // SAFETY: a plain system call with a valid name; the descriptor is owned from here on.
        let memory = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
        if memory < 0 {
            return Err(skip("memfd_create"));
        }
        // SAFETY: as above; `memory` was checked.
        let memory = unsafe { File::from_raw_fd(memory) };
        memory.set_len(SIZE)?;

        let control =
            File::open("/dev/loop-control").map_err(|error| Stop::Skip(format!("no loop devices: {error}")))?;
        // SAFETY: an ioctl without argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(skip("LOOP_CTL_GET_FREE"));
        }
        let name = format!("loop{number}");
        let device = File::options().read(true).write(true).open(format!("/dev/{name}"))?;
        let mut config = [0u8; LOOP_CONFIG];
        config[..4].copy_from_slice(&memory.as_raw_fd().to_ne_bytes());
        config[LOOP_CONFIG_FLAGS..][..4].copy_from_slice(&LO_FLAGS_PARTSCAN.to_ne_bytes());
        // SAFETY: the kernel reads a struct loop_config of this size.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) } < 0 {
            return Err(skip("LOOP_CONFIGURE"));
        }
        Ok(Self { name, device })
    }

    /// Its node.
    pub fn node(&self) -> PathBuf {
        PathBuf::from(format!("/dev/{}", self.name))
    }

    /// Give it a partition of 1 MiB (it goes with the disk), and the name of that.
    pub fn partition(&self) -> Outcome<String> {
        let mut partition =
            BlkpgPartition { start: 1 << 20, length: 1 << 20, pno: 1, devname: [0; 64], volname: [0; 64] };
        let datalen = size_of::<BlkpgPartition>() as libc::c_int;
        let request = BlkpgIoctlArg { op: BLKPG_ADD_PARTITION, flags: 0, datalen, data: &raw mut partition };
        // SAFETY: the kernel reads both structs, which live across the call.
        if unsafe { libc::ioctl(self.device.as_raw_fd(), BLKPG, &raw const request) } < 0 {
            return Err(Stop::Skip(format!("cannot make a partition: {}", std::io::Error::last_os_error())));
        }
        Ok(format!("{}p1", self.name))
    }

    /// A process that will do so many requests of `size` bytes each: `r`, `w` or `b` of workloads/blockio.c.
    pub fn worker(&self, kind: &str, count: u64, size: u64) -> Outcome<Guard> {
        let node = self.node().display().to_string();
        Guard::workload("blockio", &[&node, kind, &count.to_string(), &size.to_string()])
    }

    /// Let such a process do it, and wait for its end.
    pub fn work(mut worker: Guard) -> Outcome<u32> {
        drop(worker.0.stdin.take());
        let status = worker.0.wait()?;
        crate::check!(status.success(), "{status}");
        Ok(worker.pid())
    }

    /// What the kernel has counted so far.
    pub fn stat(&self) -> Outcome<Stat> {
        let text = fs::read_to_string(format!("/sys/block/{}/stat", self.name))?;
        let fields: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let field = |index: usize| fields.get(index).copied().unwrap_or(0);
        Ok(Stat {
            reads: field(0),
            writes: field(4),
            discards: field(11),
            milliseconds: field(3) + field(7) + field(14),
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // SAFETY: an ioctl without argument on a descriptor that is open.
        unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CLR_FD) };
    }
}
