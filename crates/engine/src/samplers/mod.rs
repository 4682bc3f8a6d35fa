//! Samplers: from noise to a latent, step by step along a [`Schedule`].
//!
//! Each is a loop over noise levels in a file of its own. They call the network through [`Driver`], which also gives
//! noise and tells an observer of each step. Their results equal those of diffusers 0.42's scheduler classes.

mod ddim;
mod dpmpp_2m;
mod euler;
mod euler_a;
mod lcm;
mod unipc;

use std::ops::ControlFlow;

use serde_json::Value;
use tensor::{Tensor, ops};

use crate::schedule::{Prediction, Schedule};
use crate::{Error, Result};

/// A sampling method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Euler's method on the probability flow.
    Euler,
    /// Euler's method with fresh noise at each step.
    EulerA,
    /// Denoising diffusion implicit models.
    Ddim,
    /// DPM-Solver++, two-step by default.
    Dpmpp2m,
    /// UniPC, a predictor and corrector.
    UniPc,
    /// Latent consistency models.
    Lcm,
}

impl Kind {
    /// Whether the network sees the latent divided by its deviation.
    pub(crate) fn scales_input(self) -> bool {
        matches!(self, Kind::Euler | Kind::EulerA)
    }
}

/// A sampling method, with Karras' noise levels and fresh noise forced or left to the model's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// The method.
    pub kind: Kind,
    /// Force Karras' noise levels.
    pub karras: bool,
    /// Force the stochastic form of DPM-Solver++.
    pub sde: bool,
}

/// A name that the command line knows.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// As in `--sampler`.
    pub name: &'static str,
    /// As in the web UI and in the text that pictures carry.
    pub title: &'static str,
    /// For `--help`.
    pub description: &'static str,
    /// What it stands for.
    pub sampler: Sampler,
}

const fn entry(name: &'static str, title: &'static str, kind: Kind, karras: bool, description: &'static str) -> Entry {
    Entry { name, title, description, sampler: Sampler { kind, karras, sde: false } }
}

const fn sde(entry: Entry) -> Entry {
    Entry { sampler: Sampler { sde: true, ..entry.sampler }, ..entry }
}

/// All samplers, for `--help`.
pub const SAMPLERS: &[Entry] = &[
    entry("euler", "Euler", Kind::Euler, false, "simple and sound; the usual choice for SDXL"),
    entry("euler_karras", "Euler Karras", Kind::Euler, true, "euler, with more steps at little noise"),
    entry("euler_a", "Euler a", Kind::EulerA, false, "adds fresh noise at each step; never settles on one picture"),
    entry("ddim", "DDIM", Kind::Ddim, false, "the classic; wants many steps"),
    entry("dpmpp_2m", "DPM++ 2M", Kind::Dpmpp2m, false, "second order; good from 20 steps"),
    entry("dpmpp_2m_karras", "DPM++ 2M Karras", Kind::Dpmpp2m, true, "dpmpp_2m, with more steps at little noise"),
    sde(entry("dpmpp_2m_sde", "DPM++ 2M SDE", Kind::Dpmpp2m, false, "dpmpp_2m with fresh noise at each step")),
    sde(entry(
        "dpmpp_2m_sde_karras",
        "DPM++ 2M SDE Karras",
        Kind::Dpmpp2m,
        true,
        "dpmpp_2m_sde, with more steps at little noise",
    )),
    entry("unipc", "UniPC", Kind::UniPc, false, "predictor and corrector; good from 10 steps"),
    entry("unipc_karras", "UniPC Karras", Kind::UniPc, true, "unipc, with more steps at little noise"),
    entry("lcm", "LCM", Kind::Lcm, false, "2 to 8 steps, for models or LoRAs made for it"),
];

