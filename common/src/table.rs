//! BPF hash maps as tables: all entries at once.

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags};
use plain::Plain;

/// Entries fetched by one system call.
const BATCH: u32 = 1024;

/// All entries of a hash map, by batches where the kernel has them (5.6).
///
/// # Errors
/// When the kernel does not let the map be read.
pub fn read<K: Plain + Default, V: Plain + Default>(map: &impl MapCore) -> Result<Vec<(K, V)>> {
    let entries = map.lookup_batch(BATCH, MapFlags::ANY, MapFlags::ANY);
    let entries = entries.with_context(|| format!("cannot read the map {}", map.name().to_string_lossy()))?;
    let copy = |(key, value): (Vec<u8>, Vec<u8>)| Some((from_bytes(&key)?, from_bytes(&value)?));
    Ok(entries.filter_map(copy).collect())
}

fn from_bytes<T: Plain + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    plain::copy_from_bytes(&mut value, bytes).ok()?;
    Some(value)
}
