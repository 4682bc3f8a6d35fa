//! The denoising networks at work: both halves of the guidance in one batch, or each as work of its own, on a device of its
//! own or on the processor's threads.

use crate::generate::Conditions;
use crate::plan::Plan;
use crate::repeat::Repeated;
use crate::session::Session;
use crate::text::Text;
use crate::{Error, Result};
use nets::{ControlNet, ControlNetContext, UNet, UNetContext, Vae};
use std::sync::{Mutex, PoisonError};
use tensor::{Device, Tensor, ops};

/// UNet, and IdentityNet where it is asked for.
pub(crate) type Nets<'a> = (&'a UNet, Option<&'a ControlNet>);

/// The denoising networks with everything that does not change between steps.
pub(crate) struct Networks<'a> {
    /// Where all rows are computed, or the negative ones; then where the positive ones are.
    parts: Vec<Part<'a>>,
    pub(crate) vae: &'a Vae,
    pub(crate) latent_channels: usize,
    pub(crate) factor: u32,
    ip_adapter_scale: f32,
    identitynet_scale: f32,
}

/// Networks on a device, for all rows of a step or for one half of the guidance.
struct Part<'a> {
    device: Device,
    nets: Nets<'a>,
    /// For so many pictures as share a step now.
    contexts: Option<Contexts>,
}

/// What does not change between the steps of a batch.
struct Contexts {
    pictures: usize,
    unet: UNetContext,
    identitynet: Option<ControlNetContext>,
    /// A step without IdentityNet and one with it.
    steps: Mutex<[Repeated; 2]>,
}

impl<'a> Networks<'a> {
    pub(crate) fn build(plan: &Plan, session: &'a mut Session) -> Result<Networks<'a>> {
        let scales = plan.identity.as_ref().map_or((0.0, 0.0), |id| (id.identitynet_scale, id.ip_adapter_scale));
        let (identitynet_scale, ip_adapter_scale) = (scales.0 as f32, scales.1 as f32);
        let (latent_channels, factor) = (session.stack.latent_channels(), session.stack.vae_factor());
        let (branch, identitynet) = plan.uses();
        let (nets, beside, vae) = session.denoisers(plan.compute, branch, identitynet)?;
        let devices = std::iter::once(plan.compute.device).chain(plan.compute.second);
        let parts = devices.zip(std::iter::once(nets).chain(beside));
        let mut parts: Vec<Part> = parts.map(|(device, nets)| Part { device, nets, contexts: None }).collect();
        let pixels = [plan.width, plan.height].map(|side| (side / factor) as usize).iter().product();
        if plan.guided && parts.len() == 1 && plan.compute.is_quicker_by_halves(pixels) {
            parts.push(Part { device: plan.compute.device, nets, contexts: None });
        }
        Ok(Networks { parts, vae, latent_channels, factor, ip_adapter_scale, identitynet_scale })
    }

    /// Computes what does not change between the steps of so many `pictures`, unless that has been done.
    pub(crate) fn prepare(&mut self, plan: &Plan, conditions: &Conditions, pictures: usize) -> Result<()> {
        let alone = self.parts.len() == 1;
        each_at_once(plan.compute.device, &mut self.parts, |half, part| {
            if part.contexts.as_ref().is_some_and(|contexts| contexts.pictures == pictures) {
                return Ok(());
            }
            // Their memory first.
            part.contexts = None;
            part.contexts = Some(part.contexts(plan, conditions, (!alone).then_some(half), pictures)?);
            Ok(())
        })?;
        Ok(())
    }

    /// The guided prediction for scaled latents `[pictures, h, w, c]` at a step.
    pub(crate) fn predict(&self, plan: &Plan, x: &Tensor, timestep: f32, identitynet_works: bool) -> Result<Tensor> {
        let scales = (self.ip_adapter_scale, self.identitynet_scale);
        let (pictures, here) = (x.dim(0), plan.compute.device);
        let x = if plan.guided && self.parts.len() == 1 { ops::repeat_rows(x, 2)? } else { x.clone() };
        // To the other before anything is asked of this one: reading it waits for all that was.
        let inputs = self.parts.iter().map(|part| x.to_device(&part.device)).collect::<tensor::Result<Vec<_>>>()?;
        let mut work: Vec<_> = self.parts.iter().zip(&inputs).collect();
        let outs = each_at_once(here, &mut work, |_, (part, x)| part.predict(x, timestep, identitynet_works, scales))?;
        let (negative, positive) = match &outs[..] {
            // The next step writes to the result's memory, and a sampler may still want this one.
            [out] if !plan.guided => return Ok(ops::scale(out, 1.0)?),
            [out] => (out.rows(0, pictures)?, out.rows(pictures, pictures)?),
            [negative, positive] => (negative.clone(), positive.to_device(&here)?),
            _ => return Error::refused("a step was asked for without networks"),
        };
        // negative + guidance * (positive - negative), Ho and Salimans 2022
        Ok(ops::combine(&[((1.0 - plan.guidance) as f32, &negative), (plan.guidance as f32, &positive)])?)
    }
}

impl Part<'_> {
    /// Contexts of all rows, or of a `half` of the guidance.
    fn contexts(&self, plan: &Plan, conditions: &Conditions, half: Option<usize>, pictures: usize) -> Result<Contexts> {
        let Part { device, nets: (unet, identitynet), .. } = self;
        let own = half.map(|half| conditions.text.half(half, device)).transpose()?;
        let Text { tokens, added, .. } = own.as_ref().unwrap_or(&conditions.text).of(pictures)?;
        let identity = conditions.identity.as_ref().map(|(tokens, hint)| {
            let tokens = half.map_or_else(|| Ok(tokens.clone()), |half| tokens.rows(half, 1)?.to_device(device))?;
            Ok::<_, Error>((each(&tokens, pictures)?, hint.to_device(device)?))
        });
        let identity = identity.transpose()?;
        let (branch, _) = plan.uses();
        let branch = identity.as_ref().map(|(tokens, _)| tokens).filter(|_| branch);
        let mut context = device.run(|| unet.context(&tokens, branch, added.as_ref()))?;
        unet.set_guidance(&mut context, plan.guidance as f32)?;
        let identitynet = match (identitynet, &identity) {
            (Some(net), Some((tokens, hint))) => Some(device.run(|| net.context(tokens, added.as_ref(), hint))?),
            _ => None,
        };
        Ok(Contexts { pictures, unet: context, identitynet, steps: Mutex::default() })
    }

