//! Disks that nobody else uses, so that what is done to them is known to the request; and file systems on them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

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
/// xfs takes no less than 300 MiB.
const SIZE_FOR_FILES: u64 = 1 << 30;

/// Names a disk that may be overwritten.
const SCRATCH: &str = "CORESCOPE_SCRATCH_DISK";

/// Where null_blk makes disks.
const NULL_DISKS: &str = "/sys/kernel/config/nullb";

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

/// A disk. One that was made goes again when dropped.
pub struct Disk {
    /// The kernel's name, such as `loop0`.
    pub name: String,
    backing: Backing,
}

enum Backing {
    /// A loop device over a file, held open: the last to close it would write back what is in the page cache. And the
    /// file.
    Loop(File, File),
    /// A disk of null_blk, with its directory in configfs.
    Null(PathBuf),
    /// One that was there before.
    Scratch,
}

/// A file system on a disk, mounted. Unmounted again when dropped.
pub struct Mount {
    /// Where it is mounted; `None` when it no longer is.
    directory: Option<TempDir>,
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
    /// A loop device over memory, or skip the test where that cannot be.
    pub fn make() -> Outcome<Self> {
        Self::make_loop(SIZE)
    }

    /// A disk that is large enough for a file system: the one that may be overwritten, else a loop device.
    pub fn for_files() -> Outcome<Self> {
        match Self::scratch() {
            Err(Stop::Skip(_)) => Self::make_loop(SIZE_FOR_FILES),
            scratch => scratch,
        }
    }

    /// The disk that the environment says may be overwritten, unless it is used.
    pub fn scratch() -> Outcome<Self> {
        let node = std::env::var(SCRATCH).map_err(|_| Stop::Skip(format!("{SCRATCH} names no disk to overwrite")))?;
        let node = fs::canonicalize(node)?;
        let name = node.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let is_disk =
            fs::metadata(&node)?.file_type().is_block_device() && Path::new("/sys/block").join(&name).exists();
        crate::check!(is_disk, "{SCRATCH}: {} is no disk", node.display());
        let partitioned =
            fs::read_dir(format!("/sys/block/{name}"))?.flatten().any(|e| e.path().join("partition").exists());
        crate::check!(!partitioned, "{SCRATCH}: {name} has partitions");
        // The kernel refuses this where it is mounted, swapped to, or part of another device.
        let alone = File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(&node);
        alone.map_err(|error| format!("{SCRATCH}: {name} is used: {error}"))?;
        Ok(Self { name, backing: Backing::Scratch })
    }

