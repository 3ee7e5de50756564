//! How much memory a tool takes.

use std::{fs, ptr};

/// The memory of an entry of a hash table that is three quarters full, in bytes.
pub(crate) const fn of_entry<K, V>() -> usize {
    (size_of::<(K, V)>() * 4).div_ceil(3)
}

/// Let go of memory that served what is over: what is free, and the pages of code, which come back from the page cache as
/// they are needed. What a tool takes at most is then that of one of its steps (options, loading, events), not of all.
pub(crate) fn give_back() {
    // SAFETY: the C library gives back what nobody has.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    // Only what is executable: of the rest, some holds what the dynamic linker wrote, and would be lost.
    let code = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let parse = |address| usize::from_str_radix(address, 16).ok();
        (rest.starts_with("r-xp ") && rest.contains(" /")).then_some((parse(start)?, parse(end)?))
    };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, end) in maps.lines().filter_map(code) {
        // SAFETY: pages of a private mapping of a file that cannot be written to: what is read again is the same.
        unsafe { libc::madvise(ptr::without_provenance_mut(start), end - start, libc::MADV_DONTNEED) };
    }
}
