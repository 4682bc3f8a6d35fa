//! Windows copied for AMX tiles, once for all taps: what a tap sees from a tile of neighbouring results then lies at one
//! distance. How much is copied for how many results is what matters: a patch of 8 lines by 32 results sees 1.3 pixels
//! for each of them, half a line of 512 three.

use super::Windows;
use crate::cpu::amx;
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

impl<T: Element> Windows<'_, T> {
    /// Numbers of 32 bits are split: a pixel's first parts lie before its second.
    const PARTS: usize = size_of::<T>() / size_of::<bf16>();

    /// Units of a pixel, all parts together.
    fn pixel_units(&self) -> usize {
        self.stored[2] / 2 * Self::PARTS
    }

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
        let across = match self.way() {
            Way::Patches => self.patches(rows, staged),
            Way::Parts => self.parts(rows, staged),
            Way::Lines => self.lines(rows, staged),
            Way::Gather => return false,
        };
        let (unit, [kh, kw]) = (self.pixel_units(), self.kernel);
        staged.low = unit / Self::PARTS;
        staged.steps.clear();
        for tap in 0..kh * kw {
            let at = (tap / kw * across + tap % kw) * unit;
            staged.steps.extend((0..staged.low).step_by(amx::STEP).map(|step| 4 * (at + step)));
        }
        staged.row = self.options.stride * unit;
        true
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

    /// Copies `lines` lines of the padded picture from (y, x) on, `across` pixels each, to `at` in the staged memory.
    fn copy_lines(
        &self,
        picture: usize,
        [y, x]: [usize; 2],
        [lines, across]: [usize; 2],
        at: usize,
        staged: &mut Staged,
    ) {
        let (c, unit) = (self.stored[2], self.pixel_units());
        let memory = &mut staged.memory.get(at + lines * across * unit)[at..];
        for (i, out) in memory.chunks_exact_mut(across * unit).enumerate() {
            let line = if Self::PARTS == 1 { &mut *out } else { staged.line.get(across * unit) };
            // SAFETY: the line is `across * c` elements of T, aligned for it.
            let pixels = unsafe { std::slice::from_raw_parts_mut(line.as_mut_ptr().cast::<T>(), across * c) };
            self.line(picture, y + i, x, pixels);
            if Self::PARTS == 1 {
                continue;
            }
            for (pixel, out) in pixels.chunks_exact(c).zip(out.chunks_exact_mut(unit)) {
                let to = Places { first: out.as_mut_ptr(), step: amx::STEP, low: unit / 2 };
                // SAFETY: T is f32; a pixel has whole steps, and places for both parts.
                unsafe { split(pixel.as_ptr().cast(), c / NUMBERS, to) };
            }
        }
    }

    /// Stages patches; all of these functions return the pixels of a line of what they staged.
    fn patches(&self, rows: Range<usize>, staged: &mut Staged) -> usize {
        let ([oh, ow], stride, [kh, kw]) = (self.out, self.options.stride, self.kernel);
        let unit = self.pixel_units();
        let seen = [(PATCH[0] - 1) * stride + kh, (PATCH[1] - 1) * stride + kw];
        let size: usize = PATCH.iter().product();
        let (down, side) = (oh / PATCH[0], ow / PATCH[1]);
        for patch in rows.start / size..rows.end / size {
            let (picture, y, x) = (patch / (down * side), patch / side % down * PATCH[0], patch % side * PATCH[1]);
            let base = (patch - rows.start / size) * seen[0] * seen[1] * unit;
            self.copy_lines(picture, [y * stride, x * stride], seen, base, staged);
            for line in 0..PATCH[0] {
                let at = base + line * stride * seen[1] * unit;
                staged.tiles.extend([at, at + TILE * stride * unit]);
                staged.runs.push(Run { from: 0, row: (picture * oh + y + line) * ow + x, rows: PATCH[1] });
                staged.ends.push(staged.runs.len());
            }
        }
        seen[1]
    }

    fn lines(&self, rows: Range<usize>, staged: &mut Staged) -> usize {
        let ([oh, ow], [kh, kw]) = (self.out, self.kernel);
        let unit = self.pixel_units();
        // Of each line as many results more are computed as are needed to be at the next.
        let across = ow + kw - 1;
        let (mut at, mut line, end) = (0, rows.start / ow, rows.end / ow);
        while line < end {
            let (picture, y) = (line / oh, line % oh);
            let lines = (end - line).min(oh - y);
            let positions = lines * across;
            // The last tile may look beyond the last line.
            self.copy_lines(picture, [y, 0], [lines + kh, across], at, staged);
            for group in (0..positions).step_by(2 * TILE) {
                staged.tiles.extend([at + group * unit, at + (group + TILE) * unit]);
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
            at += ((lines + kh) * across + 2 * TILE) * unit;
            line += lines;
        }
        // What the last tile reads lies in memory.
        staged.memory.get(at);
        across
    }

    fn parts(&self, rows: Range<usize>, staged: &mut Staged) -> usize {
        let (first, count) = (rows.start, rows.len());
        let ([oh, ow], [kh, kw], stride) = (self.out, self.kernel, self.options.stride);
        let unit = self.pixel_units();
        // A part of one line of results, or some whole lines.
        let lines = first / ow..(first + count).div_ceil(ow);
        let (left, wide) = if lines.len() == 1 { (first % ow, count) } else { (0, ow) };
        let across = (wide - 1) * stride + kw;
        let line_units = across * unit;
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
            let (from, at) = ([fresh.start, left * stride], seen_lines * line_units);
            self.copy_lines(picture, from, [fresh.len(), across], at, staged);
            seen_lines = begin + kh;
            last = Some((picture, y + kh));
            at_line.push(begin);
        }
        for row in (first..first + count).step_by(TILE) {
            let line = at_line[row / ow - lines.start];
            staged.tiles.push(line * line_units + (row % ow - left) * stride * unit);
        }
        for group in (first..first + count).step_by(2 * TILE) {
            staged.runs.push(Run { from: 0, row: group, rows: (2 * TILE).min(first + count - group) });
            staged.ends.push(staged.runs.len());
        }
        across
    }
}
