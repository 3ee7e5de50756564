//! Disks as sysfs lists them, and the user-space half of `block.bpf.h`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Enum;
use libbpf_rs::skel::OpenSkel;

use crate::fault::unsupported;
use crate::load::{Knobs, Loader};
use crate::text::Text;

/// What is lacking where the owner of a request is taken when it is given to the driver, not when it is made.
pub const LATE_OWNER: &str = "a request that a kernel thread gives to the driver later counts as that thread's";

/// MINORBITS of include/linux/kdev_t.h.
const MINOR_BITS: u32 = 20;
/// Bounds of the table of requests.
const REQUESTS_MIN: u32 = 4096;
const REQUESTS_MAX: u32 = 1 << 18;

/// The number of a disk, as the kernel's programs give it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Disk(pub u32);

impl Disk {
    /// Number of its driver.
    pub fn major(self) -> u32 {
        self.0 >> MINOR_BITS
    }

    /// Number of the disk at its driver.
    pub fn minor(self) -> u32 {
        self.0 & ((1 << MINOR_BITS) - 1)
    }

    /// Its name, or `MAJOR:MINOR` when it has gone.
    pub fn name(self) -> Text<'static> {
        self.known_name().unwrap_or_else(|| self.numbers())
    }

    fn known_name(self) -> Option<Text<'static>> {
        let path = fs::canonicalize(format!("/sys/dev/block/{}:{}", self.major(), self.minor())).ok()?;
        Some(Text::new(path.file_name()?.as_encoded_bytes().to_vec()))
    }

    fn numbers(self) -> Text<'static> {
        Text::new(format!("{}:{}", self.major(), self.minor()).into_bytes())
    }

    /// From the `dev` file of its directory in sysfs.
    fn of(directory: &Path) -> Option<Self> {
        parse_numbers(&fs::read_to_string(directory.join("dev")).ok()?)
    }
}

/// `MAJOR:MINOR`, as far as a disk's number has room for them.
fn parse_numbers(text: &str) -> Option<Disk> {
    let (major, minor) = text.trim_end().split_once(':')?;
    let (major, minor) = (major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?);
    (major >> (32 - MINOR_BITS) == 0 && minor >> MINOR_BITS == 0).then_some(Disk(major << MINOR_BITS | minor))
}

/// A disk that the user named.
#[derive(Debug)]
pub struct Named {
    /// The disk.
    pub disk: Disk,
    /// What to tell the user when the name was that of a partition.
    pub remark: Option<String>,
}

/// Find a disk by its name, that of a partition of it, or the path of either in /dev.
///
/// # Errors
/// When there is none (the message lists those that are), or when it is one whose I/O does not pass as requests.
pub fn find(name: &str) -> Result<Named> {
    find_below(Path::new("/sys"), name)
}

fn find_below(sys: &Path, name: &str) -> Result<Named> {
    // Links below /dev, such as /dev/disk/by-id/..., lead to the node that bears the kernel's name.
    let node = fs::canonicalize(name).ok().filter(|node| node.starts_with("/dev"));
    let node = node.as_deref().and_then(Path::file_name).and_then(|node| node.to_str());
    let name = node.unwrap_or(name.strip_prefix("/dev/").unwrap_or(name)).replace('/', "!");
    let link = sys.join("class/block").join(&name);
    let plain = !name.is_empty() && !name.starts_with('.');
    let Some(mut directory) = fs::canonicalize(link).ok().filter(|_| plain) else {
        bail!("no such disk: {name} (there are {})", names(sys).join(", "));
    };
    let is_partition = directory.join("partition").exists();
    if is_partition {
        directory.pop();
    }
    let disk = Disk::of(&directory).with_context(|| format!("{} has no device number", directory.display()))?;
    let disk_name = Text::new(directory.file_name().unwrap_or_default().as_encoded_bytes().to_vec());
    if !directory.join("mq").exists() {
        return Err(unsupported(format!(
            "{disk_name} has no request queue (zram, device mapper, md): its I/O is not seen here, but that of the disks \
             below it is"
        )));
    }
    let remark = is_partition.then(|| format!("{name} is a partition: showing its disk, {disk_name}"));
    Ok(Named { disk, remark })
}

