//! One line on a terminal that tells that a tool is at work, redrawn in place.

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use crate::lost::Lost;
use crate::out;

/// How often the line is drawn anew.
pub const EVERY: Duration = Duration::from_millis(250);

/// What a tool can cheaply tell of itself while it works.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Samples taken or intervals measured, where there is a counter of them.
    pub samples: Option<u64>,
    /// Distinct stacks seen.
    pub stacks: usize,
}

impl Tally {
    fn line(&self, elapsed: Duration, lost: &Lost) -> String {
        let samples = self.samples.map_or_else(String::new, |samples| format!("{samples} samples, "));
        let lost = match lost.phrases() {
            phrases if phrases.is_empty() => "nothing lost".to_owned(),
            phrases => format!("lost: {}", phrases.join(", ")),
        };
        format!("{:.1} s, {samples}{} stacks, {lost}", elapsed.as_secs_f64(), self.stacks)
    }
}

/// The line.
pub struct Progress {
    begun: Instant,
    shown: bool,
}

impl Progress {
    /// A line from now on, where there is a terminal to draw it on, and nothing that is piped on to another program
    /// which draws there too.
    pub fn begin() -> Option<Self> {
        let piped = std::fs::metadata("/proc/self/fd/1").is_ok_and(|stdout| stdout.file_type().is_fifo());
        (io::stderr().is_terminal() && !piped).then(|| Self { begun: Instant::now(), shown: false })
    }

    /// Draw it.
    pub fn draw(&mut self, tally: Tally, lost: &Lost) {
        let mut line = tally.line(self.begun.elapsed(), lost);
        // A line that wraps could not be taken back.
        line.truncate(out::columns_of(libc::STDERR_FILENO).unwrap_or(80).saturating_sub(1));
        self.shown = true;
        write(&format!("\r{line}\x1b[K"));
    }

    /// Take it back, before anything else is said.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            write("\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Nobody may be left to see it.
fn write(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_what_is_known() {
        let second = Duration::from_millis(1250);
        let tally = Tally { samples: Some(12), stacks: 3 };
        assert_eq!(tally.line(second, &Lost::default()), "1.2 s, 12 samples, 3 stacks, nothing lost");
        let lost = Lost { stacks: 2, ..Lost::default() };
        let line = Tally { samples: None, ..tally }.line(second, &lost);
        assert_eq!(line, "1.2 s, 3 stacks, lost: 2 stacks (not readable or not storable)");
    }
}
