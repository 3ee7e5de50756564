//! What /proc says of a process. Every reader tolerates that the process ends meanwhile.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::text::Text;

/// PROC_PID_INIT_INO of include/linux/proc_ns.h: the PID namespace that the kernel itself counts in.
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Whether process ids here are those that the kernel and BPF programs see.
pub fn in_initial_pid_namespace() -> bool {
    fs::metadata("/proc/self/ns/pid").map_or(true, |meta| meta.ino() == INITIAL_PID_NAMESPACE)
}

/// Whether a process (or, by thread id, a thread) exists in the caller's PID namespace.
pub fn exists(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

/// A descriptor that becomes readable when the process ends.
///
/// # Errors
/// When there is no such process, or the kernel has no such descriptors.
pub fn pidfd(pid: u32) -> Result<OwnedFd> {
    // SAFETY: a plain system call without pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) });
    let fd = fd.with_context(|| format!("cannot watch process {pid} (pidfd_open, 5.3)"))?;
    // SAFETY: a descriptor that was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Open a file whose path another process chose. A pipe there would keep us waiting, and a device may act on being opened,
/// so what it is is seen before it is opened.
///
/// # Errors
/// When it cannot be opened, or is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let place = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
    if !place.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// The command name of a process, or `None` when it has gone.
pub fn comm(pid: u32) -> Option<Text<'static>> {
    let mut bytes = fs::read(format!("/proc/{pid}/comm")).ok()?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Some(Text::new(bytes))
}

/// A thread of the system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Thread {
    /// Its process.
    pub pid: u32,
    /// Its own id.
    pub tid: u32,
}

impl Thread {
    fn read(self, name: &str) -> Option<Vec<u8>> {
        fs::read(format!("/proc/{}/task/{}/{name}", self.pid, self.tid)).ok()
    }

    /// Its name and the rest of /proc/PID/task/TID/stat from the state on, or `None` when it has gone.
    pub fn stat(self) -> Option<(Text<'static>, Vec<String>)> {
        parse_stat(&self.read("stat")?)
    }

    /// Its real user, or `None` when it has gone.
    pub fn uid(self) -> Option<u32> {
        let status = self.read("status")?;
        status_field(&String::from_utf8_lossy(&status), "Uid")?.split_whitespace().next()?.parse().ok()
    }

    /// The functions of its kernel stack and the offset in each, innermost first, or `None` where that is refused.
    pub fn kernel_stack(self) -> Option<Vec<(String, u64)>> {
        let text = self.read("stack")?;
        Some(String::from_utf8_lossy(&text).lines().filter_map(parse_stack_line).collect())
    }

    /// The address that it will go on from in user space, if it is in a system call.
    pub fn user_address(self) -> Option<u64> {
        parse_syscall(&self.read("syscall")?)
    }
}

/// `PID (NAME) STATE FIELD...`
fn parse_stat(stat: &[u8]) -> Option<(Text<'static>, Vec<String>)> {
    // The name may hold anything, parentheses too; what follows it may not.
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = String::from_utf8_lossy(stat.get(close + 1..)?).split_whitespace().map(str::to_owned).collect();
    Some((Text::new(stat.get(open + 1..close)?.to_vec()), fields))
}

/// The last of `NUMBER ARGUMENT... STACK_POINTER ADDRESS`; `running` has none.
fn parse_syscall(text: &[u8]) -> Option<u64> {
    let address = std::str::from_utf8(text).ok()?.split_whitespace().next_back()?;
    u64::from_str_radix(address.strip_prefix("0x")?, 16).ok().filter(|address| *address != 0)
}

/// `[<0>] function+0x10/0x20 [module]`
fn parse_stack_line(line: &str) -> Option<(String, u64)> {
    let (_, place) = line.split_once("] ")?;
    let (name, offset) = place.split_whitespace().next()?.split_once("+0x")?;
    let (offset, _) = offset.split_once('/')?;
    Some((name.to_owned(), u64::from_str_radix(offset, 16).ok()?))
}

/// All threads of these processes, or of all where there are none.
pub fn threads(pids: &[u32]) -> Vec<Thread> {
    let ids = |path: String| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect::<Vec<u32>>()
    };
    let pids = if pids.is_empty() { ids("/proc".into()) } else { pids.to_vec() };
    let of = |pid: u32| ids(format!("/proc/{pid}/task")).into_iter().map(move |tid| Thread { pid, tid });
    pids.into_iter().flat_map(of).collect()
}

/// The parent of every process.
pub fn parents() -> HashMap<u32, u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parent = |pid: u32| Thread { pid, tid: pid }.stat()?.1.get(1)?.parse().ok();
    pids.filter_map(|pid: u32| Some((pid, parent(pid)?))).collect()
}

