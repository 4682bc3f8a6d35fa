//! Euler's method with fresh noise at each step, after k-diffusion's `sample_euler_ancestral`;
//! `EulerAncestralDiscreteScheduler`.

use tensor::Tensor;

use super::{Driver, Mix, combine};
use crate::Result;
use crate::schedule::Schedule;

pub(super) fn run(schedule: &Schedule, mut x: Tensor, driver: &mut Driver<'_>) -> Result<Tensor> {
    for i in 0..schedule.len() {
        let (sigma, next) = (schedule.sigma(i), schedule.sigma(i + 1));
        let denoised = Mix::denoised(schedule.prediction(), sigma);
        let output = driver.step(schedule, i, &x, 1.0 / (sigma * sigma + 1.0).sqrt(), denoised)?;
        // Down further than wanted, then up again with new noise.
        let up = (next * next * (sigma * sigma - next * next) / (sigma * sigma)).sqrt();
        let down = (next * next - up * up).sqrt();
        let stride = (down - sigma) / sigma;
        let (keep, add) = (1.0 + stride * (1.0 - denoised.x), -stride * denoised.output);
        x = if up == 0.0 {
            combine(&[(keep, &x), (add, &output)])?
        } else {
            combine(&[(keep, &x), (add, &output), (up, &(driver.noise)()?)])?
        };
    }
    Ok(x)
}