/// Classes of diffusers, and names of k-diffusion, ComfyUI and others that differ from ours by more than punctuation.
const ALIASES: &[(&str, &str)] = &[
    ("eulerdiscretescheduler", "euler"),
    ("eulerancestraldiscretescheduler", "euler_a"),
    ("ddimscheduler", "ddim"),
    ("dpmsolvermultistepscheduler", "dpmpp_2m"),
    ("unipcmultistepscheduler", "unipc"),
    ("lcmscheduler", "lcm"),
    ("eulerancestral", "euler_a"),
    ("keuler", "euler"),
    ("keulera", "euler_a"),
    ("keulerancestral", "euler_a"),
    ("sampleeuler", "euler"),
    ("sampleeulerancestral", "euler_a"),
    ("dpm2m", "dpmpp_2m"),
    ("kdpmpp2m", "dpmpp_2m"),
    ("kdpmpp2mka", "dpmpp_2m_karras"),
    ("sampledpmpp2m", "dpmpp_2m"),
    ("sampledpmpp2msde", "dpmpp_2m_sde"),
    ("dpm2msde", "dpmpp_2m_sde"),
    ("dpm2msdekarras", "dpmpp_2m_sde_karras"),
    ("dpmsolver", "dpmpp_2m"),
    ("dpmsolverpp", "dpmpp_2m"),
    ("dpmpp2mkarras", "dpmpp_2m_karras"),
    ("dpm2mkarras", "dpmpp_2m_karras"),
    ("unipcbh2", "unipc"),
    ("unipcmultistep", "unipc"),
];

impl Sampler {
    /// A sampler by its name here, in diffusers, in the web UI, in ComfyUI or in k-diffusion; case and punctuation do not matter.
    ///
    /// # Errors
    /// An unknown name; the sentence lists the known ones.
    pub fn from_name(name: &str) -> Result<Sampler> {
        let plain = |s: &str| -> String {
            s.to_lowercase().replace('+', "p").chars().filter(|c| c.is_ascii_alphanumeric()).collect()
        };
        let wanted = plain(name);
        let alias = ALIASES.iter().find(|(alias, _)| *alias == wanted).map(|(_, ours)| *ours);
        let found =
            SAMPLERS.iter().find(|e| Some(e.name) == alias || plain(e.name) == wanted || plain(e.title) == wanted);
        match found {
            Some(entry) => Ok(entry.sampler),
            None => Error::refused(format!("the sampler `{name}` is unknown; known are {}", names())),
        }
    }

    /// The sampler that a model's `scheduler_config.json` names.
    ///
    /// # Errors
    /// A class that is not supported, by name.
    pub fn from_config(config: &Value) -> Result<Sampler> {
        let class = config["_class_name"].as_str().unwrap_or("EulerDiscreteScheduler");
        let known = ALIASES.iter().find(|(alias, _)| alias.ends_with("scheduler") && *alias == class.to_lowercase());
        match known {
            Some((_, name)) => Sampler::from_name(name),
            None => Error::refused(format!(
                "the model's scheduler `{class}` is not supported; choose a sampler with --sampler: {}",
                names()
            )),
        }
    }

    fn entry(self) -> &'static Entry {
        // Every kind is listed without Karras, so that the first entry of the kind stands in.
        let of_kind = || SAMPLERS.iter().filter(move |e| e.sampler.kind == self.kind);
        of_kind().find(|e| e.sampler == self).or_else(|| of_kind().next()).unwrap_or(&SAMPLERS[0])
    }

    /// The name as in `--sampler`.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The name as the web UI writes it.
    pub fn title(self) -> &'static str {
        self.entry().title
    }
}

fn names() -> String {
    SAMPLERS.iter().map(|e| e.name).collect::<Vec<_>>().join(", ")
}

/// A step that has just called the network.
pub struct Step<'a> {
    /// From 0.
    pub index: usize,
    /// How many steps there are.
    pub total: usize,
    x: &'a Tensor,
    output: &'a Tensor,
    denoised: Mix,
}

impl Step<'_> {
    /// What the finished latent would be if the network were right at once: a preview.
    ///
    /// # Errors
    /// As the operators'.
    pub fn preview(&self) -> Result<Tensor> {
        self.denoised.of(self.x, self.output)
    }
}

/// What a sampler needs from outside.
pub struct Driver<'a> {
    /// The network's raw output, after guidance, for (step, latent as the network wants it, timestep); in f32.
    pub model: &'a mut dyn FnMut(usize, &Tensor, f32) -> Result<Tensor>,
    /// Unit noise in the latent's shape, drawn anew.
    pub noise: &'a mut dyn FnMut() -> Result<Tensor>,
    /// Told of each step after the network has run; breaking off ends the sampling with [`Error::Cancelled`].
    pub observer: &'a mut dyn FnMut(&Step<'_>) -> ControlFlow<()>,
}

