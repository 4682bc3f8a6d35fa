//! Fixtures and the picture that `reference/faces.py` makes too.
#![allow(dead_code, missing_docs, unreachable_pub)]

use faces::RgbImage;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

/// The first 16 digits of the SHA-256 of the pixels.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

pub fn texture(width: u32, height: u32, seed: u32) -> RgbImage {
    let mut state = seed;
    let mut raw = Vec::with_capacity((width * height * 3) as usize);
    for i in 0..width * height * 3 {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        let (x, y) = ((i / 3) % width, (i / 3) / width);
        raw.push(((x * 3 + y * 2 + (i % 3) * 50) / 2 + (state >> 27)) as u8);
    }
    RgbImage::from_raw(width, height, raw).unwrap()
}

pub fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

pub fn pair(value: &Value) -> (u32, u32) {
    (value[0].as_u64().unwrap() as u32, value[1].as_u64().unwrap() as u32)
}

pub fn keypoints(value: &Value) -> faces::Keypoints {
    let v = floats(value);
    std::array::from_fn(|i| [v[2 * i], v[2 * i + 1]])
}

/// A small generator for mutations, the same on every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below.max(1)
    }

    /// Flips, overwrites, cuts, repeats and inserts bytes.
    pub fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        for _ in 0..1 + self.roll(4) {
            if out.is_empty() {
                break;
            }
            let at = if self.roll(2) == 0 { self.roll(out.len()) } else { self.roll(out.len().min(400)) };
            match self.roll(7) {
                0 => out[at] ^= 1 << self.roll(8),
                1 => out[at] = [0, 0xff, 0x7f, 0x80, 1][self.roll(5)],
                2 => out[at] = self.roll(256) as u8,
                3 => out.truncate(at),
                4 => {
                    let end = (at + 4).min(out.len());
                    let value = [0u32, u32::MAX, 0x7fff_ffff, 0x00ff_ffff][self.roll(4)].to_le_bytes();
                    out[at..end].copy_from_slice(&value[..end - at]);
                }
                5 => {
                    let end = (at + 1 + self.roll(64)).min(out.len());
                    let piece = out[at..end].to_vec();
                    let to = self.roll(out.len());
                    out.splice(to..to, piece);
                }
                _ => {
                    let end = (at + 1 + self.roll(16)).min(out.len());
                    out.drain(at..end);
                }
            }
        }
        out
    }
}
