//! From a request to pictures.

use crate::event::{Event, Observer, Stage};
use crate::networks::Networks;
use crate::plan::Plan;
use crate::request::{Request, Rng};
use crate::samplers::{self, Driver};
use crate::session::Session;
use crate::stack::Stack;
use crate::subject::Subject;
use crate::text::{self, Text};
use crate::{Error, Result, digest};
use nets::Vae;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::time::Instant;
use tensor::random::{Generator, Source};
use tensor::{DType, Device, Tensor};

/// Above this many pixels the VAE decodes in tiles: the whole picture's activations would fill memory.
pub(crate) const UNTILED_PIXELS: u64 = 1536 * 1536;
/// Tile and overlap of the VAE in latent pixels, as diffusers has them for SDXL.
pub(crate) const TILE: (usize, usize) = (128, 32);

/// A finished picture.
pub struct Picture {
    /// The seed that made it.
    pub seed: u64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Red, green and blue, row by row.
    pub rgb: Vec<u8>,
    /// The sampler's result, `[h, w, c]` in f32, before the VAE's scaling.
    pub(crate) latent: Tensor,
}

/// What a request made.
pub struct Output {
    /// The pictures in order of their seeds.
    pub pictures: Vec<Picture>,
    /// What was decided, with the digests of all model files.
    pub plan: Plan,
    /// What was found in each photo.
    pub photos: Vec<faces::SourceReport>,
    /// Milliseconds by stage, and `step_ms`, the mean of a denoising step.
    pub timings: BTreeMap<&'static str, f64>,
}

/// Runs a request by itself, with the least memory. `observe` hears of everything and may stop the work between two steps.
///
/// # Errors
/// What the user gave cannot be used ([`Error::is_user_fault`]), or something failed here.
pub fn generate(request: &Request, observe: &mut Observer) -> Result<Output> {
    go_on(observe(Event::Begin(Stage::Faces)))?;
    request.check()?;
    Session::open(request, false)?.generate(request, observe)
}

impl Session {
    /// Runs a request on what the session holds.
    ///
    /// # Errors
    /// As [`generate`].
    pub fn generate(&mut self, request: &Request, observe: &mut Observer) -> Result<Output> {
        let mut pictures = Vec::new();
        let mut keep = |picture, _: &Plan| {
            pictures.push(picture);
            Ok(())
        };
        let done = self.generate_each(request, observe, &mut keep)?;
        Ok(Output { pictures, ..done })
    }

    /// All of a request on one device.
    pub(crate) fn attempt(&mut self, request: &Request, observe: &mut Observer, take: &mut Taker) -> Result<Output> {
        self.check(request)?;
        let mut clock = Clock::default();
        clock.begin(Stage::Faces, observe)?;
        for note in self.stack.about.notes(request) {
            go_on(observe(Event::Note(note)))?;
        }
        let subject = Subject::resolve(request, self.analyzer())?;
        let mut plan = Plan::resolve(request, &self.stack, subject.as_ref())?;
        let arranged = self.arrange(request, &mut plan)?;

        clock.begin(Stage::Text, observe)?;
        let conditions = Conditions::new(&plan, subject.as_ref(), self)?;
        self.release();

        clock.begin(Stage::Load, observe)?;
        // The VAE too: small, and after the long work a damaged file would cost that work.
        self.vae(plan.compute)?;
        let opened = self.stack.opened();
        let roles = self.stack.files().clone();
        let (branch, identitynet) = plan.uses();
        self.denoisers(plan.compute, branch, identitynet)?;
        // Only now: reading gigabytes beside the loading would make it wait.
        self.settle(plan.compute);
        let digests = start_digests(request, &self.stack);
        // All networks have been built by now, so what no network took is known.
        let unused = self.unused(&opened);
        let mut networks = Networks::build(&plan, self)?;
        let notes = subject.iter().flat_map(|s| s.notes()).chain(&conditions.text.notes).chain(&plan.note).cloned();
        for note in notes.chain(unused).chain(arranged) {
            go_on(observe(Event::Note(note)))?;
        }

        let mut digests = Some(digests);
        let mut rest = plan.batches();
        // The last ones, mostly the only one, are decoded when the other networks have made room.
        let last = rest.pop().unwrap_or_default();
        for images in rest {
            clock.begin(Stage::Denoise, observe)?;
            let latents = denoise(&plan, &mut networks, &conditions, images.clone(), observe)?;
            clock.begin(Stage::Decode, observe)?;
            plan.fill_digests(&roles, digests.take())?;
            // What a step leaves for reuse has other sizes than the decoder asks for.
            tensor::trim_above(0);
            for (row, image) in images.enumerate() {
                take(decode(networks.vae, latents.rows(row, 1)?, plan.seeds[image])?, &plan)?;
            }
        }
        clock.begin(Stage::Denoise, observe)?;
        let latents = denoise(&plan, &mut networks, &conditions, last.clone(), observe)?;
        drop(networks);
        self.release();
        clock.begin(Stage::Decode, observe)?;
        plan.fill_digests(&roles, digests.take())?;
        for (row, image) in last.enumerate() {
            take(decode(self.vae(plan.compute)?, latents.rows(row, 1)?, plan.seeds[image])?, &plan)?;
        }
        self.release();
        let timings = clock.finish(plan.seeds.len() * plan.steps);
        let photos = subject.map(Subject::into_reports).unwrap_or_default();
        Ok(Output { pictures: Vec::new(), plan, photos, timings })
    }
}