/// A file that a process has mapped to execute.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Executable {
    /// Device and inode, as /proc/PID/maps has them.
    pub file: (u64, u64),
    /// A path by which this very file can be opened, whatever its mount namespace.
    pub path: PathBuf,
    /// What the process calls it.
    pub name: PathBuf,
}

/// The files that a process has mapped to execute, each once.
///
/// # Errors
/// When it has gone or may not be looked at.
pub fn executables(pid: u32) -> io::Result<Vec<Executable>> {
    let maps = fs::read(format!("/proc/{pid}/maps"))?;
    let mappings = maps.split(|&byte| byte == b'\n').filter_map(Mapping::parse);
    let mut found: Vec<Executable> = Vec::new();
    for mapped in mappings.filter(|mapped| mapped.executable && mapped.file.1 != 0) {
        if found.iter().any(|known| known.file == mapped.file) {
            continue;
        }
        let by_map = PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", mapped.start, mapped.end));
        let name = Path::new(OsStr::from_bytes(mapped.path));
        let by_root = Path::new(&format!("/proc/{pid}/root")).join(name.strip_prefix("/").unwrap_or(name));
        let path = if by_map.metadata().is_ok() { by_map } else { by_root };
        found.push(Executable { file: mapped.file, path, name: name.to_owned() });
    }
    Ok(found)
}

/// One line of /proc/PID/maps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mapping<'a> {
    /// Its first address.
    pub start: u64,
    /// The first address behind it.
    pub end: u64,
    /// Whether what is there may be executed.
    pub executable: bool,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Device and inode of the file; inode 0 where there is none.
    pub file: (u64, u64),
    /// The path as the process sees it, or a name in brackets, or nothing.
    pub path: &'a [u8],
}

impl<'a> Mapping<'a> {
    /// Parse `START-END PERMISSIONS OFFSET MAJOR:MINOR INODE PATH`.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |&byte| byte == b' ');
        let mut field = || std::str::from_utf8(fields.next()?).ok();
        let (range, permissions, offset, device, inode) = (field()?, field()?, field()?, field()?, field()?);
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let (start, end) = range.split_once('-')?;
        let (major, minor) = device.split_once(':')?;
        let (start, end, offset) = (hex(start)?, hex(end)?, hex(offset)?);
        // So that whoever subtracts and adds what is said here need not think of it.
        offset.checked_add(end.checked_sub(start).filter(|size| *size > 0)?)?;
        Some(Self {
            start,
            end,
            executable: permissions.contains('x'),
            offset,
            file: (hex(major)? << 32 | hex(minor)?, inode.parse().ok()?),
            path: fields.next().unwrap_or_default().trim_ascii_start(),
        })
    }
}

/// One line of /proc/PID/mountinfo.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mount {
    /// The device number of the file system.
    pub device: String,
    /// Which directory of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// The kind of file system.
    pub kind: String,
    /// The options of the file system itself.
    pub options: String,
}

impl Mount {
    /// Parse `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [FIELD]... - KIND SOURCE OPTIONS`.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
        let mut path = || Some(PathBuf::from(OsString::from_vec(unescape(fields.next()?))));
        let (root, point) = (path()?, path()?);
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        Some(Self { device, root, point, kind: text(rest.next()?), options: text(rest.nth(1)?) })
    }
}

/// All that is mounted where this process can see it.
///
/// # Errors
/// When /proc cannot be read.
pub fn mounts() -> Result<Vec<Mount>> {
    let text = fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(Mount::parse).collect())
}

/// Undo the kernel's escapes: a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((&byte, after)) = rest.split_first() {
        let octal = |digits: &[u8; 3]| {
            let value = digits.iter().try_fold(0u32, |value, digit| Some(value * 8 + (*digit as char).to_digit(8)?));
            value.and_then(|value| u8::try_from(value).ok())
        };
        match after.first_chunk().and_then(octal).filter(|_| byte == b'\\') {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

/// A file of text, in which single bytes may be none: names are cut anywhere, and few programs insist on UTF-8.
pub fn text(path: &str) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The first three load averages, as /proc/loadavg has them.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.trim_end().to_owned()
}

