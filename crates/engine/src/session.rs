//! Networks built from a stack: each when it is first needed, and kept or dropped after its stage.

use crate::networks::Nets;
use crate::plan::{Compute, Plan, SMALL};
use crate::request::{ModelPaths, Request};
use crate::stack::{self, Stack};
use crate::vram::Arrangement;
use crate::{Error, Result, memory};
use faces::FaceAnalyzer;
use nets::{ClipText, ControlNet, Resampler, UNet, Vae};
use tensor::Device;
use weights::Weights;

/// More pictures share a step only where the user says so: each waits for all.
const MOST_TOGETHER: usize = 4;

/// The files of a stack and the networks built from them so far. One session makes one picture after another; it
/// belongs to one thread.
pub struct Session {
    pub(crate) stack: Stack,
    models: ModelPaths,
    keep: bool,
    /// With what the denoising networks and the VAE were built.
    compute: Option<Compute>,
    /// What of the networks waits on the host.
    pub(crate) arrangement: Arrangement,
    analyzer: Option<FaceAnalyzer>,
    text: Vec<Option<ClipText>>,
    resampler: Option<Resampler>,
    denoisers: Denoisers,
    /// The same once more, for the half of the guidance that a second device takes.
    second: Denoisers,
    vae: Option<Vae>,
}

impl Session {
    /// Opens the files that `request` needs. With `keep`, networks stay for later requests, which may need less than
    /// the first but not more; without, each is dropped after its stage, for the least memory.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another kind, in a sentence that names it.
    pub fn open(request: &Request, keep: bool) -> Result<Session> {
        let stack = Stack::open(request)?;
        let text = stack.tokenizers().iter().map(|_| None).collect();
        Ok(Session {
            stack,
            models: request.models.clone(),
            keep,
            compute: None,
            arrangement: Arrangement::default(),
            analyzer: None,
            text,
            resampler: None,
            denoisers: Denoisers::default(),
            second: Denoisers::default(),
            vae: None,
        })
    }

    /// Refuses a request for which this session has not the files.
    pub(crate) fn check(&self, request: &Request) -> Result<()> {
        if request.models.base != self.models.base {
            return Error::refused(format!(
                "the session holds {}, not {}; open another one",
                self.models.base.display(),
                request.models.base.display()
            ));
        }
        match request.wants_identity() && !self.stack.has_identity() {
            true => Error::refused("the session was opened without a face; open another one"),
            false => Ok(()),
        }
    }

    /// Decides what of the networks stays on a GPU, and says it where some does not.
    ///
    /// # Errors
    /// What the request needs at the least does not fit there.
    pub(crate) fn arrange(&mut self, request: &Request, plan: &mut Plan) -> Result<Option<String>> {
        let compute = plan.compute;
        self.settle(compute);
        if request.batch.is_none() && self.gains_together(plan) {
            plan.batch = request.count.min(MOST_TOGETHER);
        }
        if compute.device == Device::Cpu {
            self.arrangement = Arrangement::default();
            return Ok(request.vram.map(|_| "--vram has no effect, as the CPU computes".to_string()));
        }
        let needs = memory::needs(plan, &self.stack, self.keep)?;
        let what = format!("--size {}x{}", plan.width, plan.height);
        let arranged = memory::arrange(&needs, &what, compute, request.vram, request.memory)?;
        let Some((arrangement, there)) = arranged else { return Ok(None) };
        compute.device.limit_memory(request.vram.map(|_| there as usize))?;
        if std::mem::replace(&mut self.arrangement, arrangement) != arrangement {
            self.drop_all();
        }
        Ok(arrangement.sentence(there, needs.always + needs.once))
    }

    /// Whether pictures gain by sharing their steps, where the user does not say: small networks on the CPU do; large ones,
    /// which fill it alone, would only make the first picture wait, and so would an H200, which takes as long for each.
    fn gains_together(&self, plan: &Plan) -> bool {
        plan.compute.device == Device::Cpu && self.stack.parameters(plan.identity.is_some()) <= SMALL
    }

    /// Drops all networks that were built.
    pub(crate) fn drop_all(&mut self) {
        self.drop_denoisers();
        (self.vae, self.resampler) = (None, None);
        self.text.iter_mut().for_each(|encoder| *encoder = None);
    }

    /// Drops what was built for another device or for other numbers.
    pub(crate) fn settle(&mut self, compute: Compute) {
        if let Some(built) = self.compute.replace(compute).filter(|built| *built != compute) {
            self.drop_denoisers();
            self.vae = None;
            if (built.device, built.numbers_in_f32()) != (compute.device, compute.numbers_in_f32()) {
                self.resampler = None;
                self.text.iter_mut().for_each(|encoder| *encoder = None);
            }
        }
    }

