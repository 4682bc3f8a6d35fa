//! Decoding a latent to a picture.

use super::{BenchRequest, Measured, Shapes, Time, rate, tensor_peak_mb, timed, values};
use crate::generate::decode_latent;
use crate::vram::Needs;
use crate::{Precision, Result, memory};
use nets::Vae;
use weights::Weights;

/// Times the decoder as a generation runs it, in tiles above a size.
///
/// # Errors
/// A size or device that is not valid, what clearly does not fit into memory, no memory.
pub fn vae(shapes: &Shapes, request: &BenchRequest) -> Result<Measured> {
    let size = request.size(shapes)?;
    let mut compute = request.compute(shapes.parameters())?;
    if request.precision == Precision::Auto {
        compute.dtype = compute.vae_dtype();
    }
    let pixels = u64::from(size.0) * u64::from(size.1);
    let need = memory::decode(&shapes.vae, pixels, compute.dtype);
    let (weights, decode) = (
        shapes.vae.parameters() as u64 * memory::bytes(compute.dtype),
        memory::decode_on_gpu(&shapes.vae, pixels, compute.dtype),
    );
    let needs = Needs { vae: weights, decode, ..Needs::default() };
    request.arrange(&format!("decoding {}x{}", size.0, size.1), &needs, need, compute)?;

    let random = Weights::random(1);
    let (load_ms, vae) = timed(|| Ok(Vae::load(&random.root(), &shapes.vae, &compute.device, compute.numbers())?))?;
    let [w, h] = [size.0, size.1].map(|side| side as usize / shapes.vae.zoom());
    let latent = values(&compute.device, &[1, h, w, shapes.vae.latent_channels])?;
    let runs = request.repeat(compute.device, || decode_latent(&vae, &latent).map(|_| ()))?;
    let operators = request.operators(compute.device, || decode_latent(&vae, &latent).map(|_| ()))?;
    Ok(Measured {
        title: format!("decoding with the VAE of {}, {}x{}", shapes.name, size.0, size.1),
        setting: request.setting(&shapes.name, Some(size), compute),
        times: vec![
            Time { key: "decode_ms", label: "decoding", ms: runs.median_ms },
            Time { key: "first_decode_ms", label: "first time", ms: runs.first_ms },
            Time { key: "load_ms", label: "making the network", ms: load_ms },
        ],
        rate: rate(runs.flop, runs.median_ms, compute)?,
        operators,
        page_faults: runs.page_faults,
        tensor_peak_mb: tensor_peak_mb(compute.device)?,
    })
}
