//! `scheduler_config.json`: what the model's training and its makers say about noise and steps.
//!
//! The keys, their meaning and their defaults are those of diffusers 0.42. As there, a sampler reads the keys that it
//! knows and ignores the rest, so that one file serves all; a value that would change the picture and is not supported
//! is refused by name and value.

use serde_json::Value;

use crate::samplers::{Kind, Sampler};
use crate::{Error, Result};

/// What the network's output stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// Velocity: alpha * noise - sigma * picture (Salimans and Ho, 2022).
    Velocity,
    /// The picture itself.
    Sample,
}

/// How the steps spread over the training timesteps (table 2 of "Common Diffusion Noise Schedules and Sample Steps are Flawed").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Both ends included.
    Linspace,
    /// Multiples of a whole step from the clean end, plus `steps_offset`.
    Leading,
    /// Multiples of a step from the noisy end.
    Trailing,
}

/// A curve of noise levels that replaces the one that follows from the timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// None: levels of the timesteps.
    Training,
    /// Karras et al., 2022, equation 5 with rho 7.
    Karras,
    /// Even in the logarithm.
    Exponential,
    /// Over the quantiles of a beta distribution (Lee et al., 2024).
    Beta,
    /// Even in the logarithm of the signal-to-noise ratio (Lu et al., 2022).
    Lu,
}

/// Order and kind of the multistep solvers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Solver {
    pub(crate) order: usize,
    pub(crate) stochastic: bool,
    pub(crate) heun: bool,
    pub(crate) bh1: bool,
    pub(crate) lower_order_final: bool,
    pub(crate) euler_at_final: bool,
    pub(crate) disable_corrector: Vec<usize>,
}

/// The settings that a sampler reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) train_steps: usize,
    pub(crate) betas: Betas,
    pub(crate) zero_terminal_snr: bool,
    pub(crate) prediction: Prediction,
    pub(crate) spacing: Spacing,
    pub(crate) steps_offset: usize,
    pub(crate) curve: Curve,
    pub(crate) log_linear: bool,
    pub(crate) continuous: bool,
    pub(crate) cosine: bool,
    pub(crate) sigma_range: (Option<f64>, Option<f64>),
    pub(crate) final_sigma_zero: bool,
    pub(crate) lambda_min: f64,
    pub(crate) alpha_one_at_end: bool,
    /// Limit of the predicted picture's values.
    pub(crate) clip: Option<f32>,
    pub(crate) original_steps: usize,
    pub(crate) timestep_scaling: f64,
    pub(crate) solver: Solver,
}

/// Noise added at each training step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Betas {
    Linear(f64, f64),
    ScaledLinear(f64, f64),
    Cosine,
    Given(Vec<f32>),
}

/// Largest number of training steps taken; every model known has 1000.
const MAX_TRAIN_STEPS: u64 = 100_000;

