//! Probes of user space: what this kernel offers for them.

use std::mem::size_of;
use std::os::fd::AsRawFd;

use libbpf_rs::Link;

use crate::kernel::Btf;
use crate::load::{NOTHING, try_program};

/// Whether many places can be probed with one link that follows all threads of one process.
///
/// Links of many probes came in 6.6, but until 6.10 (46ba0e49b642) such a link, told to follow a process, followed only
/// the thread whose id is that of the process. Of the kernels that know such links, only those with that repair refuse a
/// negative process id as invalid.
pub fn has_multi(btf: &Btf) -> bool {
    if !btf.mentions("bpf_uprobe_multi_link") {
        return false;
    }
    let options = libbpf_sys::bpf_prog_load_opts {
        expected_attach_type: libbpf_sys::BPF_TRACE_UPROBE_MULTI,
        ..Default::default()
    };
    let Ok(program) = try_program(libbpf_sys::BPF_PROG_TYPE_KPROBE, &NOTHING, options) else {
        return false;
    };
    let offset: std::ffi::c_ulong = 0;
    let mut link = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        ..Default::default()
    };
    link.__bindgen_anon_1.uprobe_multi = libbpf_sys::bpf_link_create_opts__bindgen_ty_1__bindgen_ty_3 {
        path: c"/proc/self/exe".as_ptr(),
        offsets: &raw const offset,
        cnt: 1,
        pid: u32::MAX,
        ..Default::default()
    };
    // SAFETY: the options and what they point to live across the call; what is made is closed here.
    unsafe {
        let made =
            libbpf_sys::bpf_link_create(program.as_raw_fd(), -1, libbpf_sys::BPF_TRACE_UPROBE_MULTI, &raw const link);
        if made >= 0 {
            libc::close(made);
        }
        made == -libc::EINVAL
    }
}

/// How many threads wait for probes to go: a machine has no use for as many as there can be functions.
const DETACHERS: usize = 16;

/// Let go of all probes at once: the kernel takes a while over each link, in which it only waits.
pub fn detach(links: Vec<Link>) {
    let each = links.len().div_ceil(DETACHERS).max(1);
    let mut links = links.into_iter().peekable();
    std::thread::scope(|scope| {
        while links.peek().is_some() {
            let some: Vec<Link> = links.by_ref().take(each).collect();
            scope.spawn(move || drop(some));
        }
    });
}