    /// A disk of null_blk, which ends each request after `completion`.
    pub fn null(completion: Duration, queues: u32, depth: u32) -> Outcome<Self> {
        let directory = Path::new(NULL_DISKS).join(format!("corescope{}", std::process::id()));
        fs::create_dir(&directory).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Stop::Skip(format!("no {NULL_DISKS} (configfs; modprobe null_blk nr_devices=0)")),
            _ => Stop::Fail(format!("{}: {error}", directory.display())),
        })?;
        let mut disk = Self { name: String::new(), backing: Backing::Null(directory.clone()) };
        let settings = [
            // Completion by a timer.
            ("irqmode", 2),
            ("completion_nsec", completion.as_nanos()),
            ("submit_queues", queues.into()),
            ("hw_queue_depth", depth.into()),
            ("size", u128::from(SIZE >> 20)),
            ("power", 1),
        ];
        for (name, value) in settings {
            fs::write(directory.join(name), value.to_string()).map_err(|error| format!("null_blk {name}: {error}"))?;
        }
        // 6.0 (49c3b9266a71): named like its directory.
        let own = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        disk.name = match Path::new("/sys/block").join(own).exists() {
            true => own.to_owned(),
            false => format!("nullb{}", fs::read_to_string(directory.join("index"))?.trim_end()),
        };
        crate::wait_until(|| disk.node().exists())?;
        Ok(disk)
    }

    fn make_loop(size: u64) -> Outcome<Self> {
        let skip =
            |what: &str| Stop::Skip(format!("cannot make a loop device: {what}: {}", std::io::Error::last_os_error()));
        // SAFETY: a plain system call with a valid name; the descriptor is owned from here on.
        let memory = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_CLOEXEC) };
        if memory < 0 {
            return Err(skip("memfd_create"));
        }
        // SAFETY: as above; `memory` was checked.
        let memory = unsafe { File::from_raw_fd(memory) };
        memory.set_len(size)?;
        Self::over(&memory)
    }

    /// A loop device over a file.
    pub fn over(file: &File) -> Outcome<Self> {
        let skip =
            |what: &str| Stop::Skip(format!("cannot make a loop device: {what}: {}", std::io::Error::last_os_error()));
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
        config[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        config[LOOP_CONFIG_FLAGS..][..4].copy_from_slice(&LO_FLAGS_PARTSCAN.to_ne_bytes());
        // SAFETY: the kernel reads a struct loop_config of this size.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) } < 0 {
            return Err(skip("LOOP_CONFIGURE"));
        }
        Ok(Self { name, backing: Backing::Loop(device, file.try_clone()?) })
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
        if unsafe { libc::ioctl(File::open(self.node())?.as_raw_fd(), BLKPG, &raw const request) } < 0 {
            return Err(Stop::Skip(format!("cannot make a partition: {}", std::io::Error::last_os_error())));
        }
        Ok(format!("{}p1", self.name))
    }

    /// Take away the memory behind this many bytes: what is read there fails.
    pub fn cut(&self, bytes: u64) -> Outcome {
        match &self.backing {
            Backing::Loop(_, memory) => Ok(memory.set_len(bytes)?),
            _ => Err(Stop::Skip("not a disk whose memory can be cut".into())),
        }
    }

    /// A process that will do so many requests of `size` bytes each: see [`worker`].
    pub fn worker(&self, kind: &str, count: u64, size: u64) -> Outcome<Guard> {
        worker(&self.node(), kind, count, size)
    }

    /// Make a file system: `ext4`, `xfs` or `btrfs`.
    pub fn format(&self, kind: &str) -> Outcome {
        let program = format!("mkfs.{kind}");
        let options: &[&str] = match kind {
            // Or a thread of the kernel goes on with it when the file system is mounted.
            "ext4" => &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
            _ => &["-q", "-f"],
        };
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let mut command = Command::new("env");
        command.arg(format!("PATH={path}")).arg(&program).args(options).arg(self.node()).stdin(Stdio::null());
        let output = command.output()?;
        // What env says of a program that is not there.
        if output.status.code() == Some(127) {
            return Err(Stop::Skip(format!("no {program}")));
        }
        crate::check!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Mount the file system that [`Disk::format`] made.
    pub fn mount(&self, kind: &str) -> Outcome<Mount> {
        let directory = tempfile::tempdir()?;
        let text = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes());
        let (node, point, kind_c) = (text(&self.node())?, text(directory.path())?, CString::new(kind)?);
        // SAFETY: NUL-terminated strings that live across the call, and no data.
        if unsafe { libc::mount(node.as_ptr(), point.as_ptr(), kind_c.as_ptr(), 0, std::ptr::null()) } < 0 {
            let error = std::io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::ENODEV) => Stop::Skip(format!("this kernel has no {kind}")),
                Some(libc::EINVAL) => Stop::Skip(format!("mkfs.{kind} here makes what this kernel does not mount")),
                _ => Stop::Fail(format!("cannot mount {kind}: {error}")),
            });
        }
        Ok(Mount { directory: Some(directory) })
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
        match &self.backing {
            Backing::Loop(device, _) => {
                // SAFETY: an ioctl without argument on a descriptor that is open.
                unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) };
            }
            Backing::Null(directory) => {
                let _ = fs::remove_dir(directory);
            }
            Backing::Scratch => {}
        }
    }
}

/// So many bytes of memory, aligned as direct I/O wants it, for as long as this process lives.
pub fn pages(size: usize) -> Outcome<*mut libc::c_void> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping; the result is checked.
    let memory =
        unsafe { libc::mmap(std::ptr::null_mut(), size, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    crate::check!(memory != libc::MAP_FAILED, "no memory");
    Ok(memory)
}

/// A process that will do so many requests of `size` bytes each to a device or file; `kind` as workloads/blockio.c
/// explains it. [`Disk::work`] lets it.
pub fn worker(path: &Path, kind: &str, count: u64, size: u64) -> Outcome<Guard> {
    Guard::workload("blockio", &[&path.display().to_string(), kind, &count.to_string(), &size.to_string()])
}

impl Mount {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.directory.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// Unmount it: all of its I/O has ended then.
    pub fn unmount(mut self) -> Outcome {
        self.take_off()
    }

    fn take_off(&mut self) -> Outcome {
        let Some(directory) = self.directory.take() else {
            return Ok(());
        };
        let point = CString::new(directory.path().as_os_str().as_encoded_bytes())?;
        // SAFETY: a NUL-terminated string that lives across the call.
        if unsafe { libc::umount(point.as_ptr()) } < 0 {
            let error = std::io::Error::last_os_error();
            // Or what is in the file system would be removed with the directory.
            let _ = directory.keep();
            return Err(format!("cannot unmount: {error}").into());
        }
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.take_off();
    }
}
