//! What was decided: every default filled in, every size checked. The plan is also the record in the image.

use crate::request::{DeviceChoice, Embedding, Precision, Request, Rng};
use crate::samplers::Sampler;
use crate::schedule::Schedule;
use crate::stack::Stack;
use crate::subject::Subject;
use crate::{Error, Result, device, memory};
use nets::Numbers;
use serde::Serialize;
use std::collections::BTreeMap;
use tensor::ops::Products;
use tensor::{DType, Device};

/// Longest side in pixels; memory and time grow with its square and beyond.
const MAX_SIDE: u32 = 8192;
/// What InstantID was published with, for models that do not say otherwise.
const STEPS: usize = 30;
const GUIDANCE: f64 = 5.0;
const SCALE: f64 = 0.8;
/// Networks of at most this many parameters run in f32 by default.
pub(crate) const SMALL: usize = 400_000_000;

/// A generation, decided.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Version of this program.
    pub version: &'static str,
    /// What the picture shows.
    pub prompt: String,
    /// What it should not show; `None` is no text at all.
    pub negative: Option<String>,
    /// Whether brackets and colons are text.
    pub plain_prompt: bool,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance; up to 1 means off.
    pub guidance: f64,
    /// Whether the guidance is classifier-free, at twice the work; a latent consistency model takes it as an input.
    pub guided: bool,
    /// Canonical name of the sampler.
    pub sampler: &'static str,
    /// Its name in the A1111 web UI.
    pub sampler_title: &'static str,
    /// The scheduler's settings as the model's files have them.
    pub scheduler: serde_json::Value,
    /// Seed of each picture.
    pub seeds: Vec<u64>,
    /// How many pictures share a step, as far as there are so many.
    pub batch: usize,
    /// Source of noise.
    pub rng: Rng,
    /// The face, unless there is none or its weights are 0.
    pub identity: Option<IdentityPlan>,
    /// Device.
    pub device: String,
    /// Numbers of the denoising networks; all else computes in f32, but the VAE in bf16 where both these and the device
    /// are made for 16 bits.
    pub precision: String,
    /// Model files by role, with SHA-256 where known by now.
    pub models: BTreeMap<String, ModelRecord>,
    #[serde(skip)]
    pub(crate) compute: Compute,
    /// What the user may want to know about the device.
    #[serde(skip)]
    pub(crate) note: Option<String>,
}

/// Device and numbers as the operators take them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Compute {
    pub(crate) device: Device,
    /// The device of the positive half of the guidance, where it is another's work.
    pub(crate) second: Option<Device>,
    pub(crate) dtype: DType,
    /// How products of f32 are done.
    pub(crate) products: Products,
    /// Whether most linear layers of the transformers compute in 8 bits.
    pub(crate) narrow: bool,
}

/// How the face is used.
#[derive(Debug, Clone, Serialize)]
pub struct IdentityPlan {
    /// Weight of IdentityNet's residuals.
    pub identitynet_scale: f64,
    /// Weight of the identity branch of cross-attention.
    pub ip_adapter_scale: f64,
    /// Share of the steps before which IdentityNet rests.
    pub identitynet_start: f64,
    /// Share of the steps after which IdentityNet rests.
    pub identitynet_end: f64,
    /// Five keypoints in pixels of the picture, unless a ready keypoint image was given.
    pub keypoints: Option<faces::Keypoints>,
    /// How many photos the embedding is the mean of.
    pub photos: usize,
    /// Whose embedding was put in place of the photos' own, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<&'static str>,
}

/// One model of the stack.
#[derive(Debug, Clone, Serialize)]
pub struct ModelRecord {
    /// File or folder name, without its path.
    pub name: String,
    /// SHA-256 of each weight file, by name.
    pub sha256: BTreeMap<String, String>,
}

