//! Operations on files whose sizes, places and times are known.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{Outcome, Stop, check_eq, disk};

/// include/uapi/linux/userfaultfd.h
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFDIO_ZEROPAGE: libc::Ioctl = 0xc020_aa04_u32 as libc::Ioctl;
const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
/// Size of struct uffd_msg.
const UFFD_MSG: usize = 32;

const PAGE: usize = 4096;

/// A page of memory that is there only so long after it is first touched: a system call that reads or writes it takes
/// as long.
pub struct SlowPage {
    address: *mut libc::c_void,
    resolver: Option<JoinHandle<()>>,
}

impl SlowPage {
    /// One that takes so long.
    pub fn new(delay: Duration) -> Outcome<Self> {
        // SAFETY: a plain system call; the descriptor is owned from here on.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } as RawFd;
        if fd < 0 {
            return Err(Stop::Skip(format!("no userfaultfd: {}", std::io::Error::last_os_error())));
        }
        // SAFETY: as above; `fd` was checked.
        let faults = unsafe { File::from_raw_fd(fd) };
        let address = disk::pages(PAGE)?;
        let start = address as u64;
        let mut api = [UFFD_API, 0, 0];
        let mut register = [start, PAGE as u64, UFFDIO_REGISTER_MODE_MISSING, 0];
        // SAFETY: the kernel reads and writes structs of these sizes, which live across the calls.
        unsafe {
            check_eq!(libc::ioctl(fd, UFFDIO_API, api.as_mut_ptr()), 0);
            check_eq!(libc::ioctl(fd, UFFDIO_REGISTER, register.as_mut_ptr()), 0);
        }
        let resolver = std::thread::spawn(move || {
            let mut message = [0u8; UFFD_MSG];
            let mut range = [start, PAGE as u64, 0, 0];
            // SAFETY: buffers of the sizes that the kernel fills or reads; the page stays mapped.
            unsafe {
                libc::read(faults.as_raw_fd(), message.as_mut_ptr().cast(), UFFD_MSG);
                std::thread::sleep(delay);
                libc::ioctl(faults.as_raw_fd(), UFFDIO_ZEROPAGE, range.as_mut_ptr());
            }
        });
        Ok(Self { address, resolver: Some(resolver) })
    }

    /// Read so much of a file into it, which takes its time.
    pub fn read(mut self, file: &File, size: usize) -> Outcome<isize> {
        // SAFETY: a page that is mapped, though not yet there.
        let read = unsafe { libc::pread(file.as_raw_fd(), self.address, size, 0) };
        self.resolver.take().map(JoinHandle::join);
        Ok(read)
    }

    /// Write so much of it to a file, which takes its time.
    pub fn write(mut self, file: &File, size: usize) -> Outcome<isize> {
        // SAFETY: as above.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), self.address, size, 0) };
        self.resolver.take().map(JoinHandle::join);
        Ok(written)
    }
}

/// An operation that was done: its letter, the bytes that it moved, and where in the file it began.
pub type Done = (&'static str, i64, i64);

/// Make a file and do a bit of all that can be done with it; what was done, in order.
pub fn exercise(path: &Path) -> Outcome<Vec<Done>> {
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut memory = vec![7u8; 64 << 10];
    let start: *mut libc::c_void = memory.as_mut_ptr().cast();
    let parts = |first: usize, second: usize| [first, second].map(|iov_len| libc::iovec { iov_base: start, iov_len });
    // SAFETY: plain system calls on a descriptor of our own and memory that lives across them.
    unsafe {
        let fd = libc::open(name.as_ptr(), libc::O_CREAT | libc::O_RDWR | libc::O_CLOEXEC, 0o600);
        if fd < 0 {
            return Err(format!("{}: {}", path.display(), std::io::Error::last_os_error()).into());
        }
        let _file = File::from_raw_fd(fd);
        check_eq!(libc::write(fd, start, 1000), 1000);
        check_eq!(libc::write(fd, start, 500), 500);
        check_eq!(libc::pwrite(fd, start, 4096, 8192), 4096);
        check_eq!(libc::writev(fd, parts(10, 20).as_ptr(), 2), 30);
        check_eq!(libc::pwritev(fd, parts(100, 200).as_ptr(), 2, 20000), 300);
        check_eq!(libc::fsync(fd), 0);
        check_eq!(libc::fdatasync(fd), 0);
        check_eq!(libc::lseek(fd, 100, libc::SEEK_SET), 100);
        // More than there is: to the end.
        check_eq!(libc::read(fd, start, 64 << 10), 20200);
        check_eq!(libc::pread(fd, start, 5, 1 << 40), 0);
        check_eq!(libc::pread(fd, start, 4096, 4096), 4096);
        check_eq!(libc::preadv(fd, parts(7, 8).as_ptr(), 2, 9), 15);
        check_eq!(libc::lseek(fd, 2048, libc::SEEK_SET), 2048);
        check_eq!(libc::readv(fd, parts(1, 2).as_ptr(), 2), 3);
        check_eq!(libc::preadv2(fd, parts(3, 4).as_ptr(), 2, -1, 0), 7);
    }
    Ok(vec![
        ("O", 0, 0),
        ("W", 1000, 0),
        ("W", 500, 1000),
        ("W", 4096, 8192),
        ("W", 30, 1500),
        ("W", 300, 20000),
        ("S", 0, 0),
        ("S", 0, 0),
        ("R", 20200, 100),
        ("R", 0, 1 << 40),
        ("R", 4096, 4096),
        ("R", 15, 9),
        ("R", 3, 2048),
        ("R", 7, 2051),
    ])
}
