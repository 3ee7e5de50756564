//! BPF hash maps as tables: all entries at once.

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use libbpf_rs::{Map, MapCore, MapFlags, MapHandle, MapType, Object, OpenObject};
use libbpf_sys::bpf_map_create_opts;
use nix::errno::Errno;
use plain::Plain;

/// Entries fetched by one system call, to begin with, and the memory that they may take.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 256 << 10;

/// All entries of a hash map.
///
/// # Errors
/// When the kernel does not let the map be read.
pub fn read<K: Plain + Default, V: Plain + Default>(map: &impl MapCore) -> Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    each(map, |key, value| {
        entries.extend(from_bytes(key).zip(from_bytes(value)));
        Ok(())
    })?;
    Ok(entries)
}

/// Take all entries out of a hash map to which nothing is added meanwhile.
///
/// # Errors
/// When the kernel does not let the map be read.
pub fn take<K: Plain + Default, V: Plain + Default>(map: &impl MapCore) -> Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    by_batches(map, libbpf_sys::bpf_map_lookup_and_delete_batch, |key, value| {
        entries.extend(from_bytes(key).zip(from_bytes(value)));
        Ok(())
    })?;
    Ok(entries)
}

/// The user half of tally.bpf.h: totals of one interval at a time.
pub struct Tally<'m> {
    turn: Map<'m>,
    tables: [Map<'m>; 2],
    /// Which table the kernel now writes.
    written: usize,
    programs: Running,
}

impl<'m> Tally<'m> {
    /// Have an object that is about to be loaded keep this tally only where it is wanted: its tables take time to make.
    ///
    /// # Errors
    /// When the object is loaded already.
    pub fn keep(object: &mut OpenObject, name: &str, wanted: bool) -> Result<()> {
        let maps = ["turn", "even", "odd"].map(|end| format!("{name}_{end}"));
        for mut map in object.maps_mut().filter(|map| maps.iter().any(|full| map.name() == full.as_str())) {
            map.set_autocreate(wanted)?;
        }
        Ok(())
    }

    /// The tally that a loaded object keeps under this name.
    ///
    /// # Errors
    /// When it keeps none.
    pub fn of(object: &'m Object, name: &str) -> Result<Self> {
        let map = |end: &str| {
            let full = format!("{name}_{end}");
            let found = object.maps().find(|map| map.name() == full.as_str());
            found.with_context(|| format!("the object has no map {full}"))
        };
        Ok(Self { turn: map("turn")?, tables: [map("even")?, map("odd")?], written: 0, programs: Running::new()? })
    }

    /// What was counted since the last call.
    ///
    /// # Errors
    /// When the kernel does not let the maps be read or changed round.
    pub fn take<K: Plain + Default, V: Plain + Default>(&mut self) -> Result<Vec<(K, V)>> {
        let former = self.written;
        self.written = 1 - former;
        let turn = self.turn.update(&[0; 4], &(self.written as u32).to_ne_bytes(), MapFlags::ANY);
        turn.context("cannot change the tables")?;
        self.programs.end()?;
        take(&self.tables[former])
    }
}

/// The BPF programs that run at some moment.
struct Running {
    outer: MapHandle,
    inner: MapHandle,
}

impl Running {
    fn new() -> Result<Self> {
        let make = |kind, inner| {
            let options = bpf_map_create_opts {
                sz: size_of::<bpf_map_create_opts>() as _,
                inner_map_fd: inner,
                ..Default::default()
            };
            MapHandle::create(kind, Some("running"), 4, 4, 1, &options).context("cannot make a map")
        };
        let inner = make(MapType::Array, 0)?;
        let outer = make(MapType::ArrayOfMaps, inner.as_fd().as_raw_fd() as u32)?;
        Ok(Self { outer, inner })
    }

    /// Wait until those that run now have ended. Nothing says so but the update of a map of maps, which returns when no
    /// program uses what was there before (`maybe_wait_bpf_programs()` of kernel/bpf/syscall.c).
    fn end(&self) -> Result<()> {
        let inner = self.inner.as_fd().as_raw_fd().to_ne_bytes();
        self.outer.update(&[0; 4], &inner, MapFlags::ANY).context("cannot wait for the programs that run")
    }
}

/// Hand every entry, as the bytes of key and value, to `take`: a table of any size is read in the memory of one batch. A
/// value of a per-CPU map is those of all CPUs, one after the other, each at a multiple of 8 bytes.
///
/// # Errors
/// When the kernel does not let the map be read, or what `take` returns.
pub fn each(map: &impl MapCore, take: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    by_batches(map, libbpf_sys::bpf_map_lookup_batch, take)
}

