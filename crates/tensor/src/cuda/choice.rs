//! Algorithms that were chosen by measuring, remembered for a card and its libraries, so that later processes neither
//! measure again nor choose, and round, differently.

use super::gpu::Gpu;
use super::kernels::folder;
use crate::Result;
use cudarc::driver::sys;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;

/// What was chosen for each piece of work, by the work's name.
#[derive(Default)]
pub(super) struct Choices {
    /// Open for adding lines; none where none can be added.
    file: Option<File>,
    known: HashMap<String, Vec<u64>>,
}

impl Choices {
    /// What is remembered for this card and library; nothing where there is no folder for it.
    pub(super) fn open(gpu: &Gpu, library: &str) -> Choices {
        let Some(folder) = folder() else { return Choices::default() };
        let card = Sha256::digest(format!("{} {} {library}", gpu.name, gpu.arch));
        let name: String = card.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let path = folder.join(format!("{name}.choices"));
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let made = std::fs::create_dir_all(folder);
        let file = made.and_then(|()| std::fs::OpenOptions::new().append(true).create(true).open(&path));
        Choices { known: text.lines().filter_map(parse).collect(), file: file.ok() }
    }

    /// Whether a choice will be known to the next process. Where it is not, none is made: the same work would round
    /// differently from one process to the next.
    pub(super) fn are_kept(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn get(&self, work: &str) -> Option<&[u64]> {
        self.known.get(work).map(Vec::as_slice)
    }

    /// Remembers a choice; a disk that has become full costs the next process time.
    pub(super) fn put(&mut self, work: String, choice: &[u64]) {
        if let Some(file) = &mut self.file {
            // One write for each line, so that lines of two processes do not mix.
            let _ = file.write_all(line(&work, choice).as_bytes());
        }
        self.known.insert(work, choice.to_vec());
    }
}

fn seal(body: &str) -> String {
    Sha256::digest(body).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The work, the choice's numbers, and a digest of both, since a line may be cut short.
fn line(work: &str, choice: &[u64]) -> String {
    let numbers: Vec<String> = choice.iter().map(|number| format!("{number:x}")).collect();
    let body = format!("{work}\t{}", numbers.join(" "));
    format!("{body}\t{}\n", seal(&body))
}

/// A line's work and choice, if it is whole.
fn parse(line: &str) -> Option<(String, Vec<u64>)> {
    let (body, digest) = line.rsplit_once('\t')?;
    let (work, numbers) = body.split_once('\t')?;
    let numbers = numbers.split(' ').map(|number| u64::from_str_radix(number, 16).ok()).collect::<Option<_>>()?;
    (seal(body) == digest).then(|| (work.to_string(), numbers))
}

/// How much faster a later candidate must be than an earlier one, which is expected to be the better.
const MARGIN: f32 = 0.98;
/// Milliseconds for which a candidate is repeated, about.
const LENGTH: f32 = 0.5;
/// Candidates so much slower than the best are not repeated.
const HOPELESS: f32 = 1.5;

/// Two events between which time is taken, destroyed when dropped.
struct Stopwatch {
    before: sys::CUevent,
    after: sys::CUevent,
}

impl Stopwatch {
    fn new(gpu: &Gpu) -> Result<Stopwatch> {
        let mut made = Stopwatch { before: std::ptr::null_mut(), after: std::ptr::null_mut() };
        for event in [&mut made.before, &mut made.after] {
            // SAFETY: a context is current; the result goes to a place of its type.
            let result = unsafe { sys::cuEventCreate(event, sys::CUevent_flags::CU_EVENT_DEFAULT as u32) };
            gpu.check("measuring", result)?;
        }
        Ok(made)
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        for event in [self.before, self.after].into_iter().filter(|event| !event.is_null()) {
            // SAFETY: made by the driver, destroyed once; nothing waits for it.
            unsafe { sys::cuEventDestroy_v2(event) };
        }
    }
}

impl Gpu {
    /// The fastest of `count` candidates, each of which `run` launches, giving false where it cannot be launched; none
    /// where no candidate can. The work is done again and again on the same operands, so it must not read its result.
    pub(super) fn fastest(&self, count: usize, mut run: impl FnMut(usize) -> bool) -> Result<Option<usize>> {
        let watch = Stopwatch::new(self)?;
        let (before, after) = (watch.before, watch.after);
        let mut time = |candidate: usize, times: usize| -> Result<Option<f32>> {
            let mut ms = 0f32;
            // SAFETY: events and stream are alive.
            unsafe {
                self.check("measuring", sys::cuEventRecord(before, self.stream()))?;
                if !(0..times).all(|_| run(candidate)) {
                    return Ok(None);
                }
                self.check("measuring", sys::cuEventRecord(after, self.stream()))?;
                self.check("measuring", sys::cuEventSynchronize(after))?;
                self.check("measuring", sys::cuEventElapsedTime_v2(&mut ms, before, after))?;
            }
            Ok(Some(ms / times as f32))
        };
        let mut best: Option<(usize, f32)> = None;
        for candidate in 0..count {
            // The first time loads the kernel.
            if time(candidate, 1)?.is_none() {
                continue;
            }
            let Some(rough) = time(candidate, 1)? else { continue };
            if best.is_some_and(|(_, ms)| rough > HOPELESS * ms + 0.01) {
                continue;
            }
            let times = (LENGTH / rough.max(1e-3)).clamp(3.0, 50.0) as usize;
            let Some(first) = time(candidate, times)? else { continue };
            let Some(second) = time(candidate, times)? else { continue };
            let ms = first.min(second);
            if best.is_none_or(|(_, known)| ms < MARGIN * known) {
                best = Some((candidate, ms));
            }
        }
        Ok(best.map(|(candidate, _)| candidate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_choices_are_whole_or_none() {
        let (work, choice) = ("product 2x3 to 4".to_string(), vec![0, 0xff, u64::MAX]);
        let line = line(&work, &choice);
        assert_eq!(parse(line.trim_end()), Some((work, choice)));
        assert!((0..line.len() - 1).all(|end| parse(&line[..end]).is_none()));
    }
}