    /// Where networks were built last.
    pub(crate) fn device(&self) -> Option<Device> {
        self.compute.map(|compute| compute.device)
    }

    /// Where the face networks go when the first photo needs them.
    pub(crate) fn analyzer(&mut self) -> &mut Option<FaceAnalyzer> {
        &mut self.analyzer
    }

    pub(crate) fn text_encoder(&mut self, i: usize, compute: Compute) -> Result<&ClipText> {
        if !self.keep {
            // One encoder at a time.
            self.text.iter_mut().for_each(|encoder| *encoder = None);
        }
        let Session { stack, text, keep, arrangement, .. } = self;
        built(&mut text[i], || compute.device.parking(arrangement.others, || stack.text_encoder(i, compute, *keep)))
    }

    pub(crate) fn resampler(&mut self, compute: Compute) -> Result<Option<&Resampler>> {
        let Session { stack, resampler, arrangement, .. } = self;
        match stack.has_identity() {
            true => {
                built(resampler, || compute.device.parking(arrangement.others, || stack.resampler(compute))).map(Some)
            }
            false => Ok(None),
        }
    }

    /// The denoising networks: the UNet, with the identity branch if asked for, and IdentityNet if asked for; the same on the
    /// second device, where there is one; and the VAE.
    pub(crate) fn denoisers(
        &mut self,
        compute: Compute,
        branch: bool,
        identitynet: bool,
    ) -> Result<(Nets<'_>, Option<Nets<'_>>, &Vae)> {
        self.settle(compute);
        // A kept UNet has the branch from the start, as a later request may want it; weight 0 costs it nothing.
        let branch = branch || (self.keep && self.stack.has_identity());
        let Session { stack, denoisers, second, vae, arrangement, .. } = self;
        let (stack, wanted) = (&*stack, (branch, identitynet));
        let nets = arrangement.nets;
        let here = move || compute.device.parking(nets, move || denoisers.built(stack, compute, wanted));
        let (nets, beside) = match compute.second {
            // Both read their files at the same time.
            Some(device) => std::thread::scope(|scope| {
                let there = scope.spawn(|| second.built(stack, Compute { device, ..compute }, wanted));
                let nets = here()?;
                let beside =
                    there.join().unwrap_or_else(|_| Error::refused("loading networks stopped unexpectedly"))?;
                Ok::<_, Error>((nets, Some(beside)))
            })?,
            None => (here()?, None),
        };
        Ok((nets, beside, built(vae, || stack.vae(compute))?))
    }

    fn drop_denoisers(&mut self) {
        (self.denoisers, self.second) = (Denoisers::default(), Denoisers::default());
    }

    pub(crate) fn vae(&mut self, compute: Compute) -> Result<&Vae> {
        self.settle(compute);
        let Session { stack, vae, .. } = self;
        built(vae, || stack.vae(compute))
    }

    /// Sentences about tensors that no network took; none while a network that would take some is still to be built.
    pub(crate) fn unused(&self, opened: &[Weights]) -> Vec<String> {
        let complete = !self.keep || !self.stack.has_identitynet() || self.denoisers.identitynet.is_some();
        if complete { opened.iter().filter_map(stack::unused).collect() } else { Vec::new() }
    }

    /// Ends a stage: drops its networks unless they are kept, and gives memory back.
    pub(crate) fn release(&mut self) {
        if !self.keep {
            self.text.iter_mut().for_each(|encoder| *encoder = None);
            // The VAE stays: it is small, and needed at the end.
            self.drop_denoisers();
            self.resampler = None;
            tensor::trim();
        }
    }
}

/// The denoising networks of one device, as far as they were built.
#[derive(Default)]
struct Denoisers {
    unet: Option<UNet>,
    identitynet: Option<ControlNet>,
}

impl Denoisers {
    /// The UNet, with the identity `branch` if asked for, and IdentityNet if asked for.
    fn built(&mut self, stack: &Stack, compute: Compute, (branch, identitynet): (bool, bool)) -> Result<Nets<'_>> {
        if self.unet.as_ref().is_some_and(|unet| branch && !unet.has_identity()) {
            self.unet = None;
        }
        let unet = built(&mut self.unet, || stack.unet(compute, branch))?;
        let net = match identitynet {
            true => Some(built(&mut self.identitynet, || stack.identitynet(compute))?),
            false => None,
        };
        Ok((unet, net))
    }
}

/// What the slot holds, built first if it holds nothing.
fn built<T>(slot: &mut Option<T>, build: impl FnOnce() -> Result<T>) -> Result<&T> {
    match slot {
        Some(network) => Ok(network),
        None => Ok(slot.insert(build()?)),
    }
}
