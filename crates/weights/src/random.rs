//! Weights out of nothing, for benchmarks: small values that keep activations near their usual size.

use rayon::prelude::*;

use crate::convert::Number;

const PIECE: usize = 1 << 16;

/// The same values for the same seed, name and shape, on any number of threads.
pub(crate) fn fill<T: Number>(seed: u64, name: &str, shape: &[usize], out: &mut [T]) {
    let (centre, spread) = scale(name, shape);
    let key = name.bytes().fold(mix(seed), |key, byte| mix(key ^ byte as u64));
    out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| {
        let mut state = mix(key ^ piece as u64);
        // Four 16-bit draws from each 64-bit state.
        for four in out.chunks_mut(4) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let bits = mix(state);
            for (i, value) in four.iter_mut().enumerate() {
                let unit = (bits >> (16 * i)) as u16 as i16 as f32 * (1.0 / 32768.0);
                *value = T::from_f32(centre + spread * unit);
            }
        }
    });
}

/// Unit variance through a matrix product: uniform within sqrt(3 / fan-in). Norms stay near one.
fn scale(name: &str, shape: &[usize]) -> (f32, f32) {
    if shape.len() >= 2 {
        let fan_in: usize = shape[1..].iter().product();
        return (0.0, (3.0 / fan_in.max(1) as f32).sqrt());
    }
    if name.ends_with("weight") { (1.0, 0.02) } else { (0.0, 0.02) }
}

/// SplitMix64's finaliser.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