/// What a finished picture is handed to, with the plan that made it.
pub(crate) type Taker<'a> = dyn FnMut(Picture, &Plan) -> Result<()> + 'a;

fn go_on(flow: ControlFlow<()>) -> Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

/// Milliseconds of each stage, summed over the pictures.
#[derive(Default)]
struct Clock {
    current: Option<(Stage, Instant)>,
    times: BTreeMap<&'static str, f64>,
}

impl Clock {
    fn begin(&mut self, stage: Stage, observe: &mut Observer) -> Result<()> {
        self.end();
        self.current = Some((stage, Instant::now()));
        go_on(observe(Event::Begin(stage)))
    }

    fn end(&mut self) {
        if let Some((last, since)) = self.current.take() {
            *self.times.entry(last.key()).or_default() += since.elapsed().as_secs_f64() * 1e3;
        }
    }

    fn finish(mut self, steps: usize) -> BTreeMap<&'static str, f64> {
        self.end();
        let denoise = self.times.get(Stage::Denoise.key()).copied().unwrap_or_default();
        self.times.insert("step_ms", denoise / steps.max(1) as f64);
        self.times
    }
}

/// Model files by role, with the file or folder that they belong to.
type Roles = BTreeMap<String, (std::path::PathBuf, Vec<std::path::PathBuf>)>;

type Digests = std::thread::JoinHandle<Result<BTreeMap<std::path::PathBuf, String>>>;

/// Digests of the model files are made while the networks work.
fn start_digests(request: &Request, stack: &Stack) -> Digests {
    let files: Vec<_> = stack.files().values().flat_map(|(_, files)| files.clone()).collect();
    let cache = request.digest_cache.clone();
    std::thread::spawn(move || digest::of_files(&files, cache.as_deref()))
}

impl Plan {
    /// The pictures that share their steps, by their places.
    fn batches(&self) -> Vec<Range<usize>> {
        let all = self.seeds.len();
        (0..all).step_by(self.batch.max(1)).map(|first| first..(first + self.batch.max(1)).min(all)).collect()
    }

    /// Whether the identity branch and IdentityNet have any weight.
    pub(crate) fn uses(&self) -> (bool, bool) {
        self.identity.as_ref().map_or((false, false), |id| (id.ip_adapter_scale != 0.0, id.identitynet_scale != 0.0))
    }

    /// Waits for the digests, unless that has been done.
    fn fill_digests(&mut self, roles: &Roles, digests: Option<Digests>) -> Result<()> {
        let Some(digests) = digests else { return Ok(()) };
        let digests = digests.join().map_err(|_| Error::Refused("reading the model files failed".into()))??;
        for (role, (base, files)) in roles {
            let Some(record) = self.models.get_mut(role) else { continue };
            for file in files {
                let name = file.strip_prefix(base).ok().filter(|n| n.as_os_str() != "");
                let name = name.map_or_else(|| record.name.clone(), |n| n.display().to_string());
                if let Some(digest) = digests.get(file) {
                    record.sha256.insert(name, digest.clone());
                }
            }
        }
        Ok(())
    }
}

/// What the pictures of a request are conditioned on.
pub(crate) struct Conditions {
    pub(crate) text: Text,
    /// Identity tokens, and the picture that IdentityNet reads.
    pub(crate) identity: Option<(Tensor, Tensor)>,
}

impl Conditions {
    fn new(plan: &Plan, subject: Option<&Subject>, session: &mut Session) -> Result<Conditions> {
        let device = plan.compute.device;
        let text = text::encode(plan, session)?;
        let identity = match (subject, session.resampler(plan.compute)?) {
            (Some(subject), Some(resampler)) => {
                let tokens = subject.tokens(resampler, plan.guided, &device)?;
                Some((tokens, subject.hint((plan.width, plan.height), &device, plan.compute.dtype)?))
            }
            _ => None,
        };
        Ok(Conditions { text, identity })
    }
}

