//! The engine that runs every tool: attach, wait for whatever comes first, stop at once, drain, report what was lost.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::Skel;
use libbpf_rs::{Link, Map, MapCore, MapType, PerfBuffer, PerfBufferBuilder, ProgramMut};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::child::Child;
use crate::cli::Step;
use crate::fault::{Done, unsupported};
use crate::load::{Chosen, Loaded};
use crate::lost::Lost;
use crate::memory;
use crate::out::Out;
use crate::privilege::{self, Capability};
use crate::progress::{self, Progress, Tally};
use crate::ring::Ring;
use crate::typed;

/// How long events may wait in the buffer: at the beginning, while they come, and while none do.
const DRAIN_FIRST: u16 = 2;
const DRAIN_BUSY: u16 = 10;
const DRAIN_IDLE: u16 = 40;

/// When to report and when to end.
#[derive(Debug)]
pub struct Run {
    /// Time between reports.
    pub interval: Option<Duration>,
    /// End after this many reports.
    pub count: Option<u64>,
    /// End after this time.
    pub duration: Option<Duration>,
    /// Report at the end what came since the last report.
    pub report: bool,
    /// What the tool goes on to need once it is attached; all else is given up. Nothing is given up for `None`.
    pub keeps: Option<&'static [Capability]>,
}

impl Default for Run {
    fn default() -> Self {
        Self { interval: None, count: None, duration: None, report: false, keeps: Some(&[]) }
    }
}

/// What a tool does with what it traces.
pub trait Report {
    /// Where its output goes.
    fn out(&mut self) -> &mut Out;

    /// Everything is attached.
    ///
    /// # Errors
    /// Whatever the tool cannot go on from.
    fn started(&mut self) -> Result<()> {
        Ok(())
    }

    /// Tracing has begun, and nothing is to be done yet but what makes the end come faster.
    fn idle(&mut self) {}

    /// One record of the `events` stream. It may be unaligned and longer than what was sent: use [`decode`].
    ///
    /// # Errors
    /// Whatever the tool cannot go on from.
    fn event(&mut self, _record: &[u8]) -> Result<()> {
        Ok(())
    }

    /// Everything is detached and reported.
    ///
    /// # Errors
    /// Whatever keeps the tool from saying what remains to be said.
    fn ended(&mut self) -> Result<()> {
        Ok(())
    }

    /// What to tell on a terminal while the tool works, a few times a second; nothing unless it is cheap to know.
    fn tally(&self) -> Option<Tally> {
        None
    }

    /// An interval has passed, or the tool is about to end.
    ///
    /// # Errors
    /// Whatever the tool cannot go on from.
    fn interval(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The fixed part of a record and the bytes that follow it, or `None` when the record is too short.
///
/// Copies, because samples of a perf buffer are not aligned.
pub fn decode<T: plain::Plain + Default>(record: &[u8]) -> Option<(T, &[u8])> {
    let mut event = T::default();
    plain::copy_from_bytes(&mut event, record).ok()?;
    Some((event, &record[size_of::<T>()..]))
}

/// What ended a wait. Of several at once, the first of these counts and the others stay ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wake {
    Closed,
    Signal,
    Interval,
    Deadline,
    Until,
    Events,
    Progress,
    Timeout,
}

const WAKES: [Wake; 7] =
    [Wake::Closed, Wake::Signal, Wake::Interval, Wake::Deadline, Wake::Until, Wake::Progress, Wake::Events];

enum Stream<'a> {
    Ring(Ring<'a>),
    Perf(PerfBuffer<'a>),
}

impl Stream<'_> {
    /// What becomes readable when the kernel wakes the reader.
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ring(ring) => ring.fd(),
            // SAFETY: the buffer owns this descriptor.
            Self::Perf(buffer) => unsafe { BorrowedFd::borrow_raw(buffer.epoll_fd()) },
        }
    }
}

/// The tool's side of the stream, shared by the callback and the loop.
struct Sink<'a> {
    report: &'a mut dyn Report,
    /// What ended a callback that cannot say so itself.
    error: Option<anyhow::Error>,
    events: u64,
}

impl Sink<'_> {
    fn event(&mut self, record: &[u8]) -> Result<()> {
        self.events += 1;
        self.report.event(record)
    }
}

