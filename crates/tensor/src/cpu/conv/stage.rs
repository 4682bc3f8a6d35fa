//! Windows copied for AMX tiles, once for all taps. A step of channels of all pixels lies together, pixel after pixel, a line
//! of the cache each: what a tap sees from a tile of neighbouring results is then one piece, which shares all but one of its
//! lines with what the next tap sees, and no two of them a place in a cache. How much is copied for how many results is what
//! matters: a patch of 8 lines by 32 results sees 1.3 pixels for each of them, half a line of 512 three.

use super::Windows;
use crate::cpu::amx::STEP;
use crate::cpu::split::{NUMBERS, Places, split};
use crate::cpu::tiles::{ROW_BLOCK, Run, Staged, TILE};
use crate::tensor::Element;
use half::bf16;
use std::ops::Range;

/// Lines and results across of a patch: a task.
const PATCH: [usize; 2] = [ROW_BLOCK / (2 * TILE), 2 * TILE];

/// How windows are staged.
#[derive(PartialEq)]
enum Way {
    /// Patches.
    Patches,
    /// Parts of lines or whole lines, in whole tiles.
    Parts,
    /// Whole lines, where tiles go on from one to the next.
    Lines,
    /// Not at all.
    Gather,
}

/// Lines of a padded picture from (y, x) on, which are copied to pixel `at` and those behind it.
struct Part {
    picture: usize,
    from: [usize; 2],
    lines: usize,
    across: usize,
    at: usize,
}

/// What is copied, and how many pixels there are room for.
#[derive(Default)]
struct Plan {
    parts: Vec<Part>,
    /// Pixels of a line.
    across: usize,
    pixels: usize,
}

