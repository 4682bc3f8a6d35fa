//! Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (2022), the multistep
//! solver of order one to three with its stochastic form; `DPMSolverMultistepScheduler`.

use tensor::Tensor;

use super::{Driver, Mix, combine};
use crate::Result;
use crate::schedule::Schedule;

pub(super) fn run(schedule: &Schedule, mut x: Tensor, driver: &mut Driver<'_>) -> Result<Tensor> {
    let (solver, steps) = (&schedule.settings.solver, schedule.len());
    let few = solver.lower_order_final && steps < 15;
    let mut pictures: Vec<Tensor> = Vec::new(); // latest first
    for i in 0..steps {
        let level = Level::of(schedule.sigma(i));
        let picture = Mix::picture(schedule.prediction(), level.alpha, level.sigma);
        let output = driver.step(schedule, i, &x, 1.0, picture)?;
        pictures.insert(0, picture.of(&x, &output)?);
        pictures.truncate(solver.order);

        let last = i + 1 == steps && (solver.euler_at_final || few || schedule.settings.final_sigma_zero);
        let order = match () {
            () if last => 1,
            () if few && i + 2 == steps => solver.order.min(2),
            () => solver.order,
        };
        let levels: Vec<Level> = (0..3.min(i + 1)).map(|back| Level::of(schedule.sigma(i - back))).collect();
        let factors = Factors::new(solver, Level::of(schedule.sigma(i + 1)), &levels, order.min(pictures.len()));
        let mut terms = vec![(factors.x, &x)];
        terms.extend(factors.pictures.iter().copied().zip(&pictures));
        let noise = if factors.noise > 0.0 { Some((driver.noise)()?) } else { None };
        terms.extend(noise.iter().map(|n| (factors.noise, n)));
        x = combine(&terms)?;
    }
    Ok(x)
}

/// A noise level in the variance-preserving form.
#[derive(Clone, Copy)]
struct Level {
    alpha: f64,
    sigma: f64,
    /// Half the logarithm of the signal-to-noise ratio.
    lambda: f64,
}

impl Level {
    fn of(sigma: f64) -> Level {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        Level { alpha, sigma: sigma * alpha, lambda: -sigma.ln() }
    }
}

/// What the latent, the predicted pictures (latest first) and fresh noise count in the next latent.
struct Factors {
    x: f64,
    pictures: Vec<f64>,
    noise: f64,
}

impl Factors {
    fn new(solver: &crate::schedule::Solver, to: Level, from: &[Level], order: usize) -> Factors {
        let h = to.lambda - from[0].lambda;
        // With noise the same formulas hold for twice the distance (appendix of the paper).
        let (x, e, noise) = if solver.stochastic {
            let e = (-2.0 * h).exp();
            (to.sigma / from[0].sigma * (-h).exp(), e, to.sigma * (1.0 - e).sqrt())
        } else {
            (to.sigma / from[0].sigma, (-h).exp(), 0.0)
        };
        let span = if solver.stochastic { 2.0 * h } else { h };
        let d0 = to.alpha * (1.0 - e);
        let d1 = to.alpha * ((e - 1.0) / span + 1.0);
        let distance = |i: usize| (from[i].lambda - from[i + 1].lambda) / h;
        let pictures = match order {
            1 => vec![d0],
            2 => {
                let slope = if solver.heun { d1 } else { 0.5 * d0 } / distance(0);
                vec![d0 + slope, -slope]
            }
            _ => {
                let d2 = if solver.stochastic {
                    to.alpha * ((1.0 - e - span) / (span * span) - 0.5)
                } else {
                    -to.alpha * ((e - 1.0 + h) / (h * h) - 0.5)
                };
                let (r0, r1) = (distance(0), distance(1));
                // D1 = a + r0 / (r0 + r1) (a - b) and D2 = (a - b) / (r0 + r1), with the divided differences a and b
                let a = d1 * (1.0 + r0 / (r0 + r1)) + d2 / (r0 + r1);
                let b = -d1 * r0 / (r0 + r1) - d2 / (r0 + r1);
                vec![d0 + a / r0, b / r1 - a / r0, -b / r1]
            }
        };
        Factors { x, pictures, noise }
    }
}
