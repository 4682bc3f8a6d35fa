//! Luo et al., "Latent Consistency Models" (2023), algorithm 3; `LCMScheduler`.

use tensor::Tensor;

use super::{Driver, Mix, clamp, combine};
use crate::Result;
use crate::schedule::Schedule;

/// Deviation of the data in the boundary condition.
const SIGMA_DATA: f64 = 0.5;

pub(super) fn run(schedule: &Schedule, mut x: Tensor, driver: &mut Driver<'_>) -> Result<Tensor> {
    let timesteps: Vec<i64> = schedule.timesteps().iter().map(|t| *t as i64).collect();
    for (i, &timestep) in timesteps.iter().enumerate() {
        let a = schedule.alpha_cumprod(timestep);
        let picture = Mix::picture(schedule.prediction(), a.sqrt(), (1.0 - a).sqrt());
        let output = driver.step(schedule, i, &x, 1.0, picture)?;

        let scaled = timestep as f64 * schedule.settings.timestep_scaling;
        let norm = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / norm, scaled / norm.sqrt());
        let denoised = match schedule.settings.clip {
            None => combine(&[(out * picture.x + skip, &x), (out * picture.output, &output)])?,
            Some(limit) => combine(&[(out, &clamp(&picture.of(&x, &output)?, limit)?), (skip, &x)])?,
        };
        x = match timesteps.get(i + 1) {
            None => denoised,
            Some(next) => {
                let a = schedule.alpha_cumprod(*next);
                combine(&[(a.sqrt(), &denoised), ((1.0 - a).sqrt(), &(driver.noise)()?)])?
            }
        };
    }
    Ok(x)
}
