//! Noise levels and timesteps, equal to those of diffusers 0.42's schedulers.
//!
//! Training tables are kept in f32 and the step tables computed in f64 where NumPy does so there, in the same order of
//! operations: what a network sees as its timestep must not differ by one.

mod beta;
mod settings;

use serde_json::Value;

use crate::samplers::{Kind, Sampler};
use crate::{Error, Result};
pub(crate) use settings::{Betas, Settings, Solver};
pub use settings::{Curve, Prediction, Spacing};

/// A sampler's steps over one model's noise levels.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub(crate) settings: Settings,
    sampler: Sampler,
    timesteps: Vec<f32>,
    sigmas: Vec<f32>,
    alphas_cumprod: Vec<f32>,
    /// Noise that DDIM adds again at each step, from 0 (none) to 1 (as much as DDPM).
    pub eta: f64,
}

impl Schedule {
    /// Lays `steps` steps of `sampler` over the noise levels that `config`, a model's `scheduler_config.json`, describes.
    ///
    /// # Errors
    /// A setting that is not supported, or a number of steps that the schedule cannot have, by name and value.
    pub fn new(config: &Value, sampler: Sampler, steps: usize) -> Result<Schedule> {
        let settings = Settings::read(config, sampler)?;
        let most = if sampler.kind == Kind::Lcm { settings.original_steps } else { settings.train_steps };
        if steps == 0 || steps > most {
            return Error::refused(format!("{steps} steps were asked for; {} takes 1 to {most}", sampler.name()));
        }
        let alphas_cumprod = alphas_cumprod(&settings, sampler.kind);
        let (timesteps, sigmas) = lay_out(&settings, sampler, &alphas_cumprod, steps)?;
        if !alphas_cumprod.iter().chain(&sigmas).all(|v| v.is_finite()) {
            return Error::refused(
                "the betas of the scheduler's settings leave nothing of the picture, or all of it; \
                 they should grow from about 0.001 to about 0.02",
            );
        }
        let sampler = Sampler { karras: settings.curve == Curve::Karras, sde: settings.solver.stochastic, ..sampler };
        Ok(Schedule { settings, sampler, timesteps, sigmas, alphas_cumprod, eta: 0.0 })
    }

    /// Which sampler the steps are for; with Karras and fresh noise where the model's settings ask for that.
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// How many steps there are.
    pub fn len(&self) -> usize {
        self.timesteps.len()
    }

    /// Never: there is at least one step.
    pub fn is_empty(&self) -> bool {
        self.timesteps.is_empty()
    }

    /// What the network is told at each step.
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// Noise level, relative to the picture, before each step and after the last. Empty for ddim and lcm, which count in alphas.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// What the network predicts.
    pub fn prediction(&self) -> Prediction {
        self.settings.prediction
    }

    /// The deviation of the first latent: unit noise is multiplied by this.
    pub fn init_noise_sigma(&self) -> f32 {
        if !self.sampler.kind.scales_input() {
            return 1.0;
        }
        let largest = self.sigmas.iter().copied().fold(0.0, f32::max);
        match self.settings.spacing {
            Spacing::Leading => (f64::from(largest).powi(2) + 1.0).sqrt() as f32,
            Spacing::Linspace | Spacing::Trailing => largest,
        }
    }

    /// Sigma before step `i`, or after step `i - 1`.
    pub(crate) fn sigma(&self, i: usize) -> f64 {
        f64::from(self.sigmas[i])
    }

    /// Share of the picture left at a training timestep; below 0 lies the finished picture.
    pub(crate) fn alpha_cumprod(&self, timestep: i64) -> f64 {
        match usize::try_from(timestep) {
            Ok(t) => f64::from(self.alphas_cumprod[t.min(self.alphas_cumprod.len() - 1)]),
            Err(_) if self.settings.alpha_one_at_end => 1.0,
            Err(_) => f64::from(self.alphas_cumprod[0]),
        }
    }
}