/// The value of a `Key:` line of /proc/PID/status text.
pub fn status_field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{damaged, damaged_text};

    const STAT: &[&[u8]] = &[include_bytes!("../corpus/stat"), include_bytes!("../corpus/stat.hostile")];
    const STACK: &[&[u8]] = &[include_bytes!("../corpus/stack")];
    const SYSCALL: &[&[u8]] =
        &[include_bytes!("../corpus/syscall"), b"running\n", b"-1 0x7ffc9f198080 0x7ff4e1009aec\n"];
    const MAPS: &[&[u8]] = &[include_bytes!("../corpus/maps")];
    const MOUNTS: &[&[u8]] = &[include_bytes!("../corpus/mountinfo")];
    const STATUS: &[&[u8]] = &[include_bytes!("../corpus/status")];

    proptest! {
        #[test]
        fn any_stat_is_read(stat in damaged(STAT)) {
            if let Some((name, fields)) = parse_stat(&stat) {
                prop_assert!(stat.windows(name.bytes().len().max(1)).any(|part| part == name.bytes()) || name.is_empty());
                prop_assert!(fields.iter().all(|field| !field.contains(char::is_whitespace)));
            }
        }

        #[test]
        fn any_name_is_taken_out_of_stat(name: Vec<u8>) {
            let stat = [b"12 (", &name[..], b") S 1 2\n"].concat();
            let (found, fields) = parse_stat(&stat).unwrap();
            prop_assert_eq!((found.bytes(), fields.join(" ")), (&name[..], "S 1 2".to_owned()));
        }

        #[test]
        fn any_kernel_stack_is_read(text in damaged_text(STACK)) {
            for (name, _) in text.lines().filter_map(parse_stack_line) {
                prop_assert!(text.contains(&name));
            }
        }

        #[test]
        fn any_system_call_is_read(text in damaged(SYSCALL)) {
            prop_assert!(parse_syscall(&text) != Some(0));
        }

        #[test]
        fn any_status_is_read(text in damaged_text(STATUS), key in "[A-Za-z]{1,8}") {
            let field = status_field(&text, &key);
            prop_assert!(field.is_none_or(|field| text.contains(&key) && text.contains(field) && !field.contains('\n')));
        }

        #[test]
        fn any_mapping_is_read(text in damaged(MAPS)) {
            for line in text.split(|&byte| byte == b'\n') {
                if let Some(mapping) = Mapping::parse(line) {
                    prop_assert!(line.ends_with(mapping.path));
                    prop_assert!(mapping.start < mapping.end);
                    prop_assert!(mapping.offset.checked_add(mapping.end - mapping.start).is_some());
                }
            }
        }
    }

    /// What seq_escape() of fs/proc_namespace.c does to paths.
    fn escape(path: &[u8]) -> Vec<u8> {
        let byte = |&byte: &u8| match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
            byte => vec![byte],
        };
        path.iter().flat_map(byte).collect()
    }

    proptest! {
        #[test]
        fn any_mountinfo_is_read(text in damaged(MOUNTS)) {
            for mount in text.split(|&byte| byte == b'\n').filter_map(Mount::parse) {
                prop_assert!(mount.point.as_os_str().len() <= text.len());
            }
        }

        #[test]
        fn any_mount_point_is_what_it_is(
            root in "[/ a#\\\\0-7\n\t]{1,20}", point: Vec<u8>, tags in "(shared:[0-9] )?(master:[0-9] )?"
        ) {
            let (escaped_root, escaped) = (escape(root.as_bytes()), escape(&point));
            let line = [b"41 31 0:38 ", &escaped_root[..], b" ", &escaped, b" rw ", tags.as_bytes(), b"- cgroup2 - rw,a"];
            let mount = Mount::parse(&line.concat()).unwrap();
            prop_assert_eq!((mount.root.as_os_str().as_encoded_bytes(), mount.point.as_os_str().as_encoded_bytes()),
                (root.as_bytes(), &point[..]));
            prop_assert_eq!((mount.kind, mount.options), ("cgroup2".to_owned(), "rw,a".to_owned()));
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Opened as a file, it would wait for a writer.
        assert!(open_regular(&pipe).is_err() && open_regular(Path::new("/dev/null")).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/proc/self/maps", &link).unwrap();
        assert!(open_regular(&link).is_ok());
        let mut text = String::new();
        io::Read::read_to_string(&mut open_regular(Path::new("/etc/passwd")).unwrap(), &mut text).unwrap();
        assert!(text.contains("root"));
    }

    #[test]
    fn reads_itself() {
        let pid = std::process::id();
        assert!(exists(pid));
        assert!(comm(pid).is_some());
        assert!(!exists(u32::MAX));
        let me = Thread { pid, tid: pid };
        assert!(threads(&[pid]).contains(&me));
        assert!(threads(&[]).contains(&me));
        assert_eq!(me.stat().unwrap().1[1], std::os::unix::process::parent_id().to_string());
        assert_eq!(parse_stack_line("[<0>] a_b+0x1a/0x200 [mod]"), Some(("a_b".into(), 0x1a)));
        assert_eq!(parse_stack_line("[<0>] 0xffff"), None);
        assert_eq!(parse_syscall(SYSCALL[0]), Some(0x7ff4_e100_9aec));
        assert_eq!(parse_syscall(SYSCALL[1]), None);
        assert_eq!(MAPS[0].split(|&byte| byte == b'\n').filter_map(Mapping::parse).count(), 21);
        assert_eq!(status_field("Name:\tx\nCapEff:\t00ff\n", "CapEff"), Some("00ff"));
    }
}
