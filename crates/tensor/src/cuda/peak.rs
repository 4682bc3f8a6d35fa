//! How fast a GPU's arithmetic units are, for benchmarks.

use super::gpu::gpu;
use crate::ops::{self, Linear};
use crate::{DType, Device, Result, Tensor};
use std::time::Instant;

/// Rows, depth and columns of the product that is timed.
const SIDE: usize = 8192;

/// FLOP/s of a large matrix product on numbers that are not zeros, which run faster: the best of a few.
pub(crate) fn measure_peak(index: usize, dtype: DType) -> Result<f64> {
    let gpu = gpu(index)?;
    // 64 rows of a fixed sequence, repeated.
    let numbers: Vec<f32> = (0..64 * SIDE as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
        .collect();
    let rows = Tensor::from_f32(&Device::Cuda(index), dtype, &[64, SIDE], &numbers)?;
    let square = ops::repeat_rows(&rows, SIDE / 64)?;
    let layer = Linear::new(&square, None)?;
    layer.forward(&square)?;
    gpu.synchronize()?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let begin = Instant::now();
        for _ in 0..4 {
            layer.forward(&square)?;
        }
        gpu.synchronize()?;
        best = best.min(begin.elapsed().as_secs_f64() / 4.0);
    }
    Ok(2.0 * (SIDE as f64).powi(3) / best)
}