/// Timesteps, and sigmas where the sampler counts in them.
fn lay_out(s: &Settings, sampler: Sampler, alphas_cumprod: &[f32], steps: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let narrow = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    if sampler.kind == Kind::Lcm {
        return Ok((lcm_timesteps(s.train_steps, s.original_steps, steps), Vec::new()));
    }
    let exact = match sampler.kind {
        Kind::Dpmpp2m => {
            // Steps beyond a signal-to-noise ratio can be cut off, for the cosine schedule.
            let cut = alphas_cumprod.iter().filter(|a| log_snr(**a) < s.lambda_min).count();
            multistep_timesteps(s, s.train_steps - cut, steps)
        }
        Kind::UniPc => multistep_timesteps(s, s.train_steps, steps),
        _ => single_step_timesteps(s, steps, sampler.kind == Kind::Ddim),
    };
    if exact.is_empty() {
        return Error::refused(format!(
            "the scheduler's `lambda_min_clipped` {} leaves no timestep; -5.1 is usual with the cosine schedule",
            s.lambda_min
        ));
    }
    if let Some(bad) = exact.iter().find(|t| !(0.0..s.train_steps as f64).contains(*t)) {
        return Error::refused(format!(
            "with {steps} steps and the scheduler's `steps_offset` {} a step falls on timestep {bad}; \
             timesteps go from 0 to {}",
            s.steps_offset,
            s.train_steps - 1
        ));
    }
    if sampler.kind == Kind::Ddim {
        return Ok((narrow(&exact), Vec::new()));
    }

    let training: Vec<f32> = alphas_cumprod.iter().map(|a| ((1.0 - a) / a).sqrt()).collect();
    let (mut sigmas, timesteps) = levels(s, sampler.kind, &training, exact, steps);
    sigmas.truncate(timesteps.len() + usize::from(s.log_linear));
    sigmas.push(match (s.final_sigma_zero, sampler.kind, s.curve) {
        (true, ..) => 0.0,
        (false, Kind::UniPc, Curve::Karras | Curve::Exponential | Curve::Beta) => sigmas[sigmas.len() - 1],
        (false, ..) => f64::from(training[0]),
    });
    let sigmas = narrow(&sigmas);
    // The multistep solvers divide by the distance of neighbouring levels, save the last one's.
    let multistep = matches!(sampler.kind, Kind::Dpmpp2m | Kind::UniPc);
    if multistep && sigmas.windows(2).rev().skip(1).any(|pair| pair[0] <= pair[1]) {
        return Error::refused(format!(
            "with {steps} steps and the model's scheduler settings two steps of {} have the same noise level; \
             use fewer steps",
            sampler.name()
        ));
    }
    if s.continuous && s.prediction == Prediction::Velocity {
        return Ok((sigmas[..timesteps.len()].iter().map(|sigma| 0.25 * sigma.ln()).collect(), sigmas));
    }
    Ok((narrow(&timesteps), sigmas))
}

/// Noise levels, and timesteps where a curve changes them.
fn levels(s: &Settings, kind: Kind, training: &[f32], exact: Vec<f64>, steps: usize) -> (Vec<f64>, Vec<f64>) {
    let euler = kind == Kind::Euler;
    let ends = (training[training.len() - 1], training[0]);
    let at_timesteps: Vec<f64> = if s.log_linear {
        let logs = linspace(f64::from(ends.0.ln()), f64::from(ends.1.ln()), steps + 1);
        logs.into_iter().map(f64::exp).collect()
    } else {
        exact.iter().map(|t| interpolate(training, *t)).collect()
    };
    // Euler's curve spans the levels of its own steps, the others' the whole training range.
    let (largest, smallest) = match euler {
        true => (at_timesteps[0], at_timesteps[at_timesteps.len() - 1]),
        false => (f64::from(ends.0), f64::from(ends.1)),
    };
    let (largest, smallest) = (s.sigma_range.1.unwrap_or(largest), s.sigma_range.0.unwrap_or(smallest));
    let sigmas: Vec<f64> = match s.curve {
        Curve::Training => return (at_timesteps, exact),
        Curve::Karras => {
            let (max, min) = (largest.powf(1.0 / 7.0), smallest.powf(1.0 / 7.0));
            linspace(0.0, 1.0, steps).into_iter().map(|ramp| (max + ramp * (min - max)).powi(7)).collect()
        }
        Curve::Exponential => linspace(largest.ln(), smallest.ln(), steps).into_iter().map(f64::exp).collect(),
        Curve::Beta => {
            let shares = linspace(0.0, 1.0, steps).into_iter().map(|ramp| beta::quantile(1.0 - ramp));
            shares.map(|share| smallest + share * (largest - smallest)).collect()
        }
        Curve::Lu => {
            let (max, min) = (f64::from(ends.0.ln()), f64::from(ends.1.ln()));
            linspace(0.0, 1.0, steps).into_iter().map(|ramp| (max + ramp * (min - max)).exp()).collect()
        }
    };
    let rounded = match kind {
        Kind::UniPc => s.curve == Curve::Karras,
        _ => matches!(s.curve, Curve::Karras | Curve::Lu) && !s.cosine,
    };
    let timestep = |sigma: &f64| match (euler, timestep_of(training, *sigma)) {
        (true, t) => t,
        (false, t) if rounded => t.round_ties_even(),
        (false, t) => t.trunc(),
    };
    let timesteps = sigmas.iter().map(timestep).collect();
    (sigmas, timesteps)
}

