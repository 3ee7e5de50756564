//! Programs that are hooked to a type of the kernel (`tp_btf`, `fentry`, `fexit`, `iter`): which it is, is found here.
//!
//! libbpf makes an index of all the kernel's types to find a few: 3 ms of a tool's start, and half a megabyte. It does so
//! for every program of type tracing, whether or not its type is known. So these sections are taken over: until they are
//! loaded, their programs are of another type to libbpf, and that does not attach them by itself.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_long};
use std::mem::size_of;
use std::sync::{Mutex, Once};

use libbpf_sys::{
    BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, BPF_TRACE_ITER,
    BPF_TRACE_RAW_TP, bpf_attach_type, bpf_prog_load_opts, bpf_program, libbpf_prog_handler_opts,
};

use crate::kernel::{BTF_FUNC, BTF_TYPEDEF, Btf};

/// The sections, how their programs are attached, and what type of the kernel they name: its kind, and what it is called
/// before the name (`BTF_TRACE_PREFIX` and its kin of libbpf).
const SECTIONS: [(&str, &CStr, bpf_attach_type, u32, &str); 4] = [
    ("tp_btf", c"tp_btf+", BPF_TRACE_RAW_TP, BTF_TYPEDEF, "btf_trace_"),
    ("fentry", c"fentry+", BPF_TRACE_FENTRY, BTF_FUNC, ""),
    ("fexit", c"fexit+", BPF_TRACE_FEXIT, BTF_FUNC, ""),
    ("iter", c"iter+", BPF_TRACE_ITER, BTF_FUNC, "bpf_iter_"),
];

/// The types of programs, by the programs' names.
static IDS: Mutex<Option<HashMap<CString, u32>>> = Mutex::new(None);

/// Take the sections over, for all objects that are opened from now on.
pub(crate) fn take_over() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (_, section, attach, ..) in SECTIONS {
            let options = libbpf_prog_handler_opts {
                sz: size_of::<libbpf_prog_handler_opts>() as _,
                prog_prepare_load_fn: Some(prepare),
                ..Default::default()
            };
            // SAFETY: the name is a string, which libbpf copies; so it does with the options. No object is open yet. Where
            // there is no memory for it, libbpf does what it always does.
            unsafe {
                libbpf_sys::libbpf_register_prog_handler(
                    section.as_ptr(),
                    BPF_PROG_TYPE_RAW_TRACEPOINT,
                    attach,
                    &raw const options,
                );
            }
        }
    });
}

/// Whether programs of this section are attached as such, and not by libbpf's choice.
pub(crate) fn is_typed(section: &str) -> bool {
    SECTIONS.iter().any(|(name, ..)| *name == section)
}

/// Note what those of these programs (name, section, and what it is hooked to) are hooked to that this is about, for when
/// they are loaded. Those whose type is none of the kernel itself are returned.
pub(crate) fn note<'p>(btf: &Btf, programs: impl Iterator<Item = (&'p str, &'p str, &'p str)>) -> Vec<&'p str> {
    let typed = programs.filter_map(|(program, section, target)| {
        let (.., kind, prefix) = SECTIONS.iter().find(|(name, ..)| *name == section)?;
        Some((program, (*kind, format!("{prefix}{target}"))))
    });
    let (typed, wanted): (Vec<&str>, Vec<(u32, String)>) = typed.unzip();
    let (mut ids, mut unknown) = (HashMap::new(), Vec::new());
    for (program, id) in typed.into_iter().zip(btf.ids(&wanted)) {
        match id.zip(CString::new(program).ok()) {
            Some((id, program)) => drop(ids.insert(program, id)),
            None => unknown.push(program),
        }
    }
    if let Ok(mut noted) = IDS.lock() {
        *noted = Some(ids);
    }
    unknown
}

/// What libbpf calls just before it loads a program.
unsafe extern "C" fn prepare(program: *mut bpf_program, options: *mut bpf_prog_load_opts, _: c_long) -> c_int {
    // SAFETY: libbpf hands over a program of an object that is being loaded and its options, which nobody else uses now.
    // Names are strings that the program owns.
    unsafe {
        let options = &mut *options;
        // Of a function of a module libbpf knows already.
        if options.attach_btf_id == 0 {
            let name = CStr::from_ptr(libbpf_sys::bpf_program__name(program));
            let noted = IDS.lock().ok().and_then(|ids| ids.as_ref()?.get(name).copied());
            let id = noted.map_or_else(|| search(program, options.expected_attach_type), |id| id as c_int);
            if id <= 0 {
                return id.min(-1);
            }
            options.attach_btf_id = id as u32;
        }
        libbpf_sys::bpf_program__set_type(program, BPF_PROG_TYPE_TRACING)
    }
}

/// What libbpf finds for the section of a program that was not noted.
///
/// # Safety
/// The program is one of an object that is open.
unsafe fn search(program: *const bpf_program, attach: bpf_attach_type) -> c_int {
    // SAFETY: the name of its section is a string that the program owns, and so is the part after the slash.
    unsafe {
        let section = CStr::from_ptr(libbpf_sys::bpf_program__section_name(program));
        match section.to_bytes().iter().position(|&byte| byte == b'/') {
            Some(slash) => libbpf_sys::libbpf_find_vmlinux_btf_id(section.as_ptr().add(slash + 1), attach),
            None => -libc::EINVAL,
        }
    }
}