/// Samples the latents `[pictures, h, w, c]` of `images`, given by their places.
fn denoise(
    plan: &Plan,
    networks: &mut Networks,
    conditions: &Conditions,
    images: Range<usize>,
    observe: &mut Observer,
) -> Result<Tensor> {
    networks.prepare(plan, conditions, images.len())?;
    let schedule = plan.schedule()?;
    let total = schedule.len();
    let mut noise = Noise::new(plan, networks, &plan.seeds[images.clone()]);
    let first = noise.draw()?;
    let (first_image, together) = (images.start, images.len());
    let mut driver = Driver {
        model: &mut |step, x, timestep| {
            let identitynet_works = plan.identitynet_works(step, total);
            let out = plan.compute.device.run(|| networks.predict(plan, x, timestep, identitynet_works))?;
            // So that progress and stopping speak of what is done, not of what a GPU was asked to do.
            plan.compute.device.synchronize()?;
            Ok(out)
        },
        noise: &mut || noise.draw(),
        observer: &mut |step| {
            let (step, images) = (step.index + 1, plan.seeds.len());
            observe(Event::Step { image: first_image, together, images, step, steps: total })
        },
    };
    samplers::sample(&schedule, &first, &mut driver)
}

/// Noise of the pictures' latents, each drawn from its own seed as torch draws it: channel by channel. Which pictures share
/// a step therefore changes no noise.
struct Noise {
    generators: Vec<Generator>,
    /// Height, width, channels.
    shape: [usize; 3],
    device: Device,
}

impl Noise {
    fn new(plan: &Plan, networks: &Networks, seeds: &[u64]) -> Noise {
        let source = match plan.rng {
            Rng::Cpu => Source::Cpu,
            Rng::Philox => Source::Philox,
        };
        let [h, w] = [plan.height, plan.width].map(|side| (side / networks.factor) as usize);
        let shape = [h, w, networks.latent_channels];
        let generators = seeds.iter().map(|seed| Generator::new(source, *seed)).collect();
        Noise { generators, shape, device: plan.compute.device }
    }

    fn draw(&mut self) -> Result<Tensor> {
        let [h, w, c] = self.shape;
        let mut pixels = Vec::with_capacity(self.generators.len() * h * w * c);
        for generator in &mut self.generators {
            let planes = generator.randn(h * w * c);
            pixels.extend((0..h * w * c).map(|i| planes[i % c * h * w + i / c]));
        }
        Ok(Tensor::from_f32(&self.device, DType::F32, &[self.generators.len(), h, w, c], &pixels)?)
    }
}

/// A latent `[1, h, w, c]` to `[1, H, W, 3]`, about -1 to 1; in tiles where it is large.
pub(crate) fn decode_latent(vae: &Vae, latent: &Tensor) -> Result<Tensor> {
    let scaled = vae.to_decoder(latent)?;
    let pixels = (latent.dim(1) * latent.dim(2) * vae.config().zoom().pow(2)) as u64;
    Ok(latent.device().run(|| match pixels > UNTILED_PIXELS {
        true => vae.decode_tiled(&scaled, TILE.0, TILE.1),
        false => vae.decode(&scaled),
    })?)
}

/// A latent to its picture.
fn decode(vae: &Vae, latent: Tensor, seed: u64) -> Result<Picture> {
    let image = decode_latent(vae, &latent)?;
    let [_, h, w, c] = image.dims4()?;
    if c != 3 {
        return Error::refused(format!("the VAE makes pictures of {c} channels; three are needed"));
    }
    let values = image.to_vec_f32()?;
    if values.iter().any(|x| !x.is_finite()) {
        return Err(Error::NotFinite("the decoded picture"));
    }
    // As diffusers: to [0, 1], clamped, times 255, halves to even.
    let byte = |x: f32| ((x * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let rgb = values.into_iter().map(byte).collect();
    Ok(Picture { seed, width: w as u32, height: h as u32, rgb, latent })
}

impl Picture {
    /// Writes the latent as safetensors, named `latent`, `[1, c, h, w]` in f32 as torch has it; under a numbered name
    /// where there is something of this one already. Returns the name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_latent(&self, path: &std::path::Path) -> Result<std::path::PathBuf> {
        let [_, h, w, c] = self.latent.dims4()?;
        let values = self.latent.cast(DType::F32)?.to_vec_f32()?;
        let planes = (0..c).flat_map(|ch| (0..h * w).map(move |i| i * c + ch)).map(|i| values[i]);
        let bytes: Vec<u8> = planes.flat_map(f32::to_le_bytes).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, c, h, w], &bytes);
        let file = view.and_then(|view| safetensors::serialize([("latent", view)], None));
        let file = file.map_err(|e| Error::Refused(format!("the latent could not be written: {e}")))?;
        crate::save::write_beside(path, &file)
    }
}
