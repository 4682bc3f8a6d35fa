//! One denoising step of IdentityNet and UNet with guidance, so with a batch of two.

use super::{BenchRequest, Measured, Shapes, Time, rate, tensor_peak_mb, timed, values};
use crate::memory::Denoising;
use crate::networks::each_at_once;
use crate::plan::Compute;
use crate::repeat::Repeated;
use crate::vram::Arrangement;
use crate::{Error, Result, digest, memory};
use nets::{Added, ControlNet, ControlNetContext, UNet, UNetContext};
use serde_json::json;
use std::sync::{Mutex, PoisonError};
use tensor::ops::{self, Products};
use tensor::{DType, Device, Tensor};
use weights::Weights;

/// Identity tokens of InstantID.
const IDENTITY_TOKENS: usize = 16;
/// Text tokens of one chunk.
pub(super) const TEXT_TOKENS: usize = 77;
/// Rows: what is asked for, and what guidance leads away from.
const BATCH: usize = 2;

/// Times a step on random weights.
///
/// # Errors
/// A size or device that is not valid, what clearly does not fit into memory, no memory.
pub fn step(shapes: &Shapes, request: &BenchRequest) -> Result<Measured> {
    let size = request.size(shapes)?;
    let compute = request.compute(shapes.parameters())?;
    let pixels = u64::from(size.0) * u64::from(size.1) / (shapes.vae.zoom() as u64).pow(2);
    let weights = shapes.parameters() + memory::transformed(&shapes.unet, Some(&shapes.identitynet), compute);
    let need = weights as u64 * memory::bytes(compute.dtype)
        + memory::step(&shapes.unet.encoder, true, BATCH as u64 * pixels, compute.dtype);
    let what = format!("a step of {} at {}x{}", shapes.name, size.0, size.1);
    let nets = Denoising { unet: &shapes.unet, net: Some(&shapes.identitynet), branch: true, compute };
    let arrangement = request.arrange(&what, &nets.needs(shapes.denoisers(), BATCH as u64 * pixels), need, compute)?;

    let (load_ms, (unet, net)) = timed(|| build(shapes, compute, arrangement))?;
    let nets = (&unet, Some(&net));
    let inputs = Inputs::new(shapes, size, compute)?;
    let (context_ms, contexts) = timed(|| inputs.contexts(nets))?;
    let runs = request.repeat(compute.device, || inputs.step(nets, &contexts).map(|_| ()))?;
    let result = digest::of_numbers(&inputs.step(nets, &contexts)?.to_vec_f32()?);
    let operators = request.operators(compute.device, || inputs.plain(nets, &contexts).map(|_| ()))?;
    let mut setting = request.setting(&shapes.name, Some(size), compute);
    if request.error {
        let exact = Compute { dtype: DType::F32, products: Products::Whole, narrow: false, ..compute };
        compute.device.limit_memory(None)?;
        let (unet, net) = build(shapes, exact, arrangement)?;
        let exact = (&unet, Some(&net));
        let got = inputs.plain(nets, &contexts)?.to_vec_f32()?;
        let want = inputs.plain(exact, &inputs.contexts(exact)?)?.to_vec_f32()?;
        setting.insert("error_beside_f32".into(), json!(distance(&got, &want)));
    }
    setting.insert("halves_at_once".into(), json!(inputs.parts.len() > 1));
    setting.insert("result_sha256".into(), json!(result));
    if arrangement.waiting > 0 {
        setting.insert("waiting_mb".into(), json!(arrangement.waiting as f64 / 1e6));
        setting.insert("passing_mb".into(), json!(arrangement.passing as f64 / 1e6));
    }
    setting.insert("recorded".into(), json!(inputs.obstacle().is_none()));
    if let Some(why) = inputs.obstacle().filter(|_| compute.device != Device::Cpu) {
        setting.insert("not_recorded".into(), json!(why));
    }
    let tensor_peak_mb = tensor_peak_mb(compute.device)?;
    drop((contexts, inputs, unet, net));
    Ok(Measured {
        title: format!("a denoising step of {}, {}x{}", shapes.name, size.0, size.1),
        setting,
        times: vec![
            Time { key: "step_ms", label: "step", ms: runs.median_ms },
            Time { key: "first_step_ms", label: "first step, with what is done once", ms: context_ms + runs.first_ms },
            Time { key: "load_ms", label: "making the networks", ms: load_ms },
        ],
        rate: rate(runs.flop, runs.median_ms, compute)?,
        operators,
        page_faults: runs.page_faults,
        tensor_peak_mb,
    })
}

/// UNet with the identity branch, and IdentityNet, of random weights.
fn build(shapes: &Shapes, compute: Compute, arrangement: Arrangement) -> Result<(UNet, ControlNet)> {
    compute.device.parking(arrangement.nets, || build_here(shapes, compute))
}