/// The share of the picture that is left after each training step, in f32 with the running product in f64, as torch's cumprod.
fn alphas_cumprod(s: &Settings, kind: Kind) -> Vec<f32> {
    let n = s.train_steps;
    let mut betas: Vec<f32> = match &s.betas {
        Betas::Linear(start, end) => linspace_f32(*start, *end, n),
        Betas::ScaledLinear(start, end) => {
            linspace_f32(start.sqrt(), end.sqrt(), n).into_iter().map(|b| b * b).collect()
        }
        Betas::Cosine => {
            let bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
            let n = n as f64;
            (0..s.train_steps)
                .map(|i| i as f64)
                .map(|i| (1.0 - bar((i + 1.0) / n) / bar(i / n)).min(0.999) as f32)
                .collect()
        }
        Betas::Given(betas) => betas.clone(),
    };
    let cumprod = |betas: &[f32]| -> Vec<f32> {
        betas
            .iter()
            .scan(1.0f64, |product, beta| {
                *product *= f64::from(1.0 - beta);
                Some(*product as f32)
            })
            .collect()
    };
    if s.zero_terminal_snr {
        // Algorithm 1 of "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al., 2023).
        let root: Vec<f32> = cumprod(&betas).into_iter().map(f32::sqrt).collect();
        let (first, last) = (root[0], root[n - 1]);
        let scale = first / (first - last);
        let bar: Vec<f32> = root.iter().map(|r| (r - last) * scale).map(|r| r * r).collect();
        betas = (0..n).map(|i| 1.0 - if i == 0 { bar[0] } else { bar[i] / bar[i - 1] }).collect();
    }
    let mut alphas = cumprod(&betas);
    if s.zero_terminal_snr && !matches!(kind, Kind::Ddim | Kind::Lcm) {
        alphas[n - 1] = 2f32.powi(-24); // so that the first sigma is large but finite
    }
    alphas
}

/// Half the logarithm of the signal-to-noise ratio.
fn log_snr(alpha_cumprod: f32) -> f64 {
    f64::from(alpha_cumprod.sqrt().ln() - (1.0 - alpha_cumprod).sqrt().ln())
}

/// torch.linspace in f32: from both ends towards the middle.
fn linspace_f32(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (n - 1) as f32;
    (0..n).map(|i| if i < n / 2 { start + step * i as f32 } else { end - step * (n - i - 1) as f32 }).collect()
}

/// numpy.linspace.
fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    if n == 1 {
        return vec![start];
    }
    let step = (end - start) / (n - 1) as f64;
    (0..n).map(|i| if i == n - 1 { end } else { i as f64 * step + start }).collect()
}

/// numpy.arange(start, 0, -step), rounded, minus one. For some numbers of steps, 61 of 1000 for one, that has one entry too
/// many by rounding, which diffusers takes as the timestep -1; it is left out here.
fn trailing(start: usize, step: f64) -> Vec<f64> {
    let start = start as f64;
    let delta = (start - step) - start; // as its filling loop has it
    let n = (start / step).ceil() as usize;
    (0..n).map(|i| (start + i as f64 * delta).round_ties_even() - 1.0).filter(|t| *t >= 0.0).collect()
}

/// Euler, ancestral Euler and DDIM: as many timesteps as steps.
fn single_step_timesteps(s: &Settings, steps: usize, whole: bool) -> Vec<f64> {
    match s.spacing {
        Spacing::Linspace => linspace(0.0, (s.train_steps - 1) as f64, steps)
            .into_iter()
            .rev()
            .map(|t| if whole { t.round_ties_even() } else { f64::from(t as f32) })
            .collect(),
        Spacing::Leading => {
            let ratio = s.train_steps / steps;
            (0..steps).rev().map(|i| (i * ratio + s.steps_offset) as f64).collect()
        }
        Spacing::Trailing => trailing(s.train_steps, s.train_steps as f64 / steps as f64),
    }
}

/// DPM++ and UniPC: one more point than steps, the last of which is dropped.
fn multistep_timesteps(s: &Settings, last: usize, steps: usize) -> Vec<f64> {
    match s.spacing {
        Spacing::Linspace => {
            let points = linspace(0.0, last as f64 - 1.0, steps + 1);
            points.into_iter().skip(1).rev().map(f64::round_ties_even).collect()
        }
        Spacing::Leading => {
            let ratio = last / (steps + 1);
            (1..=steps).rev().map(|i| (i * ratio + s.steps_offset) as f64).collect()
        }
        Spacing::Trailing => trailing(last, s.train_steps as f64 / steps as f64),
    }
}

/// Evenly spread among the timesteps that a consistency model was distilled on.
fn lcm_timesteps(train: usize, original: usize, steps: usize) -> Vec<f32> {
    let k = train / original;
    let stride = original as f64 / steps as f64;
    (0..steps).map(|i| (i as f64 * stride).floor() as usize).map(|i| ((original - i) * k - 1) as f32).collect()
}

/// numpy.interp over the training levels.
fn interpolate(levels: &[f32], at: f64) -> f64 {
    let low = (at.max(0.0) as usize).min(levels.len() - 1);
    let (a, b) = (f64::from(levels[low]), f64::from(levels[(low + 1).min(levels.len() - 1)]));
    (b - a) * (at - low as f64) + a
}

/// The timestep, with a fraction, at which training had this noise level.
fn timestep_of(levels: &[f32], sigma: f64) -> f64 {
    let log = sigma.max(1e-10).ln();
    let low = levels.iter().rposition(|l| log >= f64::from(l.ln())).unwrap_or(0).min(levels.len() - 2);
    let (a, b) = (levels[low].ln(), levels[low + 1].ln());
    let w = ((f64::from(a) - log) / f64::from(a - b)).clamp(0.0, 1.0);
    (1.0 - w) * low as f64 + w * (low + 1) as f64
}