    /// The networks' predictions for these rows. A GPU is asked for them and not waited for.
    fn predict(&self, x: &Tensor, timestep: f32, identitynet_works: bool, scales: (f32, f32)) -> Result<Tensor> {
        let (unet, identitynet) = self.nets;
        let Some(Contexts { unet: context, identitynet: beside, steps, .. }) = &self.contexts else {
            return Error::refused("a step was asked for before its contexts were made");
        };
        let beside = identitynet.zip(beside.as_ref()).filter(|_| identitynet_works);
        let mut inputs = vec![x.clone(), unet.time(timestep, context)?];
        if let Some((net, context)) = beside {
            inputs.push(net.time(timestep, context)?);
        }
        let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        let work = |inputs: &[Tensor]| {
            let residuals = || {
                let at = |(net, context): (&ControlNet, &ControlNetContext)| {
                    net.forward_at(&inputs[0], &inputs[2], context, scales.1)
                };
                beside.map(at).transpose()
            };
            Ok(unet.forward_beside(&inputs[0], &inputs[1], context, scales.0, residuals)?)
        };
        let which = usize::from(beside.is_some());
        match steps[which].call(self.device, &inputs, work) {
            // Records keep memory to themselves; without them there may be enough.
            Err(error) if error.is_out_of_memory() && steps.iter().any(Repeated::is_recorded) => {
                steps.iter_mut().for_each(Repeated::give_up);
                steps[which].call(self.device, &inputs, work)
            }
            out => out,
        }
    }
}

/// Does the same with each part at once, of which there are at most two. On the processor both are of the same threads;
/// each GPU is asked for its work by a thread of its own, of which the first is this one.
pub(crate) fn each_at_once<T: Send, R: Send>(
    device: Device,
    parts: &mut [T],
    work: impl Fn(usize, &mut T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let work = &work;
    let (one, other) = match parts {
        [one, other] if device == Device::Cpu => tensor::at_once(|| work(0, one), || work(1, other)),
        [one, other] => std::thread::scope(|scope| {
            let other = scope.spawn(|| work(1, other));
            let stopped = |_| Error::refused("the second device's thread stopped unexpectedly");
            (work(0, one), other.join().unwrap_or_else(stopped))
        }),
        parts => return parts.iter_mut().enumerate().map(|(i, part)| work(i, part)).collect(),
    };
    Ok(vec![one?, other?])
}

/// Each row of a condition `[halves, ..]` once for each picture: `[halves * pictures, ..]`, half by half.
pub(crate) fn each(x: &Tensor, pictures: usize) -> Result<Tensor> {
    if pictures == 1 {
        return Ok(x.clone());
    }
    let halves = (0..x.dim(0)).map(|half| ops::repeat_rows(&x.rows(half, 1)?, pictures));
    Ok(ops::concat_rows(&halves.collect::<tensor::Result<Vec<_>>>()?.iter().collect::<Vec<_>>())?)
}