fn build_here(shapes: &Shapes, compute: Compute) -> Result<(UNet, ControlNet)> {
    let random = Weights::random(1);
    let mut unet = UNet::load(&random.root(), &shapes.unet, &compute.device, compute.numbers())?;
    unet.attach_identity(&random.root())?;
    let mut net = ControlNet::load(&random.root(), &shapes.identitynet, &compute.device, compute.numbers())?;
    if compute.narrow {
        Compute::check_narrow(unet.narrow()? && net.narrow()?)?;
    }
    Ok((unet, net))
}

/// The norm of the difference over the norm of what it should be.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let apart: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    (apart / want.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// What a step works on: both halves of the guidance in one batch, or each by itself, as a generation has them.
pub(super) struct Inputs {
    device: Device,
    parts: Vec<Part>,
}

/// So many rows of a step.
struct Part {
    text: Tensor,
    identity: Tensor,
    added: Option<Added>,
    hint: Tensor,
    latent: Tensor,
    repeated: Mutex<Repeated>,
}

/// UNet, and IdentityNet where there is one.
pub(super) type Nets<'a> = (&'a UNet, Option<&'a ControlNet>);
/// What they compute once for a picture and a part.
pub(super) type Contexts = (UNetContext, Option<ControlNetContext>);

impl Inputs {
    pub(super) fn new(shapes: &Shapes, size: (u32, u32), compute: Compute) -> Result<Inputs> {
        let whole = Part::new(shapes, size, compute)?;
        let [_, h, w, _] = whole.latent.dims4()?;
        let whole = Inputs { device: compute.device, parts: vec![whole] };
        if compute.is_quicker_by_halves(h * w) { whole.halves() } else { Ok(whole) }
    }

    /// The same, each row by itself.
    fn halves(&self) -> Result<Inputs> {
        let rows = self.parts.iter().flat_map(|part| (0..part.latent.dim(0)).map(|row| part.row(row)));
        Ok(Inputs { device: self.device, parts: rows.collect::<Result<_>>()? })
    }

    pub(super) fn contexts(&self, nets: Nets) -> Result<Vec<Contexts>> {
        each_at_once(self.device, &mut self.parts.iter().collect::<Vec<_>>(), |_, part| part.contexts(nets))
    }

    /// A step as a generation does it: always of the same networks and contexts.
    pub(super) fn step(&self, nets: Nets, contexts: &[Contexts]) -> Result<Tensor> {
        let mut work: Vec<_> = self.parts.iter().zip(contexts).collect();
        guide(&each_at_once(self.device, &mut work, |_, (part, contexts)| part.step(nets, contexts))?)
    }

    /// The networks' part of a step, never recorded and one half after the other.
    fn plain(&self, nets: Nets, contexts: &[Contexts]) -> Result<Tensor> {
        let work = self.parts.iter().zip(contexts);
        guide(&work.map(|(part, contexts)| part.plain(nets, contexts)).collect::<Result<Vec<_>>>()?)
    }

    /// Why steps are not replayed from a record.
    fn obstacle(&self) -> Option<String> {
        self.parts.iter().find_map(Part::obstacle)
    }
}

/// What a step makes of the halves' predictions.
fn guide(outs: &[Tensor]) -> Result<Tensor> {
    let rows = outs.iter().flat_map(|out| (0..out.dim(0)).map(|row| out.rows(row, 1)));
    match &rows.collect::<tensor::Result<Vec<_>>>()?[..] {
        [negative, positive] => Ok(ops::combine(&[(-4.0, negative), (5.0, positive)])?),
        rows => Error::refused(format!("a step has two halves, not {}", rows.len())),
    }
}

impl Part {
    fn new(shapes: &Shapes, (width, height): (u32, u32), compute: Compute) -> Result<Part> {
        let (encoder, zoom) = (&shapes.unet.encoder, shapes.vae.zoom());
        let (w, h) = (width as usize / zoom, height as usize / zoom);
        let of = |shape: &[usize]| values(&compute.device, shape);
        let sizes = [height as f32, width as f32, 0.0, 0.0, height as f32, width as f32];
        let pooled = encoder.addition.as_ref().map(|addition| {
            // As the network itself tells it from the pooled text, where the configuration does not.
            let pooled = shapes.text.last().map(|text| text.projection_dim.unwrap_or(text.hidden_size));
            let numbers =
                addition.time_embed_dim.or(pooled.map(|pooled| addition.input_dim.saturating_sub(pooled) / 6));
            addition.input_dim.saturating_sub(6 * numbers.unwrap_or(0))
        });
        let added = match pooled {
            Some(width) => Some(Added { pooled: of(&[BATCH, width])?, time_ids: vec![sizes; BATCH] }),
            None => None,
        };
        Ok(Part {
            text: of(&[BATCH, TEXT_TOKENS, encoder.cross_attention_dim])?,
            identity: of(&[BATCH, IDENTITY_TOKENS, encoder.cross_attention_dim])?,
            hint: of(&[1, height as usize, width as usize, shapes.identitynet.conditioning_channels])?,
            latent: of(&[BATCH, h, w, encoder.in_channels])?,
            repeated: Mutex::default(),
            added,
        })
    }

