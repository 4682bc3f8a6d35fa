//! `sameface generate`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::{
    Device, DeviceChoice, Event, ModelPaths, Output, Picture, Plan, Pose, Precision, Request, Rng, Session, Stage,
};
use hub::{HubConfig, Role};
use serde_json::{Value, json};

use crate::cli::{DeviceArg, GenerateArgs, MachineArgs, PictureArgs, PrecisionArg, RngArg};
use crate::fault::Fault;
use crate::likeness::Likeness;
use crate::people::Drawn;
use crate::stack::{self, Given};
use crate::{memory, models, output, people, threads};

pub(crate) fn run(args: &GenerateArgs) -> Result<(), Fault> {
    threads::limit(args.machine.threads)?;
    let mut drawn = Drawn::new();
    work(args, &mut drawn).map_err(|fault| fault.reworded(|sentence| drawn.in_words(sentence)))
}

fn work(args: &GenerateArgs, drawn: &mut Drawn) -> Result<(), Fault> {
    let config = models::config()?;
    let mut request = request(args);
    request.faces = faces_of(args, drawn)?;
    if let Some(Pose::Face(pose)) = &mut request.pose {
        *pose = drawn.file(pose)?;
    }
    // What was given comes before what is missing: a photo that is not there is named even where no model is.
    request.check()?;
    let target = engine::Target::new(args.output.as_deref().unwrap_or(Path::new(".")))?;
    args.save_latent.as_deref().map(engine::Target::check_file).transpose()?;
    request.models = model_paths(args, &config, &request)?;
    // Each picture is written when it is finished: who stops a long run keeps what was made.
    let mut saved = Vec::new();
    // Only pictures of the built-in models are looked at once more.
    let keep = stack::is_built_in(&request.models.base);
    let mut save = |picture: Picture, plan: &Plan| {
        let path = target.save(&picture, plan)?;
        let latent = args.save_latent.as_deref().map(|file| numbered(file, picture.seed, plan.seeds.len()));
        let latent = latent.map(|file| picture.save_latent(&file)).transpose()?;
        saved.push((path, latent, picture.seed, keep.then_some(picture)));
        Ok(())
    };
    let mut notes = told_of_models(&request);
    notes.iter().for_each(|note| output::say(&format!("note: {note}")));
    let output = make(&request, drawn, &mut notes, &mut save);
    if output.is_err() {
        saved.iter().for_each(|(path, ..)| output::say(&format!("made before: {}", path.display())));
    }
    let output = output?;
    let likeness = Likeness::open(&request)?;
    let asked = output.plan.identity.as_ref().and_then(|identity| identity.keypoints.as_ref());
    let images = saved.into_iter().map(|(path, latent, seed, picture)| {
        let likeness = picture.map(|picture| likeness.of(&picture, asked)).transpose()?.flatten();
        Ok(Image { path, latent, seed, likeness })
    });
    let images = images.collect::<Result<Vec<_>, Fault>>()?;
    let judged = !args.json && images.iter().any(|image| image.likeness.is_some());
    let scale = if judged { likeness.scale()? } else { None };
    tell(args, &output, &images, &notes, scale, drawn)
}

/// The files of the person: photos and identities as named, drawings made, and what a folder holds, of which a saved
/// identity stands for its pictures.
fn faces_of(args: &GenerateArgs, drawn: &mut Drawn) -> Result<Vec<PathBuf>, Fault> {
    let mut files = Vec::new();
    for face in &args.face {
        match face.is_dir() {
            false => files.push(drawn.file(face)?),
            true => {
                let mut found = people::pictures_of(face)?;
                if found.first().is_some_and(|first| faces::Identity::sniff(first)) {
                    found.truncate(1);
                }
                files.extend(found);
            }
        }
    }
    Ok(files)
}

fn request(args: &GenerateArgs) -> Request {
    let mut request = begin(&args.prompt, &args.picture, &args.machine);
    request.plain_prompt = args.plain_prompt;
    request.face_index = args.face_index;
    request.pose = match (&args.pose, &args.pose_map) {
        (Some(path), _) => Some(Pose::Face(path.clone())),
        (None, Some(path)) => Some(Pose::Map(path.clone())),
        (None, None) => None,
    };
    request.identitynet_start = args.identitynet_start.unwrap_or(request.identitynet_start);
    request.identitynet_end = args.identitynet_end.unwrap_or(request.identitynet_end);
    request.seed = args.seed;
    request.count = args.count.unwrap_or(request.count);
    request.batch = args.batch;
    request.rng = match args.rng {
        Some(RngArg::Philox) => Rng::Philox,
        Some(RngArg::Cpu) | None => Rng::Cpu,
    };
    request
}

/// A request with what every command that makes pictures is told.
pub(crate) fn begin(prompt: &str, picture: &PictureArgs, machine: &MachineArgs) -> Request {
    let mut request = Request::new(prompt, ModelPaths::default());
    request.negative = picture.negative.clone();
    request.size = picture.size.map(|size| (size.width, size.height));
    request.steps = picture.steps;
    request.guidance = picture.guidance;
    request.sampler = picture.sampler.clone();
    request.identitynet_scale = picture.identitynet_scale;
    request.ip_adapter_scale = picture.ip_adapter_scale;
    request.device = device(machine.device);
    request.precision = precision(machine.precision);
    request.memory = memory::available();
    request.vram = machine.vram;
    // Without it, every picture would read all model files once more for its record.
    request.digest_cache = Some(models::cache().join("digests.json"));
    request
}