impl<'obj, S: Skel<'obj>> Loaded<S> {
    /// Attach one program to what was chosen for it.
    ///
    /// # Errors
    /// Unsupported, naming the hook, when the kernel refuses.
    fn attach(&self, program: &ProgramMut<'_>, Chosen { rung, target, .. }: &Chosen) -> Result<Link> {
        let link = match rung.as_str() {
            "kprobe" | "kretprobe" => program.attach_kprobe(rung == "kretprobe", target),
            _ if typed::is_typed(rung) => program.attach_trace(),
            _ => program.attach(),
        };
        link.map_err(|error| unsupported(format!("the kernel refuses the hook {rung}/{target}: {error}")))
    }

    /// Attach every chosen program that has rungs; programs without are their tool's to attach.
    ///
    /// # Errors
    /// Unsupported, naming the hook that the kernel refuses; those attached before are detached again.
    pub fn attach_hooks(&self) -> Result<Vec<Link>> {
        let chosen = |program: &ProgramMut<'_>| {
            let name = program.name().to_str()?;
            let index = self.programs.iter().position(|chosen| chosen == name && name.contains("__"))?;
            self.plan.hooks.get(index)
        };
        let programs = self.skel.object().progs_mut();
        programs.filter_map(|program| chosen(&program).map(|chosen| self.attach(&program, chosen))).collect()
    }

    /// Attach and run until the end that `run` names, a signal, or until nobody reads the output.
    ///
    /// # Errors
    /// A hook that is refused, or what `report` returns.
    pub fn run(&self, run: &Run, report: &mut dyn Report) -> Result<()> {
        self.run_with(run, report, None, |_| Ok(Vec::new()))
    }

    /// The same for a tool that attaches programs of its own (after the others, samplers last) in `attach`, and that
    /// may end when `until` (a pidfd) becomes readable.
    ///
    /// # Errors
    /// A hook that is refused, or what `report` or `attach` return.
    pub fn run_with(
        &self,
        run: &Run,
        report: &mut dyn Report,
        until: Option<BorrowedFd<'_>>,
        attach: impl FnOnce(&S) -> Result<Vec<Link>>,
    ) -> Result<()> {
        if self.tool.plan == Some(Step::Load) {
            return self.print_plan();
        }
        let signals = block_signals()?;
        let sink = RefCell::new(Sink { report, error: None, events: 0 });
        let events = self.skel.object().maps().find(|map| map.name() == "events" && is_stream(map));
        if events.is_some() {
            memory::give_back();
        }
        let mut stream = events.as_ref().map(|map| self.stream(map, &sink)).transpose()?;
        let mut child = self.target.borrow_mut().child.take();
        let until = until.map(|until| until.try_clone_to_owned()).transpose().context("cannot wait for the process")?;
        let until = match &child {
            Some(child) => Some(child.pidfd().try_clone_to_owned().context("cannot wait for the command")?),
            None => until,
        };
        let waiter = Waiter::new(&signals, run, stream.as_ref(), until.as_ref().map(AsFd::as_fd))?;

        let mut links = self.attach_hooks()?;
        self.target.borrow().adopt(self.skel.object())?;
        links.extend(attach(&self.skel)?);
        sink.borrow_mut().report.started()?;
        sink.borrow_mut().report.out().flush()?;
        if self.tool.plan.is_some() {
            return self.print_plan();
        }
        if let Some(keeps) = run.keeps {
            // Names of containers lie in the homes of whoever runs them.
            let names = self.subjects.as_ref().map(|_| privilege::DAC_READ_SEARCH);
            privilege::keep(&keeps.iter().copied().chain(names).collect::<Vec<_>>())?;
        }
        self.tell_ready()?;
        if stream.is_some() {
            memory::give_back();
        }
        if let Some(child) = &mut child {
            child.release()?;
        }
        let mut progress = sink.borrow().report.tally().and_then(|_| Progress::begin());
        waiter.arm(run, progress.is_some())?;
        sink.borrow_mut().report.idle();

        let mut reports = 0;
        let mut timeout = stream.as_ref().map(|_| DRAIN_FIRST);
        loop {
            let wake = waiter.wait(timeout)?;
            if let Some(stream) = &mut stream {
                let before = sink.borrow().events;
                let more = drain(stream, &sink)?;
                let some = sink.borrow().events > before;
                timeout = Some(if more {
                    0
                } else if some {
                    DRAIN_BUSY
                } else {
                    DRAIN_IDLE
                });
            }
            match wake {
                Wake::Timeout | Wake::Events => continue,
                Wake::Progress => {
                    if let (Some(progress), Some(tally)) = (&mut progress, sink.borrow().report.tally()) {
                        progress.draw(tally, &Lost::read(self.skel.object()));
                    }
                }
                Wake::Interval => {
                    progress.as_mut().map(Progress::clear);
                    sink.borrow_mut().report.interval()?;
                    sink.borrow_mut().report.out().flush()?;
                    reports += 1;
                    if run.count == Some(reports) {
                        break;
                    }
                }
                Wake::Closed => return Ok(()),
                Wake::Signal if pass_on(&signals, &mut child) => continue,
                Wake::Signal | Wake::Deadline | Wake::Until => break,
            }
        }
        hurry();
        drop(progress);
        drop(links);
        if let Some(stream) = &mut stream {
            drain(stream, &sink)?;
        }
        let mut sink = sink.borrow_mut();
        if run.report && run.count != Some(reports) {
            sink.report.interval()?;
        }
        sink.report.ended()?;
        sink.report.out().lost(&Lost::read(self.skel.object()));
        sink.report.out().flush()
    }

    fn stream<'a>(&self, map: &'a Map<'_>, sink: &'a RefCell<Sink<'_>>) -> Result<Stream<'a>> {
        if self.perf {
            let pages = (self.tool.buffer as usize >> 2).clamp(1, 256);
            let buffer = PerfBufferBuilder::new(map)
                .pages(pages)
                .sample_cb(|_, record| {
                    let mut sink = sink.borrow_mut();
                    if sink.error.is_none() {
                        sink.error = sink.event(record).err();
                    }
                })
                .build()
                .context("cannot make the event buffer")?;
            return Ok(Stream::Perf(buffer));
        }
        Ok(Stream::Ring(Ring::of(map)?))
    }

    /// Say what was chosen, and end the tool.
    fn print_plan(&self) -> Result<()> {
        writeln!(io::stdout(), "{}", serde_json::to_string(&self.plan)?).context("cannot write the plan")?;
        Err(Done.into())
    }

    fn tell_ready(&self) -> Result<()> {
        if let Some(fd) = self.tool.ready_fd {
            // SAFETY: the caller of the tool handed this descriptor over; it is closed after the line.
            let mut pipe = unsafe { File::from_raw_fd(fd) };
            pipe.write_all(b"ready\n").context("cannot write to --ready-fd")?;
        }
        Ok(())
    }
}