impl Plan {
    /// Checks a request and fills in its defaults.
    ///
    /// # Errors
    /// A value out of its range, by name.
    pub fn resolve(request: &Request, stack: &Stack, subject: Option<&Subject>) -> Result<Plan> {
        request.check()?;
        let (width, height) = size(request, stack, subject)?;
        let sampler = match &request.sampler {
            Some(name) => Sampler::from_name(name)?,
            None => Sampler::from_config(stack.scheduler())?,
        };
        let seed = request.seed.unwrap_or_else(random_seed);
        let parameters = stack.parameters(request.wants_identity());
        let (mut compute, mut note) = Compute::choose(request.device, request.precision, parameters)?;
        let guidance = request.guidance.or(stack.about.guidance).unwrap_or(GUIDANCE);
        let guided = guidance > 1.0 && stack.takes_guidance();
        if let Some(second) = compute.second.take_if(|_| !guided) {
            let idle = format!("{second} has nothing to do: without guidance there is no second half of a step");
            note = Some(match note {
                Some(note) => format!("{note}; {idle}"),
                None => idle,
            });
        }
        let mut plan = Plan {
            version: env!("CARGO_PKG_VERSION"),
            prompt: request.prompt.clone(),
            negative: request.negative.clone(),
            plain_prompt: request.plain_prompt,
            width,
            height,
            steps: request.steps.or(stack.about.steps).unwrap_or(STEPS),
            guidance,
            guided,
            sampler: sampler.name(),
            sampler_title: sampler.title(),
            scheduler: stack.scheduler().clone(),
            seeds: (0..request.count as u64).map(|i| seed + i).collect(),
            batch: request.batch.unwrap_or(1).min(request.count),
            rng: request.rng,
            identity: None,
            device: compute.named(),
            precision: compute.precision(),
            models: stack.records(),
            compute,
            note,
        };
        // Settings that a sampler cannot work with are refused before anything is loaded. What the model's settings ask of
        // it, such as Karras' levels, belongs to its name.
        let sampler = plan.schedule()?.sampler();
        (plan.sampler, plan.sampler_title) = (sampler.name(), sampler.title());
        if let Some(subject) = subject.filter(|_| request.wants_identity()) {
            plan.identity = Some(identity(request, stack, subject, (width, height))?);
        }
        memory::check(request, &plan, stack)?;
        Ok(plan)
    }

    /// The noise levels.
    pub(crate) fn schedule(&self) -> Result<Schedule> {
        Schedule::new(&self.scheduler, Sampler::from_name(self.sampler)?, self.steps)
    }

    /// Whether IdentityNet works in step `i`: the reference's `controlnet_keep`.
    pub(crate) fn identitynet_works(&self, i: usize, steps: usize) -> bool {
        let n = steps as f64;
        self.identity.as_ref().is_some_and(|id| {
            let rests = (i as f64) / n < id.identitynet_start || (i + 1) as f64 / n > id.identitynet_end;
            id.identitynet_scale != 0.0 && !rests
        })
    }
}

fn identity(request: &Request, stack: &Stack, subject: &Subject, size: (u32, u32)) -> Result<IdentityPlan> {
    let scale = |said: Option<f64>, own: Option<f64>| said.or(own).unwrap_or(SCALE);
    Ok(IdentityPlan {
        identitynet_scale: scale(request.identitynet_scale, stack.about.identitynet_scale),
        ip_adapter_scale: scale(request.ip_adapter_scale, stack.about.ip_adapter_scale),
        identitynet_start: request.identitynet_start,
        identitynet_end: request.identitynet_end,
        keypoints: subject.keypoints_in(size)?,
        photos: subject.photos(),
        embedding: request.embedding.as_ref().map(|embedding| match embedding {
            Embedding::Zero => "nobody's",
            Embedding::Of(_) => "another person's",
        }),
    })
}

