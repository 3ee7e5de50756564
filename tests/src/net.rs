//! Packets that are lost, as many as is known, and the kernel's own counts of them.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::{Outcome, Stop, check};

/// Run in a network namespace of its own, whose loopback interface is up: the kernel's counts are then the test's alone.
pub fn alone<T: Send>(run: impl FnOnce() -> Outcome<T> + Send) -> Outcome<T> {
    let inside = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .map_err(|error| Stop::Skip(format!("no network namespaces: {error}")))?;
        let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        check!(status.is_ok_and(|status| status.success()), "the loopback interface does not come up");
        run()
    };
    // The namespace is that of the thread.
    std::thread::scope(|scope| scope.spawn(inside).join().map_err(|_| Stop::Fail("it panicked".into()))?)
}

/// From now on everything that comes in on this socket is dropped, by a socket filter that takes nothing.
pub fn deafen(socket: &impl AsFd) -> Outcome {
    let mut filter = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut filter };
    set(socket, libc::SO_ATTACH_FILTER, (&raw const program).cast(), size_of_val(&program))
}

/// A socket that begins to connect to this port of 127.0.0.1, and does not hear the answer.
pub fn connect_deaf(port: u16) -> Outcome<OwnedFd> {
    // SAFETY: plain system calls; the descriptor is owned once from here on, and the address lives across the call.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0);
        check!(fd >= 0, "{}", std::io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(fd);
        deafen(&socket)?;
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = port.to_be();
        address.sin_addr.s_addr = u32::from(std::net::Ipv4Addr::LOCALHOST).to_be();
        libc::connect(fd, (&raw const address).cast(), size_of_val(&address) as u32);
        Ok(socket)
    }
}

/// It hears again.
pub fn undeafen(socket: &impl AsFd) -> Outcome {
    let unused = 0i32;
    set(socket, libc::SO_DETACH_FILTER, (&raw const unused).cast(), size_of_val(&unused))
}

fn set(socket: &impl AsFd, option: i32, value: *const libc::c_void, size: usize) -> Outcome {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: a descriptor that lives across the call, and a value of that size.
    let status = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value, size as u32) };
    check!(status == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

/// Segments that a connection has sent again, by TCP_INFO.
pub fn sent_again(socket: &impl AsFd) -> Outcome<u64> {
    // SAFETY: a struct of numbers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of_val(&info) as u32;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: a descriptor that lives across the call, and room for so much.
    let status =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut size) };
    check!(status == 0, "{}", std::io::Error::last_os_error());
    Ok(info.tcpi_total_retrans.into())
}

/// A counter of this thread's network namespace, of /proc/net/snmp or netstat: its group and its name.
pub fn counter(group: &str, name: &str) -> Outcome<u64> {
    for file in ["snmp", "netstat"] {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))?;
        let mut lines = text.lines().filter(|line| line.starts_with(&format!("{group}: ")));
        if let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            let mut pairs = names.split(' ').zip(values.split(' '));
            if let Some((_, value)) = pairs.find(|(known, _)| *known == name) {
                return Ok(value.parse()?);
            }
        }
    }
    Err(Stop::Skip(format!("this kernel does not count {name}")))
}