/// Hand every slot of a per-CPU array, as its index and the values of all CPUs, to `take`.
///
/// # Errors
/// When the kernel does not let the map be read.
pub fn each_slot(map: &impl MapCore, mut take: impl FnMut(u32, &mut dyn Iterator<Item = &[u8]>)) -> Result<()> {
    let size = (map.value_size() as usize).next_multiple_of(8);
    let batches = each(map, |key, value| {
        if let Some(slot) = key.first_chunk() {
            take(u32::from_ne_bytes(*slot), &mut value.chunks_exact(size));
        }
        Ok(())
    });
    if batches.is_ok() {
        return Ok(());
    }
    // Before 5.13 the kernel hands out one slot at a time.
    for slot in 0..map.max_entries() {
        let per_cpu = map.lookup_percpu(&slot.to_ne_bytes(), MapFlags::ANY);
        let per_cpu = per_cpu.with_context(|| format!("cannot read the map {}", map.name().to_string_lossy()))?;
        take(slot, &mut per_cpu.iter().flatten().map(Vec::as_slice));
    }
    Ok(())
}

/// The user half of counters that only grow, N to a slot of a per-CPU array: what each interval added to their sums.
pub struct Counters<'m, const N: usize> {
    map: Map<'m>,
    before: Vec<[u64; N]>,
}

impl<'m, const N: usize> Counters<'m, N> {
    /// The counters that a loaded object keeps under this name.
    ///
    /// # Errors
    /// When it keeps none.
    pub fn of(object: &'m Object, name: &str) -> Result<Self> {
        let map = object.maps().find(|map| map.name() == name);
        let map = map.with_context(|| format!("the object has no map {name}"))?;
        let before = vec![[0; N]; map.max_entries() as usize];
        Ok(Self { map, before })
    }

    /// What was added since the last call, by slot.
    ///
    /// # Errors
    /// When the kernel does not let the map be read.
    pub fn take(&mut self) -> Result<Vec<[u64; N]>> {
        let mut now = vec![[0u64; N]; self.before.len()];
        each_slot(&self.map, |slot, values| {
            let Some(sums) = now.get_mut(slot as usize) else { return };
            for value in values {
                for (sum, word) in sums.iter_mut().zip(value.chunks_exact(8)) {
                    *sum = sum.wrapping_add(word.first_chunk().map_or(0, |chunk| u64::from_ne_bytes(*chunk)));
                }
            }
        })?;
        let before = std::mem::replace(&mut self.before, now.clone());
        let added =
            now.iter().zip(before).map(|(now, before)| std::array::from_fn(|at| now[at].wrapping_sub(before[at])));
        Ok(added.collect())
    }
}

/// One of libbpf's functions for batches: map, where to go on, where the next goes on, keys, values, how many, options.
type Batch = unsafe extern "C" fn(
    i32,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut u32,
    *const libbpf_sys::bpf_map_batch_opts,
) -> i32;

/// By batches (5.6; of per-CPU arrays 5.13). Not libbpf-rs's iterator, which takes a batch that is not full for the last:
/// the kernel ends one wherever the next bucket of the table would not fit whole (`__htab_map_lookup_and_delete_batch()`
/// of kernel/bpf/hashtab.c), and says ENOENT only at the end.
fn by_batches(map: &impl MapCore, next_batch: Batch, mut take: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let key_size = map.key_size() as usize;
    let value_size = match map.map_type() {
        MapType::PercpuArray | MapType::PercpuHash | MapType::LruPercpuHash => {
            (map.value_size() as usize).next_multiple_of(8) * libbpf_rs::num_possible_cpus()?
        }
        _ => map.value_size() as usize,
    };
    let mut batch = (BATCH_BYTES / (key_size + value_size)).clamp(1, BATCH);
    let (mut keys, mut values) = (vec![0u8; batch * key_size], vec![0u8; batch * value_size]);
    // Where the table goes on: for hashes a bucket number, whatever the size of the key.
    let (mut at, mut next) = (vec![0u8; key_size.max(8)], vec![0u8; key_size.max(8)]);
    let mut is_first = true;
    loop {
        let mut count = batch as u32;
        let options = libbpf_sys::bpf_map_batch_opts {
            sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as _,
            ..Default::default()
        };
        let from = if is_first { std::ptr::null_mut() } else { at.as_mut_ptr() };
        // SAFETY: the buffers have room for `count` keys and values, and for a position, as the call expects.
        let status = unsafe {
            next_batch(
                map.as_fd().as_raw_fd(),
                from.cast(),
                next.as_mut_ptr().cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &raw mut count,
                &raw const options,
            )
        };
        let is_last = match Errno::from_raw(-status) {
            _ if status == 0 => false,
            Errno::ENOENT => true,
            Errno::EINTR => continue,
            // One bucket holds more than this.
            Errno::ENOSPC => {
                batch *= 2;
                keys.resize(batch * key_size, 0);
                values.resize(batch * value_size, 0);
                continue;
            }
            error => {
                return Err(error).with_context(|| format!("cannot read the map {}", map.name().to_string_lossy()));
            }
        };
        let pairs = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)).take(count as usize);
        for (key, value) in pairs {
            take(key, value)?;
        }
        if is_last {
            return Ok(());
        }
        std::mem::swap(&mut at, &mut next);
        is_first = false;
    }
}

fn from_bytes<T: Plain + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    plain::copy_from_bytes(&mut value, bytes).ok()?;
    Some(value)
}