/// Pass a signal on to the command that is traced, whose end is then that of the tool; false where there is none, or it
/// was told before. What the terminal sends it sends to both.
fn pass_on(signals: &SignalFd, child: &mut Option<Child>) -> bool {
    let Some(running) = child else { return false };
    let Ok(Some(info)) = signals.read_signal() else { return false };
    if running.was_told() {
        // Dropped, it is ended.
        return false;
    }
    match Signal::try_from(info.ssi_signo as i32) {
        Ok(signal) => running.tell(signal, info.ssi_code == libc::SI_KERNEL),
        Err(_) => return false,
    }
    true
}

fn is_stream(map: &Map<'_>) -> bool {
    matches!(map.map_type(), MapType::RingBuf | MapType::PerfEventArray)
}

/// Hand on what there is; whether more has come meanwhile.
fn drain(stream: &mut Stream<'_>, sink: &RefCell<Sink<'_>>) -> Result<bool> {
    let more = match stream {
        Stream::Ring(ring) => ring.drain(|record| sink.borrow_mut().event(record))?,
        Stream::Perf(buffer) => {
            buffer.consume().map_err(|error| anyhow!("cannot read the event buffer: {error}"))?;
            false
        }
    };
    let mut sink = sink.borrow_mut();
    if let Some(error) = sink.error.take() {
        return Err(error);
    }
    sink.report.out().flush()?;
    Ok(more)
}

