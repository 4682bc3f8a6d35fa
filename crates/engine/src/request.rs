//! What the user said.

use crate::samplers::Sampler;
use crate::{Error, Result, vram};
use std::path::PathBuf;
use tensor::Device;

/// More steps than any sampler gains from.
const MAX_STEPS: usize = 1000;
/// Pictures of one call.
const MAX_COUNT: usize = 1000;

/// A source of noise that other programs have as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rng {
    /// torch's CPU generator: what diffusers with a CPU generator and ComfyUI draw.
    #[default]
    Cpu,
    /// torch's CUDA generator: what the A1111 web UI draws on a GPU.
    Philox,
}

/// Numbers in which the networks compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// f32 for small models, bf16 for those whose f32 weights would fill an ordinary machine.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// bfloat16 weights and activations, f32 sums.
    Bf16,
    /// Single precision, but products of two numbers as three of bf16, on processors with AMX; elsewhere single precision.
    Bf16x3,
    /// Half precision, on a GPU.
    F16,
    /// Half precision, but 8 bits in most linear layers of the transformers, on a Hopper.
    Fp8,
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best there is.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
    /// Everything on the first of two devices, but of a step with guidance only the negative half; the second takes the
    /// positive one at the same time.
    Halves(Device, Device),
}

/// Where keypoints come from when not from the face's own photo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pose {
    /// A photo or a saved identity.
    Face(PathBuf),
    /// A ready keypoint image.
    Map(PathBuf),
}

/// An embedding in place of the faces' own, whose keypoints stay: the controls that show what identity rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Embedding {
    /// Nobody: zeros, which is also what the negative half of guidance is told.
    Zero,
    /// Somebody else: a photo or a saved identity.
    Of(PathBuf),
}

/// The files of the stack, already found on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelPaths {
    /// A diffusers folder or a single-file checkpoint.
    pub base: PathBuf,
    /// For a single file: a diffusers folder whose `config.json` files say what tensors cannot (head widths, scheduler).
    pub config: Option<PathBuf>,
    /// IdentityNet; needed unless its scale is 0 or there is no face.
    pub identitynet: Option<PathBuf>,
    /// The identity adapter with its Resampler; needed with a face unless both scales are 0.
    pub ip_adapter: Option<PathBuf>,
    /// The folder with detector and encoder; needed where a photo is given.
    pub face_models: Option<PathBuf>,
}

/// A request for pictures, as said; [`crate::Plan::resolve`] decides the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What the picture shows.
    pub prompt: String,
    /// What it should not show. `None` differs from an empty text: see `force_zeros_for_empty_prompt` of SDXL.
    pub negative: Option<String>,
    /// Take brackets and colons in prompts as text.
    pub plain_prompt: bool,
    /// Photos or saved identities of one person; none for a picture from text alone.
    pub faces: Vec<PathBuf>,
    /// Which face of each photo, by size, the largest being 0; the largest, with a note where there are several, if not given.
    pub face_index: Option<usize>,
    /// Keypoints from elsewhere.
    pub pose: Option<Pose>,
    /// Another embedding than the faces' own.
    pub embedding: Option<Embedding>,
    /// The files of the stack.
    pub models: ModelPaths,
    /// Weight of IdentityNet's residuals; by default what the model's files or InstantID say.
    pub identitynet_scale: Option<f64>,
    /// Weight of the identity branch of cross-attention; by default what the model's files or InstantID say.
    pub ip_adapter_scale: Option<f64>,
    /// Share of the steps before which IdentityNet rests.
    pub identitynet_start: f64,
    /// Share of the steps after which IdentityNet rests.
    pub identitynet_end: f64,
    /// Denoising steps; by default what the model's files or InstantID say.
    pub steps: Option<usize>,
    /// Classifier-free guidance; 1 or less switches it off. By default what the model's files or InstantID say.
    pub guidance: Option<f64>,
    /// A sampler's name; by default what the model's scheduler says.
    pub sampler: Option<String>,
    /// Width and height in pixels; by default the size the model was made for.
    pub size: Option<(u32, u32)>,
    /// The first picture's seed; drawn if not given.
    pub seed: Option<u64>,
    /// How many pictures; picture i has seed + i.
    pub count: usize,
    /// How many pictures share a step; if not given four of small networks on the CPU, else one.
    pub batch: Option<usize>,
    /// Source of noise.
    pub rng: Rng,
    /// Where to compute.
    pub device: DeviceChoice,
    /// In which numbers to compute.
    pub precision: Precision,
    /// A file in which digests of model files are remembered.
    pub digest_cache: Option<PathBuf>,
    /// Bytes of memory that the work can have, where known; what clearly needs more is refused.
    pub memory: Option<u64>,
    /// Bytes of a GPU's memory that the process may take; what is free if not given.
    pub vram: Option<u64>,
}