impl<T: Element> Windows<'_, T> {
    /// Numbers of 32 bits are split: a pixel's first parts lie before its second.
    const PARTS: usize = size_of::<T>() / size_of::<bf16>();

    /// As [`Rows::task_rows`](crate::cpu::rows::Rows::task_rows).
    pub(super) fn staged_rows(&self) -> usize {
        let [oh, ow] = self.out;
        match self.way() {
            Way::Lines => (ROW_BLOCK / ow).clamp(1, oh) * ow,
            _ => ROW_BLOCK,
        }
    }

    /// As [`Rows::stage`](crate::cpu::rows::Rows::stage).
    pub(super) fn stage_rows(&self, rows: Range<usize>, staged: &mut Staged) -> bool {
        staged.tiles.clear();
        staged.runs.clear();
        staged.ends.clear();
        let plan = match self.way() {
            Way::Patches => self.patches(rows, staged),
            Way::Parts => self.parts(rows, staged),
            Way::Lines => self.lines(rows, staged),
            Way::Gather => return false,
        };
        let [kh, kw] = self.kernel;
        // From a step's pixels to the next one's, of each part of the numbers.
        let plane = plan.pixels * STEP;
        staged.low = plane;
        staged.steps.clear();
        for step in 0..self.stored[2] / NUMBERS {
            let taps = (0..kh * kw).map(|tap| tap / kw * plan.across + tap % kw);
            staged.steps.extend(taps.map(|pixel| 4 * (step * Self::PARTS * plane + pixel * STEP)));
        }
        staged.row = self.options.stride * STEP;
        let memory = staged.memory.get(self.stored[2] / NUMBERS * Self::PARTS * plane);
        plan.parts.iter().for_each(|part| self.copy_part(part, plane, memory));
        true
    }

    fn copy_part(&self, part: &Part, plane: usize, memory: &mut [u32]) {
        let [y, x] = part.from;
        let pixels = (0..part.lines).flat_map(|line| (0..part.across).map(move |i| [y + line, x + i]));
        for (i, [y, x]) in pixels.enumerate() {
            let at = (part.at + i) * STEP;
            let Some(pixel) = self.pixel(part.picture, y, x) else {
                for plane in memory.chunks_exact_mut(plane) {
                    plane[at..][..STEP].fill(0);
                }
                continue;
            };
            if Self::PARTS > 1 {
                let steps = self.stored[2] / NUMBERS;
                let to = &mut memory[at..][..(2 * steps - 1) * plane + STEP];
                let to = Places { first: to.as_mut_ptr(), step: 2 * plane, low: plane };
                // SAFETY: T is f32; a pixel has whole steps, and places for both parts.
                unsafe { split::<2>(pixel.as_ptr().cast(), steps, to) };
                continue;
            }
            if let Some(gains) = self.gains {
                let to = &mut memory[at..][..(self.stored[2] / NUMBERS - 1) * plane + STEP];
                // SAFETY: gains are of these pictures and made where that is possible; there are places for all lines.
                unsafe { gains.apply(part.picture, pixel, to.as_mut_ptr().cast::<T>(), 2 * plane) };
                continue;
            }
            for (plane, from) in memory.chunks_exact_mut(plane).zip(pixel.chunks_exact(NUMBERS)) {
                let to = plane[at..][..STEP].as_mut_ptr().cast::<T>();
                // SAFETY: as many numbers of 16 bits fill a step.
                unsafe { to.copy_from_nonoverlapping(from.as_ptr(), NUMBERS) };
            }
        }
    }

    fn way(&self) -> Way {
        let [oh, ow] = self.out;
        if !self.stored[2].is_multiple_of(NUMBERS) {
            return Way::Gather;
        }
        if oh.is_multiple_of(PATCH[0]) && ow.is_multiple_of(PATCH[1]) {
            return Way::Patches;
        }
        match (ow.is_multiple_of(TILE), self.options.stride) {
            (true, _) => Way::Parts,
            (_, 1) => Way::Lines,
            _ => Way::Gather,
        }
    }

    fn patches(&self, rows: Range<usize>, staged: &mut Staged) -> Plan {
        let ([oh, ow], stride, [kh, kw]) = (self.out, self.options.stride, self.kernel);
        let seen = [(PATCH[0] - 1) * stride + kh, (PATCH[1] - 1) * stride + kw];
        let size: usize = PATCH.iter().product();
        let (down, side) = (oh / PATCH[0], ow / PATCH[1]);
        let mut plan = Plan { across: seen[1], ..Plan::default() };
        for patch in rows.start / size..rows.end / size {
            let (picture, y, x) = (patch / (down * side), patch / side % down * PATCH[0], patch % side * PATCH[1]);
            let (from, at) = ([y * stride, x * stride], plan.pixels);
            plan.parts.push(Part { picture, from, lines: seen[0], across: seen[1], at });
            plan.pixels += seen[0] * seen[1];
            for line in 0..PATCH[0] {
                let at = at + line * stride * seen[1];
                staged.tiles.extend([at, at + TILE * stride].map(|pixel| pixel * STEP));
                staged.runs.push(Run { from: 0, row: (picture * oh + y + line) * ow + x, rows: PATCH[1] });
                staged.ends.push(staged.runs.len());
            }
        }
        plan
    }

    fn lines(&self, rows: Range<usize>, staged: &mut Staged) -> Plan {
        let ([oh, ow], [kh, kw]) = (self.out, self.kernel);
        // Of each line as many results more are computed as are needed to be at the next.
        let across = ow + kw - 1;
        let mut plan = Plan { across, ..Plan::default() };
        let (mut line, end) = (rows.start / ow, rows.end / ow);
        while line < end {
            let (picture, y) = (line / oh, line % oh);
            let lines = (end - line).min(oh - y);
            let positions = lines * across;
            // The last tile may look beyond the last line.
            let at = plan.pixels;
            plan.parts.push(Part { picture, from: [y, 0], lines: lines + kh, across, at });
            for group in (0..positions).step_by(2 * TILE) {
                staged.tiles.extend([at + group, at + group + TILE].map(|pixel| pixel * STEP));
                let mut position = group;
                while position < positions.min(group + 2 * TILE) {
                    let (l, x) = (position / across, position % across);
                    let count = (across - x).min(group + 2 * TILE - position);
                    if x < ow {
                        let rows = (ow - x).min(count);
                        staged.runs.push(Run { from: position - group, row: (picture * oh + y + l) * ow + x, rows });
                    }
                    position += count;
                }
                staged.ends.push(staged.runs.len());
            }
            // What the last tile reads lies in memory.
            plan.pixels += (lines + kh) * across + 2 * TILE;
            line += lines;
        }
        plan
    }

    fn parts(&self, rows: Range<usize>, staged: &mut Staged) -> Plan {
        let (first, count) = (rows.start, rows.len());
        let ([oh, ow], [kh, kw], stride) = (self.out, self.kernel, self.options.stride);
        // A part of one line of results, or some whole lines.
        let lines = first / ow..(first + count).div_ceil(ow);
        let (left, wide) = if lines.len() == 1 { (first % ow, count) } else { (0, ow) };
        let across = (wide - 1) * stride + kw;
        let mut plan = Plan { across, ..Plan::default() };
        let mut seen_lines = 0;
        let mut at_line = Vec::new();
        let mut last = None;
        for line in lines.clone() {
            let (picture, y) = (line / oh, line % oh * stride);
            // Where the line before it was of the same picture, some of what this one sees is there.
            let fresh = match last {
                Some((p, end)) if p == picture => y.max(end)..y + kh,
                _ => y..y + kh,
            };
            let begin = seen_lines + fresh.len() - kh;
            let (from, at) = ([fresh.start, left * stride], seen_lines * across);
            plan.parts.push(Part { picture, from, lines: fresh.len(), across, at });
            seen_lines = begin + kh;
            last = Some((picture, y + kh));
            at_line.push(begin);
        }
        for row in (first..first + count).step_by(TILE) {
            let line = at_line[row / ow - lines.start];
            staged.tiles.push((line * across + (row % ow - left) * stride) * STEP);
        }
        for group in (first..first + count).step_by(2 * TILE) {
            staged.runs.push(Run { from: 0, row: group, rows: (2 * TILE).min(first + count - group) });
            staged.ends.push(staged.runs.len());
        }
        plan.pixels = seen_lines * across;
        plan
    }
}