    /// One of its rows by itself.
    fn row(&self, row: usize) -> Result<Part> {
        let added = self.added.as_ref().map(|added| {
            Ok::<_, Error>(Added { pooled: added.pooled.rows(row, 1)?, time_ids: vec![added.time_ids[row]] })
        });
        Ok(Part {
            text: self.text.rows(row, 1)?,
            identity: self.identity.rows(row, 1)?,
            hint: self.hint.clone(),
            latent: self.latent.rows(row, 1)?,
            repeated: Mutex::default(),
            added: added.transpose()?,
        })
    }

    fn contexts(&self, (unet, net): Nets) -> Result<Contexts> {
        let identity = Some(&self.identity).filter(|_| unet.has_identity());
        let net = net.map(|net| net.context(&self.identity, self.added.as_ref(), &self.hint)).transpose()?;
        Ok((unet.context(&self.text, identity, self.added.as_ref())?, net))
    }

    fn step(&self, nets: Nets, contexts: &Contexts) -> Result<Tensor> {
        let embedded = embed(nets, contexts)?;
        let inputs: Vec<&Tensor> = std::iter::once(&self.latent).chain(&embedded).collect();
        let mut repeated = self.repeated.lock().unwrap_or_else(PoisonError::into_inner);
        repeated.call(*self.latent.device(), &inputs, |inputs| predict(nets, contexts, inputs))
    }

    fn obstacle(&self) -> Option<String> {
        self.repeated.lock().unwrap_or_else(PoisonError::into_inner).obstacle()
    }

    fn plain(&self, nets: Nets, contexts: &Contexts) -> Result<Tensor> {
        let inputs: Vec<Tensor> = std::iter::once(self.latent.clone()).chain(embed(nets, contexts)?).collect();
        predict(nets, contexts, &inputs)
    }
}

/// What the networks are told of the time: the UNet, then IdentityNet.
fn embed((unet, net): Nets, (context, beside): &Contexts) -> Result<Vec<Tensor>> {
    let mut embedded = vec![unet.time(500.0, context)?];
    if let Some((net, context)) = net.zip(beside.as_ref()) {
        embedded.push(net.time(500.0, context)?);
    }
    Ok(embedded)
}

/// What the networks make of a latent and what [`embed`] gave.
fn predict((unet, net): Nets, (context, beside): &Contexts, inputs: &[Tensor]) -> Result<Tensor> {
    let at = |(net, context): (&ControlNet, &ControlNetContext)| net.forward_at(&inputs[0], &inputs[2], context, 0.8);
    let residuals = || net.zip(beside.as_ref()).map(at).transpose();
    Ok(unet.forward_beside(&inputs[0], &inputs[1], context, 0.8, residuals)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceChoice, Precision};

    #[test]
    fn halves_at_once_are_the_bytes_of_one_batch() {
        let shapes = Shapes::named("tiny").unwrap();
        for precision in [Precision::F32, Precision::Bf16, Precision::Bf16x3] {
            let (compute, _) = Compute::choose(DeviceChoice::Cpu, precision, 0).unwrap();
            let (unet, net) = build_here(&shapes, compute).unwrap();
            let nets = (&unet, Some(&net));
            let part = Part::new(&shapes, (64, 96), compute).unwrap();
            let whole = Inputs { device: Device::Cpu, parts: vec![part] };
            let halves = whole.halves().unwrap();
            let [one, two, in_turn] = [(&whole, true), (&halves, true), (&halves, false)].map(|(inputs, at_once)| {
                let contexts = inputs.contexts(nets).unwrap();
                let work = || if at_once { inputs.step(nets, &contexts) } else { inputs.plain(nets, &contexts) };
                Device::Cpu.run(work).unwrap().to_vec_f32().unwrap()
            });
            assert_eq!(halves.parts.len(), 2);
            assert!(one == two && one == in_turn, "{precision:?}");

            let parts = |side| Inputs::new(&shapes, (side, side), compute).unwrap().parts.len();
            let tiles = tensor::instructions().unwrap() == "amx" && tensor::threads() > 1;
            let zoom = shapes.vae.zoom() as u32;
            let quicker = tiles && precision != Precision::F32;
            assert_eq!([parts(32 * zoom), parts(64 * zoom)], [1, 1 + usize::from(quicker)], "{precision:?}");
        }
    }
}