impl Settings {
    pub(crate) fn read(config: &Value, sampler: Sampler) -> Result<Settings> {
        let Sampler { kind, karras, sde } = sampler;
        let keys = Keys(config);
        let multistep = matches!(kind, Kind::Dpmpp2m | Kind::UniPc);
        let clipping = matches!(kind, Kind::Ddim | Kind::Lcm);
        if multistep || clipping {
            keys.must_be_false("thresholding")?;
        }
        if multistep {
            keys.must_be_false("use_flow_sigmas")?;
            keys.must_be_false("use_dynamic_shifting")?;
        }
        if kind == Kind::Dpmpp2m && !config["variance_type"].is_null() {
            return keys.refuse("variance_type", "null: a network that predicts no variance");
        }
        if kind == Kind::UniPc {
            if !keys.flag("predict_x0", true)? {
                return keys.refuse("predict_x0", "true");
            }
            if !config["solver_p"].is_null() {
                return keys.refuse("solver_p", "null");
            }
        }

        let train_steps = keys.whole("num_train_timesteps", 1000, 2..=MAX_TRAIN_STEPS)?;
        let (beta_start, beta_end, schedule) =
            if kind == Kind::Lcm { (0.00085, 0.012, "scaled_linear") } else { (0.0001, 0.02, "linear") };
        let curve = keys.curve(kind, karras)?;
        Ok(Settings {
            train_steps,
            betas: keys.betas(beta_start, beta_end, schedule, train_steps)?,
            cosine: config["beta_schedule"].as_str() == Some("squaredcos_cap_v2"),
            zero_terminal_snr: keys.flag("rescale_betas_zero_snr", false)?,
            prediction: keys.one_of(
                "prediction_type",
                "epsilon",
                &[
                    ("epsilon", Prediction::Epsilon),
                    ("v_prediction", Prediction::Velocity),
                    ("sample", Prediction::Sample),
                    ("original_sample", Prediction::Sample),
                ],
            )?,
            spacing: keys.one_of(
                "timestep_spacing",
                if clipping { "leading" } else { "linspace" },
                &[("linspace", Spacing::Linspace), ("leading", Spacing::Leading), ("trailing", Spacing::Trailing)],
            )?,
            steps_offset: keys.whole("steps_offset", 0, 0..=MAX_TRAIN_STEPS)?,
            curve,
            log_linear: kind == Kind::Euler
                && keys.one_of("interpolation_type", "linear", &[("linear", false), ("log_linear", true)])?,
            continuous: kind == Kind::Euler
                && keys.one_of("timestep_type", "discrete", &[("discrete", false), ("continuous", true)])?,
            sigma_range: (keys.positive("sigma_min")?, keys.positive("sigma_max")?),
            final_sigma_zero: kind == Kind::EulerA
                || keys.one_of("final_sigmas_type", "zero", &[("zero", true), ("sigma_min", false)])?,
            // Saved as -Infinity, which is no JSON; readers turn it into null or drop it.
            lambda_min: config["lambda_min_clipped"].as_f64().unwrap_or(f64::NEG_INFINITY),
            alpha_one_at_end: keys.flag("set_alpha_to_one", true)?,
            clip: if clipping && keys.flag("clip_sample", kind == Kind::Ddim)? {
                Some(keys.positive("clip_sample_range")?.unwrap_or(1.0) as f32)
            } else {
                None
            },
            original_steps: match kind {
                Kind::Lcm => keys.whole("original_inference_steps", 50, 1..=train_steps as u64)?,
                _ => train_steps,
            },
            timestep_scaling: keys.positive("timestep_scaling")?.unwrap_or(10.0),
            solver: keys.solver(kind, sde)?,
        })
    }
}

/// Reads single keys, refusing by name and value.
struct Keys<'a>(&'a Value);

