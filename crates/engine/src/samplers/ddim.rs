//! Song et al., "Denoising Diffusion Implicit Models" (2020), equations 12 and 16; `DDIMScheduler`.

use tensor::Tensor;

use super::{Driver, Mix, clamp, combine};
use crate::Result;
use crate::schedule::Schedule;

pub(super) fn run(schedule: &Schedule, mut x: Tensor, driver: &mut Driver<'_>) -> Result<Tensor> {
    let stride = (schedule.settings.train_steps / schedule.len()) as i64;
    for (i, timestep) in schedule.timesteps().iter().map(|t| *t as i64).enumerate() {
        let (a, a_next) = (schedule.alpha_cumprod(timestep), schedule.alpha_cumprod(timestep - stride));
        let (alpha, sigma) = (a.sqrt(), (1.0 - a).sqrt());
        let picture = Mix::picture(schedule.prediction(), alpha, sigma);
        let noise = Mix::noise(schedule.prediction(), alpha, sigma);
        let output = driver.step(schedule, i, &x, 1.0, picture)?;

        let deviation = schedule.eta * ((1.0 - a_next) / (1.0 - a) * (1.0 - a / a_next)).sqrt();
        let (to_picture, to_noise) = (a_next.sqrt(), (1.0 - a_next - deviation * deviation).max(0.0).sqrt());
        x = match schedule.settings.clip {
            None => combine(&[
                (to_picture * picture.x + to_noise * noise.x, &x),
                (to_picture * picture.output + to_noise * noise.output, &output),
            ])?,
            Some(limit) => {
                let clipped = clamp(&picture.of(&x, &output)?, limit)?;
                combine(&[(to_picture, &clipped), (to_noise * noise.x, &x), (to_noise * noise.output, &output)])?
            }
        };
        if deviation > 0.0 {
            x = combine(&[(1.0, &x), (deviation, &(driver.noise)()?)])?;
        }
    }
    Ok(x)
}