/// Go before others, for the little that remains to be done once tracing has ended: where programs that never rest keep
/// all CPUs, a report that takes 80 ms of work would otherwise take half a second. Whoever made the tool less urgent
/// than the usual, or may not make it more, is left alone.
fn hurry() {
    // SAFETY: these calls only read and set a number of the calling thread.
    unsafe {
        if libc::getpriority(libc::PRIO_PROCESS, 0) == 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, -10);
        }
    }
}

/// Take SIGINT, SIGTERM and SIGHUP as events from now on.
fn block_signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("cannot take signals")
}

/// One epoll over all that a tool waits for.
struct Waiter {
    epoll: Epoll,
    interval: TimerFd,
    deadline: TimerFd,
    progress: TimerFd,
}

impl Waiter {
    fn new(signals: &SignalFd, run: &Run, stream: Option<&Stream<'_>>, until: Option<BorrowedFd<'_>>) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
        let timer = || TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK);
        let timer = || timer().context("cannot make a timer");
        let (interval, deadline, progress) = (timer()?, timer()?, timer()?);
        let add =
            |fd: BorrowedFd<'_>, flags: EpollFlags, wake: Wake| epoll.add(fd, EpollEvent::new(flags, wake as u64));
        if let Some(stream) = stream {
            // Edge-triggered: the drain that follows empties the buffer, whatever state the descriptor is left in.
            add(stream.fd(), EpollFlags::EPOLLIN | EpollFlags::EPOLLET, Wake::Events)
                .context("cannot wait for events")?;
        }
        add(signals.as_fd(), EpollFlags::EPOLLIN, Wake::Signal).context("cannot wait for signals")?;
        if run.interval.is_some() {
            add(interval.as_fd(), EpollFlags::EPOLLIN, Wake::Interval).context("cannot wait for a timer")?;
        }
        if run.duration.is_some() {
            add(deadline.as_fd(), EpollFlags::EPOLLIN, Wake::Deadline).context("cannot wait for a timer")?;
        }
        add(progress.as_fd(), EpollFlags::EPOLLIN, Wake::Progress).context("cannot wait for a timer")?;
        // With no flags set, only an error is told: that the reader of a pipe has gone. A file is refused, and cannot go.
        let _ = add(io::stdout().as_fd(), EpollFlags::empty(), Wake::Closed);
        if let Some(fd) = until {
            add(fd, EpollFlags::EPOLLIN, Wake::Until).context("cannot wait for the process")?;
        }
        Ok(Self { epoll, interval, deadline, progress })
    }

    /// Start the timers: time counts from when everything was attached.
    fn arm(&self, run: &Run, shows_progress: bool) -> Result<()> {
        if shows_progress {
            let every = Expiration::Interval(TimeSpec::from_duration(progress::EVERY));
            self.progress.set(every, TimerSetTimeFlags::empty()).context("cannot set a timer")?;
        }
        if let Some(interval) = run.interval {
            let every = Expiration::Interval(TimeSpec::from_duration(interval));
            self.interval.set(every, TimerSetTimeFlags::empty()).context("cannot set a timer")?;
        }
        if let Some(duration) = run.duration {
            let once = Expiration::OneShot(TimeSpec::from_duration(duration));
            self.deadline.set(once, TimerSetTimeFlags::empty()).context("cannot set a timer")?;
        }
        Ok(())
    }

    fn wait(&self, timeout_ms: Option<u16>) -> Result<Wake> {
        let mut events = [EpollEvent::empty(); WAKES.len()];
        let timeout = timeout_ms.map_or(EpollTimeout::NONE, EpollTimeout::from);
        let ready = match self.epoll.wait(&mut events, timeout) {
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => return Ok(Wake::Timeout),
            Err(error) => return Err(error).context("cannot wait"),
        };
        let is_ready = |wake: Wake| events[..ready].iter().any(|event| event.data() == wake as u64);
        let wake = WAKES.into_iter().find(|wake| is_ready(*wake)).unwrap_or(Wake::Timeout);
        // How often it expired is not asked: a report that took longer than its interval is followed by one more.
        let rings = match wake {
            Wake::Interval => Some(&self.interval),
            Wake::Progress => Some(&self.progress),
            _ => None,
        };
        if let Some(timer) = rings {
            let _ = nix::unistd::read(timer.as_fd(), &mut [0; 8]);
        }
        Ok(wake)
    }
}