fn directories(path: PathBuf) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

fn names(sys: &Path) -> Vec<String> {
    let name = |path: &PathBuf| Some(Text::new(path.file_name()?.as_encoded_bytes().to_vec()).to_string());
    directories(sys.join("block")).iter().filter_map(name).collect()
}

/// How many requests all disks can have: those of the drivers and those of the schedulers, and one for the flushes of
/// each hardware queue.
fn requests(sys: &Path) -> u64 {
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim_end().parse::<u64>().ok();
    let of_disk = |disk: &PathBuf| -> u64 {
        let scheduled = number(disk.join("queue/nr_requests")).unwrap_or(0).min(REQUESTS_MAX.into());
        let queues = directories(disk.join("mq"));
        let of_queue = |queue: &PathBuf| number(queue.join("nr_tags")).unwrap_or(0).saturating_add(scheduled + 1);
        queues.iter().map(of_queue).fold(0, u64::saturating_add)
    };
    directories(sys.join("block")).iter().map(of_disk).fold(0, u64::saturating_add)
}

/// Names of disks, each looked up once a second at most: for tools that show one in every row.
#[derive(Default)]
pub struct Names {
    known: HashMap<u32, (Text<'static>, Option<Instant>)>,
}

impl Names {
    /// The name of a disk; the last that it had where it has gone.
    pub fn of(&mut self, disk: Disk) -> Text<'static> {
        let (name, looked) = self.known.entry(disk.0).or_insert_with(|| (disk.numbers(), None));
        if looked.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            *looked = Some(Instant::now());
            if let Some(now) = disk.known_name() {
                *name = now;
            }
        }
        name.clone()
    }
}

/// Prepare an object that includes `block.bpf.h` and is about to be loaded, for one disk or all.
///
/// # Errors
/// When the object has no requests.
pub fn configure<'obj>(loader: &Loader, open: &mut impl OpenSkel<'obj>, only: Option<Disk>) -> Result<()> {
    let object = open.open_object_mut();
    let mut table = object.maps_mut().find(|map| map.name() == "block_requests").context("no table of requests")?;
    // Twice what there is now, for disks that come later.
    let entries = requests(Path::new("/sys")).saturating_mul(2).clamp(REQUESTS_MIN.into(), REQUESTS_MAX.into());
    table.set_max_entries(entries as u32)?;
    let knobs = Knobs::of(object)?;
    let btf = loader.btf();
    // What came with 6.5 tells that what went with 5.11 is gone, for a tenth of the time that a walk of the types takes.
    if !btf.mentions("btf_trace_block_io_start") {
        knobs.set("block_after_queue", &[u8::from(btf.tracepoint_arguments("block_rq_issue") == Some(2))])?;
        knobs.set("block_bio_after_queue", &[u8::from(btf.tracepoint_arguments("block_getrq") == Some(3))])?;
    }
    for (knob, flag) in [("block_flush_seq", "__RQF_FLUSH_SEQ"), ("block_io_stat", "__RQF_IO_STAT")] {
        // Where they have no names, they are where the object expects them.
        if let Some(bit @ 0..32) = btf.enumerator(flag) {
            knobs.set(knob, &(1u32 << bit).to_ne_bytes())?;
        }
    }
    knobs.set("block_disk", &only.map_or(0, |disk| disk.0).to_ne_bytes())
}