impl Keys<'_> {
    fn refuse<T>(&self, key: &str, valid: &str) -> Result<T> {
        let value = &self.0[key];
        Error::refused(format!("the scheduler's `{key}` is {value}; supported: {valid}"))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match &self.0[key] {
            Value::Null => Ok(default),
            Value::Bool(b) => Ok(*b),
            _ => self.refuse(key, "true or false"),
        }
    }

    fn must_be_false(&self, key: &str) -> Result<()> {
        if self.flag(key, false)? { self.refuse(key, "false") } else { Ok(()) }
    }

    fn whole(&self, key: &str, default: usize, range: std::ops::RangeInclusive<u64>) -> Result<usize> {
        match &self.0[key] {
            Value::Null if range.contains(&(default as u64)) => Ok(default),
            value => match value.as_u64().filter(|n| range.contains(n)) {
                Some(n) => Ok(n as usize),
                None => self.refuse(key, &format!("a whole number from {} to {}", range.start(), range.end())),
            },
        }
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        match &self.0[key] {
            Value::Null => Ok(None),
            value => match value.as_f64().filter(|n| *n > 0.0 && n.is_finite()) {
                Some(n) => Ok(Some(n)),
                None => self.refuse(key, "a positive number"),
            },
        }
    }

    fn one_of<T: Copy>(&self, key: &str, default: &str, values: &[(&str, T)]) -> Result<T> {
        let given = if self.0[key].is_null() { Some(default) } else { self.0[key].as_str() };
        match values.iter().find(|(name, _)| Some(*name) == given) {
            Some((_, value)) => Ok(*value),
            None => self.refuse(key, &values.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")),
        }
    }

    fn betas(&self, start: f64, end: f64, schedule: &str, train_steps: usize) -> Result<Betas> {
        let valid = |b: &f64| (0.0..1.0).contains(b);
        if let Value::Array(list) = &self.0["trained_betas"] {
            let betas: Vec<f32> = list.iter().filter_map(Value::as_f64).filter(valid).map(|b| b as f32).collect();
            if betas.len() != train_steps || betas.len() != list.len() {
                return Error::refused(format!(
                    "the scheduler's `trained_betas` holds {} numbers, {} of them from 0 to below 1; \
                     `num_train_timesteps` asks for {train_steps} such",
                    list.len(),
                    betas.len()
                ));
            }
            return Ok(Betas::Given(betas));
        }
        let number = |key: &str, default: f64| match &self.0[key] {
            Value::Null => Ok(default),
            value => match value.as_f64().filter(valid) {
                Some(b) => Ok(b),
                None => self.refuse(key, "a number from 0 to below 1"),
            },
        };
        let (start, end) = (number("beta_start", start)?, number("beta_end", end)?);
        self.one_of("beta_schedule", schedule, &[("linear", 0), ("scaled_linear", 1), ("squaredcos_cap_v2", 2)]).map(
            |which| match which {
                0 => Betas::Linear(start, end),
                1 => Betas::ScaledLinear(start, end),
                _ => Betas::Cosine,
            },
        )
    }

    fn curve(&self, kind: Kind, karras: bool) -> Result<Curve> {
        if !matches!(kind, Kind::Euler | Kind::Dpmpp2m | Kind::UniPc) {
            return Ok(Curve::Training);
        }
        if karras {
            return Ok(Curve::Karras);
        }
        let curves = [
            ("use_karras_sigmas", Curve::Karras),
            ("use_exponential_sigmas", Curve::Exponential),
            ("use_beta_sigmas", Curve::Beta),
            ("use_lu_lambdas", Curve::Lu),
        ];
        let mut chosen = Curve::Training;
        for (key, curve) in curves {
            if (curve != Curve::Lu || kind == Kind::Dpmpp2m) && self.flag(key, false)? {
                if chosen != Curve::Training {
                    return Error::refused(format!(
                        "the scheduler's `{key}` is true beside another curve; supported: one of them"
                    ));
                }
                chosen = curve;
            }
        }
        Ok(chosen)
    }

    fn solver(&self, kind: Kind, sde: bool) -> Result<Solver> {
        let mut solver = Solver {
            order: 2,
            stochastic: false,
            heun: false,
            bh1: false,
            lower_order_final: true,
            euler_at_final: false,
            disable_corrector: Vec::new(),
        };
        if !matches!(kind, Kind::Dpmpp2m | Kind::UniPc) {
            return Ok(solver);
        }
        solver.order = self.whole("solver_order", 2, 1..=3)?;
        solver.lower_order_final = self.flag("lower_order_final", true)?;
        // Each sampler takes the other's names for its own default, as in diffusers.
        if kind == Kind::Dpmpp2m {
            solver.heun = self.one_of(
                "solver_type",
                "midpoint",
                &[("midpoint", false), ("heun", true), ("logrho", false), ("bh1", false), ("bh2", false)],
            )?;
            solver.stochastic = sde
                || self.one_of(
                    "algorithm_type",
                    "dpmsolver++",
                    &[("dpmsolver++", false), ("sde-dpmsolver++", true), ("deis", false)],
                )?;
            solver.euler_at_final = self.flag("euler_at_final", false)?;
        } else {
            solver.bh1 = self.one_of(
                "solver_type",
                "bh2",
                &[("bh2", false), ("bh1", true), ("midpoint", false), ("heun", false), ("logrho", false)],
            )?;
            solver.disable_corrector = match &self.0["disable_corrector"] {
                Value::Null => Vec::new(),
                value => match value
                    .as_array()
                    .and_then(|list| list.iter().map(|n| n.as_u64().map(|n| n as usize)).collect())
                {
                    Some(steps) => steps,
                    None => return self.refuse("disable_corrector", "a list of step numbers"),
                },
            };
        }
        Ok(solver)
    }
}
