//! What a download tells its caller while it runs.

use std::ops::ControlFlow;
use std::time::Instant;

use crate::{Error, Result};

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Bytes here, of all files, those that were there before included.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
    /// Bytes a second over about the last ten seconds.
    pub rate: f64,
    /// Seconds left at that rate, once one is known.
    pub seconds_left: Option<f64>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A file is fetched.
    File {
        /// The repository.
        repo: String,
        /// The file's path in it.
        file: String,
        /// Its place among the files to fetch, from 1.
        number: usize,
        /// How many there are.
        of: usize,
        /// Its size.
        bytes: u64,
    },
    /// Bytes arrived.
    Bytes(Progress),
    /// Something worth a sentence: a retry, a mirror, another process at work.
    Note(String),
}

/// Counts bytes and guesses the time left.
pub(crate) struct Meter {
    done: u64,
    total: u64,
    rate: f64,
    last: Instant,
    since_last: u64,
}

/// The rate is averaged over about this many seconds.
const WINDOW: f64 = 10.0;

impl Meter {
    pub(crate) fn new(done: u64, total: u64) -> Meter {
        Meter { done, total, rate: 0.0, last: Instant::now(), since_last: 0 }
    }

    /// Bytes that were here already; a negative number takes back what turned out useless.
    pub(crate) fn here(&mut self, bytes: i64) -> Progress {
        self.done = self.done.saturating_add_signed(bytes);
        self.arrived(0)
    }

    /// Bytes arrived, which tells how fast they do.
    pub(crate) fn arrived(&mut self, bytes: u64) -> Progress {
        self.done = self.done.saturating_add(bytes);
        self.since_last = self.since_last.saturating_add(bytes);
        let passed = self.last.elapsed().as_secs_f64();
        if passed > 0.2 {
            let now = self.since_last as f64 / passed;
            let weight = if self.rate == 0.0 { 1.0 } else { (passed / WINDOW).min(1.0) };
            self.rate += weight * (now - self.rate);
            (self.last, self.since_last) = (Instant::now(), 0);
        }
        let left = self.total.saturating_sub(self.done) as f64;
        let seconds_left = (self.rate > 0.0).then(|| left / self.rate);
        Progress { done: self.done, total: self.total.max(self.done), rate: self.rate, seconds_left }
    }
}

/// The caller's ear, and the count that it hears.
pub(crate) struct Reporter<'a> {
    pub(crate) meter: Meter,
    tell: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
}

impl<'a> Reporter<'a> {
    pub(crate) fn new(meter: Meter, tell: &'a mut dyn FnMut(Event) -> ControlFlow<()>) -> Reporter<'a> {
        Reporter { meter, tell }
    }

    pub(crate) fn say(&mut self, event: Event) -> Result<()> {
        match (self.tell)(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }

    pub(crate) fn note(&mut self, sentence: String) -> Result<()> {
        self.say(Event::Note(sentence))
    }

    pub(crate) fn here(&mut self, bytes: i64) -> Result<()> {
        let progress = self.meter.here(bytes);
        self.say(Event::Bytes(progress))
    }

    pub(crate) fn arrived(&mut self, bytes: u64) -> Result<()> {
        let progress = self.meter.arrived(bytes);
        self.say(Event::Bytes(progress))
    }
}

/// A size as people read it, in powers of ten as disks are sold: `6.9 GB`.
pub fn human(bytes: u64) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.iter().find(|(_, size)| bytes as f64 >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / size),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts() {
        assert_eq!(human(6_938_000_000), "6.9 GB");
        assert_eq!(human(609), "609 bytes");
        let mut meter = Meter::new(10, 100);
        meter.arrived(50);
        let progress = meter.here(-50);
        assert_eq!((progress.done, progress.total), (10, 100));
        assert_eq!(meter.here(-1000).done, 0);
    }
}