pub(crate) fn device(arg: Option<DeviceArg>) -> DeviceChoice {
    match arg {
        None | Some(DeviceArg::Auto) => DeviceChoice::Auto,
        Some(DeviceArg::Cpu) => DeviceChoice::Cpu,
        Some(DeviceArg::Cuda(n)) => DeviceChoice::Cuda(n),
        Some(DeviceArg::Two(one, other)) => DeviceChoice::Halves(Device::Cuda(one), Device::Cuda(other)),
    }
}

pub(crate) fn precision(arg: Option<PrecisionArg>) -> Precision {
    match arg {
        None | Some(PrecisionArg::Auto) => Precision::Auto,
        Some(PrecisionArg::F32) => Precision::F32,
        Some(PrecisionArg::Bf16) => Precision::Bf16,
        Some(PrecisionArg::Bf16x3) => Precision::Bf16x3,
        Some(PrecisionArg::F16) => Precision::F16,
        Some(PrecisionArg::Fp8) => Precision::Fp8,
    }
}

/// Finds what the request needs and no more: text alone needs no face models.
fn model_paths(args: &GenerateArgs, config: &HubConfig, request: &Request) -> Result<ModelPaths, Fault> {
    let given = Given::from(&args.models);
    let identity = request.wants_identity();
    stack::find(config, &given, |role| match role {
        Role::Base => true,
        Role::IpAdapter => identity,
        Role::IdentityNet => identity && request.wants_identitynet(),
        Role::FaceModels => request.needs_face_models(),
    })
}

/// What the user may want to know of the models before they work.
fn told_of_models(request: &Request) -> Vec<String> {
    let built_in = stack::is_built_in(&request.models.base);
    let nobody = (built_in && request.faces.is_empty()).then(|| {
        "the built-in models draw characters and nothing else; --face cast:1000001 shows one, and `sameface models pull instantid` brings models for everything else".to_string()
    });
    let identities = request.faces.iter().filter(|face| faces::Identity::sniff(face));
    nobody.into_iter().chain(identities.filter_map(|face| stack::foreign(face, built_in))).collect()
}

/// A picture that was made and saved.
struct Image {
    path: PathBuf,
    latent: Option<PathBuf>,
    seed: u64,
    likeness: Option<f64>,
}

/// Runs the request with a bar for the steps; `notes` are said, and kept for `--json`.
fn make(
    request: &Request,
    drawn: &Drawn,
    notes: &mut Vec<String>,
    save: &mut dyn FnMut(Picture, &Plan) -> engine::Result<()>,
) -> Result<Output, Fault> {
    let bar = output::bar(0, false);
    let mut since = None;
    let mut observe = |event: Event| {
        match event {
            Event::Begin(stage) => {
                bar.set_message(stage.label());
                if stage == Stage::Denoise {
                    since.get_or_insert_with(Instant::now);
                }
            }
            Event::Note(note) => {
                let note = drawn.in_words(&note);
                bar.suspend(|| output::say(&format!("note: {note}")));
                notes.push(note);
            }
            Event::Step { image, together, images, step, steps } => {
                let done = (image * steps + together * step) as u64;
                bar.set_length((images * steps) as u64);
                bar.set_position(done);
                let left = since.get_or_insert_with(Instant::now).elapsed().as_secs_f64() / done as f64
                    * ((images * steps) as u64 - done) as f64;
                bar.set_prefix(output::time_left(left));
            }
        }
        ControlFlow::Continue(())
    };
    let made = Session::open(request, false).and_then(|mut session| session.generate_each(request, &mut observe, save));
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

fn tell(
    args: &GenerateArgs,
    output: &Output,
    images: &[Image],
    notes: &[String],
    scale: Option<(f64, f64)>,
    drawn: &Drawn,
) -> Result<(), Fault> {
    if !args.json {
        for Image { path, latent, seed, likeness } in images {
            output::line(&path.display().to_string())?;
            if let Some(latent) = latent {
                output::say(&format!("latent in {}", latent.display()));
            }
            if args.seed.is_none() {
                output::say(&format!("seed {seed}"));
            }
            if let (Some(likeness), Some(face)) = (likeness, args.face.first()) {
                output::say(&format!("likeness to {}: {likeness:.2}", face.display()));
            }
        }
        if let Some((same, others)) = scale {
            output::say(&format!(
                "on that scale other drawings of the same person have {same:.2}, drawings of other people {others:.2}; the judge is a network that steered nothing"
            ));
        }
        return Ok(());
    }
    let image = |image: &Image| {
        let mut value = json!({"path": image.path.display().to_string(), "seed": image.seed});
        if let Some(latent) = &image.latent {
            value["latent"] = json!(latent.display().to_string());
        }
        // Only where it was measured.
        if let Some(likeness) = image.likeness {
            value["likeness"] = json!(likeness);
        }
        value
    };
    let images: Vec<Value> = images.iter().map(image).collect();
    let words = |sentence: &str| drawn.in_words(sentence);
    let photos: Vec<Value> = output
        .photos
        .iter()
        .map(|p| json!({"photo": words(&p.name), "skipped": p.skipped.as_deref().map(words), "notices": p.notices.iter().map(|n| words(n)).collect::<Vec<_>>(), "likeness": p.likeness}))
        .collect();
    output::json(
        &json!({"images": images, "plan": output.plan, "photos": photos, "notes": notes, "timings": output.timings}),
    )
}
