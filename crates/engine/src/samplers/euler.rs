//! Euler's method: algorithm 2 of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models"
//! (2022), without churn; `EulerDiscreteScheduler`.

use tensor::Tensor;

use super::{Driver, Mix, combine};
use crate::Result;
use crate::schedule::Schedule;

pub(super) fn run(schedule: &Schedule, mut x: Tensor, driver: &mut Driver<'_>) -> Result<Tensor> {
    for i in 0..schedule.len() {
        let (sigma, next) = (schedule.sigma(i), schedule.sigma(i + 1));
        let denoised = Mix::denoised(schedule.prediction(), sigma);
        let output = driver.step(schedule, i, &x, 1.0 / (sigma * sigma + 1.0).sqrt(), denoised)?;
        // x + (x - denoised) / sigma * (next - sigma)
        let stride = (next - sigma) / sigma;
        x = combine(&[(1.0 + stride * (1.0 - denoised.x), &x), (-stride * denoised.output, &output)])?;
    }
    Ok(x)
}