/// Runs the sampler of `schedule` from `noise`, unit noise in f32 of the latent's shape, to a latent.
///
/// # Errors
/// What the network or an operator says, [`Error::Cancelled`], or settings that lead to no finite step.
pub fn sample(schedule: &Schedule, noise: &Tensor, driver: &mut Driver<'_>) -> Result<Tensor> {
    let x = ops::combine(&[(schedule.init_noise_sigma(), noise)])?;
    match schedule.sampler().kind {
        Kind::Euler => euler::run(schedule, x, driver),
        Kind::EulerA => euler_a::run(schedule, x, driver),
        Kind::Ddim => ddim::run(schedule, x, driver),
        Kind::Dpmpp2m => dpmpp_2m::run(schedule, x, driver),
        Kind::UniPc => unipc::run(schedule, x, driver),
        Kind::Lcm => lcm::run(schedule, x, driver),
    }
}

impl Driver<'_> {
    /// The network's output for `x`, of which it sees `scale * x`; then the observer's turn.
    fn step(&mut self, schedule: &Schedule, index: usize, x: &Tensor, scale: f64, denoised: Mix) -> Result<Tensor> {
        let timestep = schedule.timesteps()[index];
        let output = if scale == 1.0 {
            (self.model)(index, x, timestep)?
        } else {
            (self.model)(index, &ops::combine(&[(scale as f32, x)])?, timestep)?
        };
        let step = Step { index, total: schedule.len(), x, output: &output, denoised };
        match (self.observer)(&step) {
            ControlFlow::Continue(()) => Ok(output),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}

/// A quantity as a share of the latent and a share of the network's output.
#[derive(Clone, Copy, Debug)]
struct Mix {
    x: f64,
    output: f64,
}

impl Mix {
    fn of(self, x: &Tensor, output: &Tensor) -> Result<Tensor> {
        combine(&[(self.x, x), (self.output, output)])
    }

    /// The picture, for latents that carry noise of deviation sigma beside a picture of full strength.
    fn denoised(prediction: Prediction, sigma: f64) -> Mix {
        let variance = sigma * sigma + 1.0;
        match prediction {
            Prediction::Epsilon => Mix { x: 1.0, output: -sigma },
            Prediction::Velocity => Mix { x: 1.0 / variance, output: -sigma / variance.sqrt() },
            Prediction::Sample => Mix { x: 0.0, output: 1.0 },
        }
    }

    /// The picture, for latents of constant variance: alpha * picture + sigma * noise.
    fn picture(prediction: Prediction, alpha: f64, sigma: f64) -> Mix {
        match prediction {
            Prediction::Epsilon => Mix { x: 1.0 / alpha, output: -sigma / alpha },
            Prediction::Velocity => Mix { x: alpha, output: -sigma },
            Prediction::Sample => Mix { x: 0.0, output: 1.0 },
        }
    }

    /// The noise, likewise.
    fn noise(prediction: Prediction, alpha: f64, sigma: f64) -> Mix {
        match prediction {
            Prediction::Epsilon => Mix { x: 0.0, output: 1.0 },
            Prediction::Velocity => Mix { x: sigma, output: alpha },
            Prediction::Sample => Mix { x: 1.0 / sigma, output: -alpha / sigma },
        }
    }
}

/// Sum of scaled tensors, leaving out terms of weight zero, which could hold what is not finite.
fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    if let Some((bad, _)) = terms.iter().find(|(weight, _)| !(*weight as f32).is_finite()) {
        return Error::refused(format!(
            "the scheduler's settings give a step the factor {bad}; use other settings, more steps, or another sampler"
        ));
    }
    let used: Vec<(f32, &Tensor)> = terms.iter().filter(|(w, _)| *w != 0.0).map(|(w, t)| (*w as f32, *t)).collect();
    match (used.is_empty(), terms.first()) {
        (true, Some((_, first))) => Ok(ops::combine(&[(0.0, *first)])?),
        _ => Ok(ops::combine(&used)?),
    }
}

/// The predicted picture within the limits that some models' settings ask for.
fn clamp(x: &Tensor, limit: f32) -> Result<Tensor> {
    let values: Vec<f32> = x.to_vec_f32()?.into_iter().map(|v| v.clamp(-limit, limit)).collect();
    Ok(Tensor::from_f32(x.device(), x.dtype(), x.shape(), &values)?)
}