/// The size asked for, that of a given keypoint image, or the model's own.
fn size(request: &Request, stack: &Stack, subject: Option<&Subject>) -> Result<(u32, u32)> {
    let factor = stack.vae_factor();
    let floor = |side: u32| (side / factor * factor).max(factor);
    let (width, height) = match (request.size, subject.and_then(Subject::pose_map_size)) {
        (Some(size), _) => size,
        // As the reference floors the size of the image that it is given.
        (None, Some((w, h))) => (floor(w), floor(h)),
        (None, None) => stack.default_size(),
    };
    let valid = |side: u32| (factor..=MAX_SIDE).contains(&side) && side.is_multiple_of(factor);
    if let Some(&side) = [width, height].iter().find(|side| !valid(**side)) {
        let near = floor(side.clamp(factor, MAX_SIDE));
        let nearest = match side {
            _ if side < factor => format!("{factor} is the smallest"),
            _ if side > MAX_SIDE => format!("{near} is the largest"),
            _ => format!("the nearest to {side} are {near} and {}", near + factor),
        };
        return Error::refused(format!(
            "--size is {width}x{height}; sides must be multiples of {factor} between {factor} and {MAX_SIDE}: {nearest}"
        ));
    }
    Ok((width, height))
}

impl Compute {
    /// The VAE's numbers: bf16 beside networks of 16 bits where that is many times faster, as it leaves a picture within
    /// 55 dB of f32's; elsewhere f32, which then takes no longer. Never f16, in which SDXL's own overflows.
    pub(crate) fn vae_dtype(self) -> DType {
        let narrow = self.dtype != DType::F32 && self.device.is_made_for_16_bits();
        if narrow { DType::BF16 } else { DType::F32 }
    }

    /// Whether halves of the guidance of so many latent `pixels` each are done sooner as two rows of operators than in one
    /// batch: where products are so quick that waiting at each operator's end, and fetching from another core what it has
    /// just made, take a share of the time. Elsewhere, and of few pixels, reading the weights twice costs as much or more;
    /// one thread alone waits for nobody.
    pub(crate) fn is_quicker_by_halves(self, pixels: usize) -> bool {
        /// Between the 32x32 that take longer and the 64x64 that take less.
        const ENOUGH: usize = 48 * 48;
        let tiles = self.device == Device::Cpu && self.device.is_made_for_16_bits();
        tiles && self.dtype != DType::F16 && pixels >= ENOUGH && tensor::threads() > 1
    }

    /// The device, or both, as users name them.
    pub(crate) fn named(self) -> String {
        match self.second {
            Some(second) => format!("{} and {second}", self.device),
            None => self.device.to_string(),
        }
    }

    /// The numbers of the denoising networks.
    pub(crate) fn numbers(self) -> Numbers {
        Numbers { dtype: self.dtype, products: self.products }
    }

    /// Those of networks that compute in f32 beside any.
    pub(crate) fn numbers_in_f32(self) -> Numbers {
        Numbers { dtype: DType::F32, products: self.products }
    }

    /// The VAE's; see [`Compute::vae_dtype`].
    pub(crate) fn vae_numbers(self) -> Numbers {
        Numbers { dtype: self.vae_dtype(), products: self.products }
    }

    /// The numbers of the denoising networks as users name them.
    pub(crate) fn precision(self) -> String {
        if self.narrow { "fp8".into() } else { self.numbers().to_string() }
    }

    /// Refuses 8 bits where a network was not `narrowed` to them.
    pub(crate) fn check_narrow(narrowed: bool) -> Result<()> {
        match narrowed {
            true => Ok(()),
            false => Error::refused(
                "--precision fp8 needs a Hopper card, such as H100 or H200, and cuBLASLt of CUDA 12.9 or later; use f16",
            ),
        }
    }

    /// What was asked for, and a sentence about it for the user; `parameters` of the denoising networks decide where
    /// nothing was said.
    pub(crate) fn choose(
        device: DeviceChoice,
        precision: Precision,
        parameters: usize,
    ) -> Result<(Compute, Option<String>)> {
        let (device, second, note) = device::choose(device)?;
        let dtype = device::dtype(precision, device, parameters <= SMALL)?;
        let (products, why) = device::products(precision, device);
        let note = [note, why].into_iter().flatten().reduce(|note, why| format!("{note}; {why}"));
        Ok((Compute { device, second, dtype, products, narrow: precision == Precision::Fp8 }, note))
    }
}

/// A seed below 2^32, as other programs draw them and accept them back.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hasher is seeded from the system's randomness.
    std::collections::hash_map::RandomState::new().build_hasher().finish() >> 32
}
