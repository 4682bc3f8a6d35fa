//! `sameface generate`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::{DeviceChoice, Event, ModelPaths, Output, Pose, Precision, Request, Rng, Stage};
use hub::{HubConfig, Role};
use serde_json::{Value, json};

use crate::cli::{DeviceArg, GenerateArgs, PrecisionArg, RngArg};
use crate::fault::Fault;
use crate::{memory, models, output, threads};

pub(crate) fn run(args: &GenerateArgs) -> Result<(), Fault> {
    threads::limit(args.threads)?;
    let config = models::config()?;
    let mut request = request(args, &config);
    // What was given comes before what is missing: a photo that is not there is named even where no model is.
    request.check()?;
    let target = engine::Target::new(args.output.as_deref().unwrap_or(Path::new(".")))?;
    args.save_latent.as_deref().map(engine::Target::check_file).transpose()?;
    request.models = model_paths(args, &config, &request)?;
    let output = make(&request)?;
    let mut images = Vec::new();
    for picture in &output.pictures {
        let path = target.save(picture, &output.plan)?;
        if let Some(file) = &args.save_latent {
            picture.save_latent(&numbered(file, picture.seed, output.pictures.len()))?;
        }
        images.push((path, picture.seed));
    }
    tell(args, &output, &images)
}

fn request(args: &GenerateArgs, config: &HubConfig) -> Request {
    let mut request = Request::new(args.prompt.clone(), ModelPaths::default());
    request.negative = args.negative.clone();
    request.plain_prompt = args.plain_prompt;
    request.faces = args.face.clone();
    request.face_index = args.face_index;
    request.pose = match (&args.pose, &args.pose_map) {
        (Some(path), _) => Some(Pose::Face(path.clone())),
        (None, Some(path)) => Some(Pose::Map(path.clone())),
        (None, None) => None,
    };
    request.identitynet_scale = args.identitynet_scale;
    request.ip_adapter_scale = args.ip_adapter_scale;
    request.identitynet_start = args.identitynet_start.unwrap_or(request.identitynet_start);
    request.identitynet_end = args.identitynet_end.unwrap_or(request.identitynet_end);
    request.steps = args.steps;
    request.guidance = args.guidance;
    request.sampler = args.sampler.clone();
    request.size = args.size.map(|size| (size.width, size.height));
    request.seed = args.seed;
    request.count = args.count.unwrap_or(request.count);
    request.rng = match args.rng {
        Some(RngArg::Philox) => Rng::Philox,
        Some(RngArg::Cpu) | None => Rng::Cpu,
    };
    request.device = device(args.device);
    request.precision = precision(args.precision);
    request.memory = memory::available();
    request.digest_cache = config.models.as_ref().and_then(|m| Some(m.parent()?.join("digests.json")));
    request
}

pub(crate) fn device(arg: Option<DeviceArg>) -> DeviceChoice {
    match arg {
        None | Some(DeviceArg::Auto) => DeviceChoice::Auto,
        Some(DeviceArg::Cpu) => DeviceChoice::Cpu,
        Some(DeviceArg::Cuda(n)) => DeviceChoice::Cuda(n),
    }
}

pub(crate) fn precision(arg: Option<PrecisionArg>) -> Precision {
    match arg {
        None | Some(PrecisionArg::Auto) => Precision::Auto,
        Some(PrecisionArg::F32) => Precision::F32,
        Some(PrecisionArg::Bf16) => Precision::Bf16,
        Some(PrecisionArg::F16) => Precision::F16,
    }
}

/// Finds what the request needs and no more: text alone needs no face models.
fn model_paths(args: &GenerateArgs, config: &HubConfig, request: &Request) -> Result<ModelPaths, Fault> {
    let find = |role: Role, given: &Option<String>| hub::locate(config, role, given.as_deref()).map(|found| found.path);
    let when = |needed: bool, role: Role, given: &Option<String>| needed.then(|| find(role, given)).transpose();
    let identity = request.wants_identity();
    Ok(ModelPaths {
        base: find(Role::Base, &args.model)?,
        config: args.model_config.clone(),
        ip_adapter: when(identity, Role::IpAdapter, &args.ip_adapter)?,
        identitynet: when(identity && request.wants_identitynet(), Role::IdentityNet, &args.identitynet)?,
        face_models: when(request.needs_face_models(), Role::FaceModels, &args.face_models)?,
    })
}

/// Runs the request with a bar for the steps.
fn make(request: &Request) -> Result<Output, Fault> {
    let bar = output::bar(0, false);
    let mut since = Instant::now();
    let mut observe = |event: Event| {
        match event {
            Event::Begin(stage) => {
                bar.set_message(stage.label());
                if stage == Stage::Denoise {
                    since = Instant::now();
                }
            }
            Event::Note(note) => bar.suspend(|| output::say(&format!("note: {note}"))),
            Event::Step { image, images, step, steps } => {
                let done = (image * steps + step) as u64;
                bar.set_length((images * steps) as u64);
                bar.set_position(done);
                let left = since.elapsed().as_secs_f64() / done as f64 * ((images * steps) as u64 - done) as f64;
                bar.set_prefix(output::time_left(left));
            }
        }
        ControlFlow::Continue(())
    };
    let made = engine::generate(request, &mut observe);
    bar.finish_and_clear();
    Ok(made?)
}

/// With several pictures, each latent's name has its seed.
fn numbered(file: &Path, seed: u64, count: usize) -> PathBuf {
    if count == 1 {
        return file.to_path_buf();
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let end = file.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    file.with_file_name(format!("{stem}-{seed}{end}"))
}

fn tell(args: &GenerateArgs, output: &Output, images: &[(PathBuf, u64)]) -> Result<(), Fault> {
    if !args.json {
        for (path, seed) in images {
            output::line(&path.display().to_string())?;
            if args.seed.is_none() {
                output::say(&format!("seed {seed}"));
            }
        }
        return Ok(());
    }
    let images: Vec<Value> =
        images.iter().map(|(path, seed)| json!({"path": path.display().to_string(), "seed": seed})).collect();
    let photos: Vec<Value> = output
        .photos
        .iter()
        .map(|p| json!({"photo": p.name, "skipped": p.skipped, "notices": p.notices, "likeness": p.likeness}))
        .collect();
    output::json(&json!({"images": images, "plan": output.plan, "photos": photos, "timings": output.timings}))
}