impl Request {
    /// A request in which nothing but the prompt is said.
    pub fn new(prompt: impl Into<String>, models: ModelPaths) -> Request {
        Request {
            prompt: prompt.into(),
            negative: None,
            plain_prompt: false,
            faces: Vec::new(),
            face_index: None,
            pose: None,
            embedding: None,
            models,
            identitynet_scale: None,
            ip_adapter_scale: None,
            identitynet_start: 0.0,
            identitynet_end: 1.0,
            steps: None,
            guidance: None,
            sampler: None,
            size: None,
            seed: None,
            count: 1,
            batch: None,
            rng: Rng::Cpu,
            device: DeviceChoice::Auto,
            precision: Precision::Auto,
            digest_cache: None,
            memory: None,
            vram: None,
        }
    }

    /// What can be told without any model: photos that cannot be opened, numbers out of their range, options that lack
    /// the one they belong to. [`crate::Plan::resolve`] asks too; asking before models are looked for spares the user a
    /// sentence about those.
    ///
    /// # Errors
    /// The first thing that cannot be used, by name.
    pub fn check(&self) -> Result<()> {
        self.check_photos()?;
        between("--steps", self.steps.unwrap_or(1), 1, MAX_STEPS)?;
        between("--count", self.count, 1, MAX_COUNT)?;
        between("--batch", self.batch.unwrap_or(1), 1, MAX_COUNT)?;
        between("--guidance", self.guidance.unwrap_or(1.0), 0.0, 100.0)?;
        between("--identitynet-scale", self.identitynet_scale.unwrap_or(1.0), 0.0, 10.0)?;
        between("--ip-adapter-scale", self.ip_adapter_scale.unwrap_or(1.0), 0.0, 10.0)?;
        between("--identitynet-start", self.identitynet_start, 0.0, 1.0)?;
        between("--identitynet-end", self.identitynet_end, 0.0, 1.0)?;
        if self.identitynet_start > self.identitynet_end {
            return Error::refused(format!(
                "--identitynet-start {} is after --identitynet-end {}; it must not be",
                self.identitynet_start, self.identitynet_end
            ));
        }
        if let Some(seed) = self.seed.filter(|seed| seed.checked_add(self.count as u64 - 1).is_none()) {
            return Error::refused(format!(
                "--seed {seed} leaves no room for {} pictures; use a smaller seed",
                self.count
            ));
        }
        self.sampler.as_deref().map(Sampler::from_name).transpose()?;
        vram::check(self.vram, self.device)
    }

    /// The same request for its pictures from the `done`th on, whose seeds count up from `seed`.
    pub(crate) fn rest(&self, seed: u64, done: usize) -> Request {
        Request { seed: Some(seed + done as u64), count: self.count - done, ..self.clone() }
    }

    fn check_photos(&self) -> Result<()> {
        if let Some(Embedding::Of(path)) = &self.embedding {
            faces::readable(path)?;
        }
        let unread = |path: &PathBuf| Some((path.display().to_string(), Err(faces::readable(path).err()?)));
        let unread: Vec<_> = self.faces.iter().filter_map(unread).collect();
        if !unread.is_empty() && unread.len() == self.faces.len() {
            faces::average(unread)?;
        }
        match &self.pose {
            Some(_) if self.faces.is_empty() => Error::refused("a pose was given but no face; add --face PHOTO"),
            Some(Pose::Face(path) | Pose::Map(path)) => Ok(faces::readable(path)?),
            None => match self.face_index {
                Some(index) if self.faces.is_empty() => {
                    Error::refused(format!("--face-index {index} was given but no face; add --face PHOTO"))
                }
                _ => Ok(()),
            },
        }
    }

    /// Whether the request has a face that has any weight.
    pub fn wants_identity(&self) -> bool {
        !self.faces.is_empty() && (self.wants_identitynet() || self.wants_adapter())
    }

    /// Whether IdentityNet has any weight.
    pub fn wants_identitynet(&self) -> bool {
        self.identitynet_scale != Some(0.0)
    }

    /// Whether the identity branch of cross-attention has any weight.
    pub(crate) fn wants_adapter(&self) -> bool {
        self.ip_adapter_scale != Some(0.0)
    }

    /// Whether a photo has to be looked at, which takes the face models: saved identities do without.
    pub fn needs_face_models(&self) -> bool {
        let pose = match &self.pose {
            Some(Pose::Face(path)) => Some(path),
            _ => None,
        };
        let other = match &self.embedding {
            Some(Embedding::Of(path)) => Some(path),
            _ => None,
        };
        self.wants_identity() && self.faces.iter().chain(pose).chain(other).any(|path| !faces::Identity::sniff(path))
    }
}

/// Refuses a value out of its range, NaN among them.
fn between<T: PartialOrd + std::fmt::Display + Copy>(name: &str, value: T, low: T, high: T) -> Result<()> {
    if value >= low && value <= high {
        return Ok(());
    }
    Error::refused(format!("{name} is {value}; it must be between {low} and {high}"))
}