/// Flags of a request that are told apart, by their names in `enum req_flag_bits`, in the order in which they are shown.
const FLAGS: [(&str, &str); 11] = [
    ("__REQ_NOWAIT", "NoWait"),
    ("__REQ_BACKGROUND", "Background"),
    ("__REQ_RAHEAD", "ReadAhead"),
    ("__REQ_PREFLUSH", "PreFlush"),
    ("__REQ_FUA", "FUA"),
    ("__REQ_INTEGRITY", "Integrity"),
    ("__REQ_IDLE", "Idle"),
    ("__REQ_NOMERGE", "NoMerge"),
    ("__REQ_PRIO", "Priority"),
    ("__REQ_META", "Metadata"),
    ("__REQ_SYNC", "Sync"),
];

/// REQ_OP_MASK of include/linux/blk_types.h.
const OP_MASK: u32 = 0xff;

/// What the command and flags of a request mean on this kernel.
#[derive(Debug, Default)]
pub struct Commands {
    operations: HashMap<u32, String>,
    flags: Vec<(u32, &'static str)>,
}

impl Commands {
    /// Read the meaning from the kernel's types.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(loader: &Loader) -> Result<Self> {
        let btf = match loader.btf().custom() {
            Some(path) => Btf::from_path(path),
            None => Btf::from_vmlinux(),
        };
        let btf = btf.context("cannot read the kernel's types")?;
        let members = |names: &[&str]| -> Vec<(String, u32)> {
            let found = names.iter().find_map(|name| btf.type_by_name::<Enum<'_>>(name));
            let members = found.iter().flat_map(|found| found.iter());
            members.filter_map(|member| Some((member.name?.to_str()?.to_owned(), member.value as u32))).collect()
        };
        // 6.0: enum req_opf became req_op.
        let operations = members(&["req_op", "req_opf"]).into_iter();
        let operations = operations.map(|(name, value)| (value, camel_case(name.trim_start_matches("REQ_OP_"))));
        let bits: HashMap<String, u32> = members(&["req_flag_bits"]).into_iter().collect();
        let flags = FLAGS.iter().filter_map(|(name, shown)| Some((1u32.checked_shl(*bits.get(*name)?)?, *shown)));
        Ok(Self { operations: operations.collect(), flags: flags.collect() })
    }

    /// The bits of a command that [`Commands::describe`] names.
    pub fn mask(&self) -> u32 {
        self.flags.iter().fold(OP_MASK, |mask, (bit, _)| mask | bit)
    }

    /// The letters of blktrace: `R`, `WS`, `FF`. An `F` in front is a flush before it, one behind that the medium must have
    /// it; then `A` for readahead, `S` for synchronous, `M` for metadata.
    pub fn letters(&self, command: u32) -> String {
        let has = |wanted: &str| self.flags.iter().any(|(bit, name)| *name == wanted && command & bit != 0);
        let mut letters = String::new();
        let mut push = |letter: &str, wanted: bool| letters.push_str(if wanted { letter } else { "" });
        push("F", has("PreFlush"));
        push(operation(command), true);
        for (letter, flag) in [("F", "FUA"), ("A", "ReadAhead"), ("S", "Sync"), ("M", "Metadata")] {
            push(letter, has(flag));
        }
        letters
    }

    /// Flags and operation, such as `Sync-Read`.
    pub fn describe(&self, command: u32) -> String {
        let flags = self.flags.iter().filter(|(bit, _)| command & bit != 0).map(|(_, name)| *name);
        let operation = self.operations.get(&(command & OP_MASK)).map_or("Unknown", String::as_str);
        flags.chain([operation]).collect::<Vec<_>>().join("-")
    }
}

/// The letter of an operation of `enum req_op`, include/linux/blk_types.h; `N` is a command of a driver.
pub fn operation(command: u32) -> &'static str {
    match command & OP_MASK {
        0 => "R",
        1 | 9 => "W",
        2 => "F",
        3 | 5 => "D",
        32.. => "N",
        _ => "Z",
    }
}

