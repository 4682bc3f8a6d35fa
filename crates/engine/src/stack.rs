//! The files of a stack, opened: headers and configurations are read here, tensors only when a network is built.
//! Networks are built for the stage that needs them and dropped after it, so that the peak of memory is that of the
//! denoising networks alone.

use crate::about::About;
use crate::bench::Shapes;
use crate::plan::{Compute, ModelRecord};
use crate::prompt::Tokenizer;
use crate::request::{ModelPaths, Request};
use crate::{Error, Result};
use nets::{
    ClipText, ClipTextConfig, ControlNet, ControlNetConfig, Resampler, ResamplerConfig, UNet, UNetConfig, Vae,
    VaeConfig,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weights::{Folder, IpAdapter, Prediction, Weights};

/// One network's files: tensors, and the configuration where there is one.
struct Part {
    weights: Weights,
    config: Option<Value>,
}

struct TextPart {
    part: Part,
    tokenizer: Tokenizer,
}

/// Parameters of a text encoder.
pub(crate) struct TextSize {
    pub(crate) all: usize,
    /// Of the table of tokens.
    pub(crate) table: usize,
    /// Of a layer.
    pub(crate) layer: usize,
}

/// All files of a request, opened.
pub struct Stack {
    unet: Part,
    unet_config: UNetConfig,
    vae: Part,
    vae_config: VaeConfig,
    text: Vec<TextPart>,
    scheduler: Value,
    /// What a model says about itself beyond diffusers' files.
    pub(crate) about: About,
    /// diffusers' `force_zeros_for_empty_prompt`: no negative prompt means zeros rather than the encoding of "".
    pub(crate) zeros_for_no_negative: bool,
    identitynet: Option<Part>,
    adapter: Option<IpAdapter>,
    files: BTreeMap<String, (PathBuf, Vec<PathBuf>)>,
    /// The weights as they were opened, whole: marks are shared with the parts, so they tell what no part took.
    opened: Vec<Weights>,
}

impl Stack {
    /// Opens what the request needs.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another kind, in a sentence that names it.
    pub fn open(request: &Request) -> Result<Stack> {
        let paths = &request.models;
        let mut stack = match paths.base.is_dir() {
            true => Stack::from_folder(&paths.base)?,
            false => Stack::from_single_file(&paths.base, paths.config.as_deref())?,
        };
        stack.files.insert("model".into(), (paths.base.clone(), weight_files(&paths.base)));
        if request.wants_identity() {
            stack.open_identity(request, paths)?;
        }
        Ok(stack)
    }

    fn from_folder(path: &Path) -> Result<Stack> {
        let folder = Folder::open(path)?;
        let mut opened = Vec::new();
        // Tensors do not tell the number of heads, so a damaged or missing config.json is no detail to be guessed over.
        let mut part = |name: &str, read: fn(&Weights) -> weights::Result<Weights>| -> Result<Part> {
            let file = folder.weights(name)?;
            opened.push(file.clone());
            Ok(Part { weights: read(&file)?, config: Some(folder.config(name)?) })
        };
        let unet = part("unet", weights::unet)?;
        let vae = part("vae", weights::vae)?;
        let mut text = Vec::new();
        for (encoder, tokenizer) in [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")] {
            if folder.has(encoder) {
                text.push(TextPart {
                    part: part(encoder, |file| Ok(file.clone()))?,
                    tokenizer: Tokenizer::open(&folder.component(tokenizer)?)?,
                });
            }
        }
        let zeros = folder.entry("force_zeros_for_empty_prompt").and_then(Value::as_bool).unwrap_or(true);
        let about = About::open(path)?;
        Ok(Stack { opened, about, ..Stack::new(unet, vae, text, folder.config("scheduler")?, zeros)? })
    }

    fn from_single_file(path: &Path, config: Option<&Path>) -> Result<Stack> {
        let file = Weights::open(path)?;
        let parts = match weights::identify(&file) {
            weights::Kind::Sd15Checkpoint => weights::sd15_checkpoint(&file)?,
            _ => weights::sdxl_checkpoint(&file)?,
        };
        let folder = config.map(Folder::open).transpose()?;
        let config_of = |name: &str| folder.as_ref().filter(|f| f.has(name)).map(|f| f.config(name)).transpose();
        let part = |name: &str, weights: Weights| -> Result<Part> { Ok(Part { weights, config: config_of(name)? }) };
        let two = !parts.text_encoder_2.names().is_empty();
        let tokenizer = |name: &str, embedded: fn() -> Tokenizer| match &folder {
            Some(f) if f.has(name) => Tokenizer::open(&f.component(name)?),
            _ => Ok(embedded()),
        };
        let mut text = vec![TextPart {
            part: part("text_encoder", parts.text_encoder)?,
            tokenizer: tokenizer("tokenizer", Tokenizer::clip)?,
        }];
        if two {
            text.push(TextPart {
                part: part("text_encoder_2", parts.text_encoder_2)?,
                tokenizer: tokenizer("tokenizer_2", Tokenizer::clip_padded_with_zero)?,
            });
        }
        let scheduler = match config_of("scheduler")? {
            Some(scheduler) => scheduler,
            None => published_scheduler(parts.prediction, parts.zero_terminal_snr)?,
        };
        let zeros = folder.as_ref().and_then(|f| f.entry("force_zeros_for_empty_prompt")).and_then(Value::as_bool);
        let (unet, vae) = (part("unet", parts.unet)?, part("vae", parts.vae)?);
        Ok(Stack { opened: vec![file], ..Stack::new(unet, vae, text, scheduler, zeros.unwrap_or(true))? })
    }

    fn new(unet: Part, vae: Part, text: Vec<TextPart>, scheduler: Value, zeros_for_no_negative: bool) -> Result<Stack> {
        let unet_config = match &unet.config {
            Some(json) => UNetConfig::from_json(json)?,
            None => UNetConfig::infer(&unet.weights.root())?,
        };
        let vae_config = match &vae.config {
            Some(json) => VaeConfig::from_json(json)?,
            None => {
                // The two families' autoencoders have the same shapes and differ in this number.
                let published =
                    if unet_config.encoder.addition.is_some() { VaeConfig::sdxl() } else { VaeConfig::sd15() };
                VaeConfig { scaling_factor: published.scaling_factor, ..VaeConfig::infer(&vae.weights.root())? }
            }
        };
        let channels = [unet_config.encoder.in_channels, unet_config.out_channels, vae_config.latent_channels];
        if channels[0] != channels[1] || channels[1] != channels[2] {
            return Error::refused(format!(
                "the UNet takes {} channels and gives {}, and the VAE's latent has {}; they must be the same, as in every model that makes pictures from text alone",
                channels[0], channels[1], channels[2]
            ));
        }
        if !scheduler.is_object() {
            return Error::refused(format!(
                "the model's scheduler_config.json holds {scheduler}; it must be an object with named settings"
            ));
        }
        if text.is_empty() {
            return Error::refused("the model has no text encoder; Stable Diffusion 1.5 has one and SDXL two");
        }
        Ok(Stack {
            unet,
            unet_config,
            vae,
            vae_config,
            text,
            scheduler,
            about: About::default(),
            zeros_for_no_negative,
            identitynet: None,
            adapter: None,
            files: BTreeMap::new(),
            opened: Vec::new(),
        })
    }

    fn open_identity(&mut self, request: &Request, paths: &ModelPaths) -> Result<()> {
        if self.unet_config.encoder.addition.is_none() {
            return Error::refused(format!(
                "{} is not an SDXL model; InstantID's IdentityNet and adapter need one",
                paths.base.display()
            ));
        }
        // IdentityNet reads the adapter's tokens, so the Resampler is needed whichever weight is 0.
        let Some(adapter) = &paths.ip_adapter else {
            return Error::refused("a face needs the identity adapter; name it with --ip-adapter");
        };
        self.files.insert("ip_adapter".into(), (adapter.clone(), weight_files(adapter)));
        let adapter = weights::ip_adapter(adapter)?;
        self.opened.push(adapter.file.clone());
        if !request.wants_adapter() {
            // Known, and not needed.
            adapter.ip_adapter.names().iter().for_each(|name| adapter.ip_adapter.root().ignore(name));
        }
        let tokens = ResamplerConfig::infer(&adapter.image_proj.root(), adapter.config.as_ref())?.output_dim;
        let context = self.unet_config.encoder.cross_attention_dim;
        if tokens != context {
            return Error::refused(format!(
                "{}: its identity tokens have {tokens} channels and the UNet attends to {context}; the adapter is for another model",
                adapter.file.file()
            ));
        }
        if request.wants_adapter() {
            self.unet_config.check_adapter(&adapter.ip_adapter.root())?;
        }
        self.adapter = Some(adapter);
        if !request.wants_identitynet() {
            return Ok(());
        }
        let Some(path) = &paths.identitynet else {
            return Error::refused(
                "a face needs IdentityNet; name it with --identitynet, or set --identitynet-scale 0",
            );
        };
        self.files.insert("identitynet".into(), (path.clone(), weight_files(path)));
        let config = if path.is_dir() { weights::config(path)? } else { None };
        let file = Weights::open(path)?;
        self.identitynet = Some(Part { weights: weights::controlnet(&file)?, config });
        self.opened.push(file);
        Ok(())
    }

    /// Settings of the model's scheduler.
    pub(crate) fn scheduler(&self) -> &Value {
        &self.scheduler
    }

    /// Pixels for each latent pixel, along one side.
    pub(crate) fn vae_factor(&self) -> u32 {
        self.vae_config.zoom() as u32
    }

    /// Channels of a latent.
    pub(crate) fn latent_channels(&self) -> usize {
        self.unet_config.encoder.in_channels
    }

    /// Whether SDXL's sizes and pooled text go into the UNet.
    pub(crate) fn has_added(&self) -> bool {
        self.unet_config.encoder.addition.is_some()
    }

    /// Whether classifier-free guidance applies: a latent consistency model takes the weight as an input instead.
    pub(crate) fn takes_guidance(&self) -> bool {
        self.unet_config.encoder.time_cond_proj_dim.is_none()
    }

    /// Width and height that the model was made for.
    pub(crate) fn default_size(&self) -> (u32, u32) {
        let side = |v: &Value| v.as_u64().and_then(|s| u32::try_from(s).ok()).filter(|s| (1..=4096).contains(s));
        let sample = self.unet.config.as_ref().and_then(|c| c.get("sample_size"));
        let (h, w) = match sample {
            Some(Value::Array(sides)) if sides.len() == 2 => (side(&sides[0]), side(&sides[1])),
            Some(one) => (side(one), side(one)),
            None => (None, None),
        };
        let usual = if self.has_added() { 128 } else { 64 };
        (w.unwrap_or(usual) * self.vae_factor(), h.unwrap_or(usual) * self.vae_factor())
    }

    /// Parameters of the denoising networks.
    pub(crate) fn parameters(&self, with_identity: bool) -> usize {
        let identity = self.identitynet.as_ref().filter(|_| with_identity);
        count(&self.unet.weights) + identity.map_or(0, |part| count(&part.weights))
    }

    /// Parameters of the largest text encoder: they work one after the other.
    pub(crate) fn text_parameters(&self) -> usize {
        self.text.iter().map(|text| count(&text.part.weights)).max().unwrap_or(0)
    }

    /// What is known of the text encoders' sizes.
    pub(crate) fn text_sizes(&self) -> Result<Vec<TextSize>> {
        let of = |text: &TextPart| {
            let config = text_config(text)?;
            let (table, width) = (config.vocab_size * config.hidden_size, config.hidden_size);
            let layer = 4 * width * width + 2 * width * config.intermediate_size;
            Ok(TextSize { all: count(&text.part.weights), table, layer })
        };
        self.text.iter().map(of).collect()
    }

    /// Parameters of the Resampler, where there is one.
    pub(crate) fn resampler_parameters(&self) -> usize {
        self.adapter.as_ref().map_or(0, |adapter| count(&adapter.image_proj))
    }

    /// Parameters of the VAE.
    pub(crate) fn vae_parameters(&self) -> usize {
        count(&self.vae.weights)
    }

    /// The sizes of the UNet, and whether IdentityNet's residuals come beside its own.
    pub(crate) fn sizes(&self) -> (&UNetConfig, &VaeConfig, bool) {
        (&self.unet_config, &self.vae_config, self.identitynet.is_some())
    }

    /// What IdentityNet is, where there is one; what cannot be read is refused when it is built.
    pub(crate) fn identitynet_config(&self) -> Option<ControlNetConfig> {
        self.identitynet.as_ref().and_then(|part| identitynet_config(part).ok())
    }

    /// Tokenizers of the text encoders.
    pub(crate) fn tokenizers(&self) -> Vec<&Tokenizer> {
        self.text.iter().map(|t| &t.tokenizer).collect()
    }

    /// Text encoder `i`, in f32: what it rounds every step would feel. Built whole only if it is to `stay` for other
    /// requests.
    pub(crate) fn text_encoder(&self, i: usize, compute: Compute, stay: bool) -> Result<ClipText> {
        let TextPart { part, tokenizer } = &self.text[i];
        let config = text_config(&self.text[i])?;
        if tokenizer.largest_id() as usize >= config.vocab_size {
            return Error::refused(format!(
                "{}: the tokenizer has ids up to {}, but the text encoder's table has {} rows; they are not of one model",
                part.weights.file(),
                tokenizer.largest_id(),
                config.vocab_size
            ));
        }
        let (root, device, numbers) = (part.weights.root(), compute.device, compute.numbers_in_f32());
        Ok(match stay {
            true => ClipText::load(&root, &config, &device, numbers)?,
            false => ClipText::open(&root, &config, &device, numbers)?,
        })
    }

    /// Whether the identity adapter was opened.
    pub(crate) fn has_identity(&self) -> bool {
        self.adapter.is_some()
    }

    /// Whether IdentityNet was opened.
    pub(crate) fn has_identitynet(&self) -> bool {
        self.identitynet.is_some()
    }

    /// Builds the Resampler, in f32.
    pub(crate) fn resampler(&self, compute: Compute) -> Result<Resampler> {
        let Some(adapter) = &self.adapter else { return Error::refused("there is no identity adapter") };
        let root = adapter.image_proj.root();
        let config = ResamplerConfig::infer(&root, adapter.config.as_ref())?;
        Ok(Resampler::load(&root, &config, &compute.device, compute.numbers_in_f32())?)
    }

    /// Builds the UNet, with the identity branch if asked for.
    pub(crate) fn unet(&self, compute: Compute, identity_branch: bool) -> Result<UNet> {
        compute.device.run(|| {
            let mut unet =
                UNet::load(&self.unet.weights.root(), &self.unet_config, &compute.device, compute.numbers())?;
            if let Some(adapter) = self.adapter.as_ref().filter(|_| identity_branch) {
                unet.attach_identity(&adapter.ip_adapter.root())?;
            }
            if compute.narrow {
                Compute::check_narrow(unet.narrow()?)?;
            }
            Ok(unet)
        })
    }

    /// Builds IdentityNet.
    pub(crate) fn identitynet(&self, compute: Compute) -> Result<ControlNet> {
        let Some(part) = &self.identitynet else { return Error::refused("there is no IdentityNet") };
        let config = identitynet_config(part)?;
        compute.device.run(|| {
            let mut net = ControlNet::load(&part.weights.root(), &config, &compute.device, compute.numbers())?;
            if compute.narrow {
                Compute::check_narrow(net.narrow()?)?;
            }
            Ok(net)
        })
    }

    /// Builds the decoder in the numbers of [`Compute::vae_numbers`].
    pub(crate) fn vae(&self, compute: Compute) -> Result<Vae> {
        let Compute { device, .. } = compute;
        let load = || Vae::load(&self.vae.weights.root(), &self.vae_config, &device, compute.vae_numbers());
        Ok(device.run(load)?)
    }

    /// The shapes of all networks.
    pub(crate) fn shapes(&self, name: &str) -> Result<Shapes> {
        let identitynet = match &self.identitynet {
            Some(part) => identitynet_config(part)?,
            None => ControlNetConfig::beside(self.unet_config.clone(), &[16, 32, 96, 256]),
        };
        let (unet, vae) = (self.unet_config.clone(), self.vae_config.clone());
        let text = self.text.iter().map(text_config).collect::<Result<_>>()?;
        Ok(Shapes { name: name.into(), size: self.default_size(), unet, identitynet, vae, text })
    }

    /// All weights as they were opened; see [`unused`].
    pub(crate) fn opened(&self) -> Vec<Weights> {
        self.opened.clone()
    }

    /// The models by role, without digests.
    pub(crate) fn records(&self) -> BTreeMap<String, ModelRecord> {
        let name = |path: &Path| {
            path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
        };
        let record = |path: &Path| ModelRecord { name: name(path), sha256: BTreeMap::new() };
        self.files.iter().map(|(role, (path, _))| (role.clone(), record(path))).collect()
    }

    /// The weight files of each role, with the folder or file that they belong to.
    pub(crate) fn files(&self) -> &BTreeMap<String, (PathBuf, Vec<PathBuf>)> {
        &self.files
    }
}

fn identitynet_config(part: &Part) -> Result<ControlNetConfig> {
    Ok(match &part.config {
        Some(json) => ControlNetConfig::from_json(json)?,
        None => ControlNetConfig::infer(&part.weights.root())?,
    })
}

fn text_config(TextPart { part, .. }: &TextPart) -> Result<ClipTextConfig> {
    Ok(match &part.config {
        Some(json) => ClipTextConfig::from_json(json, &part.weights.root())?,
        None => ClipTextConfig::infer(&part.weights.root())?,
    })
}

/// Elements of all tensors.
fn count(weights: &Weights) -> usize {
    let root = weights.root();
    let shapes = weights.names().into_iter().filter_map(|name| root.shape(name));
    shapes.map(|shape| shape.iter().product::<usize>()).sum()
}

/// A sentence that names the first tensors which no network took; ask when all networks have been built.
pub(crate) fn unused(file: &Weights) -> Option<String> {
    let names = file.unused();
    let count = if names.len() == 1 { "1 tensor is".into() } else { format!("{} tensors are", names.len()) };
    let more = if names.len() > 5 { format!(" and {} more", names.len() - 5) } else { String::new() };
    let first = names.iter().take(5).map(|n| format!("`{}`", n.escape_debug())).collect::<Vec<_>>().join(", ");
    (!names.is_empty()).then(|| format!("{}: {count} not used: {first}{more}", file.file()))
}

/// The weight files below a model's path, two levels deep as diffusers folders are.
fn weight_files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    let entries = |path: &Path| {
        std::fs::read_dir(path).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect::<Vec<_>>()
    };
    let is_weights = |p: &PathBuf| {
        p.extension().is_some_and(|e| ["safetensors", "bin", "pt", "ckpt", "onnx"].iter().any(|x| e == *x))
    };
    let (folders, files): (Vec<_>, Vec<_>) = entries(path).into_iter().partition(|p| p.is_dir());
    let mut all: Vec<PathBuf> =
        files.into_iter().chain(folders.iter().flat_map(|f| entries(f))).filter(is_weights).collect();
    all.sort();
    all
}

/// The scheduler that SDXL is published with, for single files, which have none.
fn published_scheduler(prediction: Prediction, zero_terminal_snr: bool) -> Result<Value> {
    let prediction = match prediction {
        Prediction::Unsaid | Prediction::Epsilon => "epsilon",
        Prediction::Velocity => "v_prediction",
        Prediction::Edm => {
            return Error::refused(
                "the checkpoint uses EDM preconditioning, which is not supported; use one that predicts noise or velocity",
            );
        }
    };
    Ok(json!({
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": false,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero_terminal_snr,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "use_karras_sigmas": false,
    }))
}
