//! Process ids of the caller's PID namespace, as those of the initial one, which programs see.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use bpf::pidns::PidnsSkelBuilder;
use libbpf_rs::ProgramInput;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use crate::proc;

/// Translates ids, by a program that walks the namespace's own table of them (`pidns.bpf.c`). No file of /proc tells:
/// one that is mounted in a namespace knows its ids and those below, not those above.
pub struct Translator(bool);

impl Translator {
    /// Of the caller's namespace.
    pub fn here() -> Self {
        Self(!proc::in_initial_pid_namespace())
    }

    /// Whether ids differ.
    pub fn is_needed(&self) -> bool {
        self.0
    }

    /// What these ids are in the initial namespace; 0 for one that has gone.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub fn initial(&self, ids: &[u32]) -> Result<Vec<u32>> {
        if !self.0 || ids.is_empty() {
            return Ok(ids.to_vec());
        }
        let mut object = MaybeUninit::uninit();
        let mut open = PidnsSkelBuilder::default().open(&mut object).context("cannot open the BPF object")?;
        for mut map in open.open_object_mut().maps_mut() {
            let is_constants = map.name().to_string_lossy().ends_with(".rodata");
            map.set_autocreate(is_constants)?;
        }
        open.progs.pidns_translate.set_autoload(true);
        let skel = open.load().context("cannot find out what process ids here are outside of this PID namespace")?;
        let translate = |id: &u32| {
            let mut context = u64::from(*id).to_ne_bytes();
            let input = ProgramInput { context_in: Some(&mut context), ..ProgramInput::default() };
            let output = skel.progs.pidns_translate.test_run(input).context("cannot translate a process id")?;
            Ok(output.return_value)
        };
        ids.iter().map(translate).collect()
    }
}