/// `WRITE_ZEROES` to `WriteZeroes`.
fn camel_case(name: &str) -> String {
    let word = |word: &str| word[..1].to_owned() + &word[1..].to_lowercase();
    name.split('_').filter(|part| !part.is_empty() && part.is_ascii()).map(word).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::damaged_text;

    proptest! {
        #[test]
        fn any_number_of_a_disk_is_read(text in damaged_text(&[b"8:16\n", b"4095:1048575\n", b"254:0"])) {
            if let Some(disk) = parse_numbers(&text) {
                let numbers: Vec<u32> = text.trim_end().split(':').map(|number| number.parse().unwrap()).collect();
                prop_assert_eq!(numbers, [disk.major(), disk.minor()]);
            }
        }

        #[test]
        fn any_name_of_an_operation_is_written(name in damaged_text(&[b"WRITE_ZEROES", b"READ", b"_A__B"]), command: u32) {
            let name = camel_case(&name);
            prop_assert!(name.is_ascii() && !name.contains('_'));
            let commands = Commands { operations: HashMap::from([(command & OP_MASK, name.clone())]), flags: vec![] };
            prop_assert_eq!(commands.describe(command), name);
        }

        #[test]
        fn any_tags_are_counted(tags: u64, scheduled: u64) {
            let sys = sysfs();
            fs::write(sys.path().join("devices/sda/mq/0/nr_tags"), tags.to_string()).unwrap();
            fs::write(sys.path().join("devices/sda/queue/nr_requests"), scheduled.to_string()).unwrap();
            prop_assert!(requests(sys.path()) >= tags);
        }
    }

    /// A sysfs of one disk with a partition, and one without requests.
    fn sysfs() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("devices/sda/dev", "8:16\n");
        write("devices/sda/queue/nr_requests", "64\n");
        write("devices/sda/mq/0/nr_tags", "32\n");
        write("devices/sda/mq/1/nr_tags", "32\n");
        write("devices/sda/sda1/dev", "8:17\n");
        write("devices/sda/sda1/partition", "1\n");
        write("devices/zram0/dev", "254:0\n");
        for (link, to) in [
            ("class/block/sda", "devices/sda"),
            ("class/block/sda1", "devices/sda/sda1"),
            ("class/block/zram0", "devices/zram0"),
            ("block/sda", "devices/sda"),
            ("block/zram0", "devices/zram0"),
        ] {
            let link = sys.path().join(link);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(sys.path().join(to), link).unwrap();
        }
        sys
    }

    #[test]
    fn partitions_lead_to_their_disk() {
        let sys = sysfs();
        let disk = find_below(sys.path(), "sda").unwrap();
        assert_eq!((disk.disk.major(), disk.disk.minor(), disk.remark), (8, 16, None));
        let partition = find_below(sys.path(), "/dev/sda1").unwrap();
        assert_eq!(partition.disk, disk.disk);
        assert_eq!(partition.remark.unwrap(), "sda1 is a partition: showing its disk, sda");
    }

    #[test]
    fn what_is_not_a_disk_is_refused() {
        let sys = sysfs();
        let refused = |name: &str| find_below(sys.path(), name).unwrap_err().to_string();
        assert_eq!(refused("sdb"), "no such disk: sdb (there are sda, zram0)");
        assert!(refused("..").starts_with("no such disk"));
        assert!(refused("").starts_with("no such disk"));
        assert!(refused("zram0").contains("no request queue"));
    }

    #[test]
    fn requests_of_all_pools_are_counted() {
        assert_eq!(requests(sysfs().path()), 2 * (32 + 64 + 1));
    }

    #[test]
    fn commands_read_as_in_bcc() {
        let commands = Commands {
            operations: HashMap::from([(0, "Read".into()), (9, camel_case("WRITE_ZEROES"))]),
            flags: vec![(1 << 13, "Priority"), (1 << 11, "Sync")],
        };
        assert_eq!(commands.describe(1 << 11), "Sync-Read");
        assert_eq!(commands.describe(1 << 13 | 1 << 11 | 9), "Priority-Sync-WriteZeroes");
        assert_eq!(commands.describe(77), "Unknown");
        assert_eq!(commands.mask(), 0x28ff);
    }
}
