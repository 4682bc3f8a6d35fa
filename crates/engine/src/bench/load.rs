//! From a model's own files to the first denoising step.

use super::step::{Inputs, TEXT_TOKENS};
use super::{BenchRequest, Measured, Time, rate, tensor_peak_mb, timed};
use crate::memory::Denoising;
use crate::plan::Compute;
use crate::stack::Stack;
use crate::{ModelPaths, Request, Result, memory};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Opens a model's files and builds its networks as a generation does, one stage after the other, and times it up to
/// the first step. With IdentityNet and adapter where `models` names them.
///
/// # Errors
/// Files that cannot be used, what clearly does not fit into memory, no memory.
pub fn load(models: &ModelPaths, request: &BenchRequest) -> Result<Measured> {
    let said = as_generate(models, request);
    let begin = Instant::now();
    let (open_ms, stack) = timed(|| Stack::open(&said))?;
    let compute = request.compute(stack.parameters(true))?;
    let shapes = stack.shapes(&models.base.display().to_string())?;
    let size = request.size(&shapes)?;
    let pixels = u64::from(size.0) * u64::from(size.1) / (shapes.vae.zoom() as u64).pow(2);
    let net = stack.has_identitynet().then_some(&shapes.identitynet);
    let weights = stack.parameters(true) + memory::transformed(&shapes.unet, net, compute);
    let need = weights as u64 * memory::bytes(compute.dtype)
        + memory::step(&shapes.unet.encoder, stack.has_identitynet(), 2 * pixels, compute.dtype);
    let what = format!("{} at {}x{}", models.base.display(), size.0, size.1);
    let denoising = Denoising { unet: &shapes.unet, net, branch: stack.has_identity(), compute };
    let needs = denoising.needs(stack.parameters(true), 2 * pixels);
    let parking = request.arrange(&what, &needs, need, compute)?.nets;

    let (text_ms, ()) = timed(|| text(&stack, compute))?;
    let (identity_ms, ()) = timed(|| identity(&stack, compute))?;
    let (vae_ms, vae) = timed(|| stack.vae(compute))?;
    let (unet_ms, unet) = timed(|| compute.device.parking(parking, || stack.unet(compute, stack.has_identity())))?;
    let net = || stack.has_identitynet().then(|| stack.identitynet(compute)).transpose();
    let (net_ms, net) = timed(|| compute.device.parking(parking, net))?;
    let inputs = Inputs::new(&shapes, size, compute)?;
    let (context_ms, contexts) = timed(|| inputs.contexts((&unet, net.as_ref())))?;
    let ready = begin.elapsed().as_secs_f64() * 1e3;
    let runs = request.repeat(compute.device, || inputs.step((&unet, net.as_ref()), &contexts).map(|_| ()))?;
    drop(vae);

    let files: Vec<PathBuf> = stack.files().values().flat_map(|(_, files)| files.clone()).collect();
    let bytes: u64 = files.iter().filter_map(|file| Some(std::fs::metadata(file).ok()?.len())).sum();
    let mut setting = request.setting(&shapes.name, Some(size), compute);
    setting.insert("files_gb".into(), json!(bytes as f64 / 1e9));
    setting.insert("gb_per_s".into(), json!(bytes as f64 / ready / 1e6));
    let time = |key, label, ms| Time { key, label, ms };
    Ok(Measured {
        title: format!("{}, {:.1} GB of files, {}x{}", models.base.display(), bytes as f64 / 1e9, size.0, size.1),
        setting,
        times: vec![
            time("to_first_step_ms", "start to first step", ready),
            time("open_ms", "headers and configurations", open_ms),
            time("text_ms", "text encoders and prompts", text_ms),
            time("identity_ms", "identity tokens", identity_ms),
            time("vae_ms", "VAE", vae_ms),
            time("unet_ms", "UNet", unet_ms),
            time("identitynet_ms", "IdentityNet", net_ms),
            time("context_ms", "what is done once for a picture", context_ms),
            time("first_step_ms", "first step", runs.first_ms),
            time("step_ms", "later steps", runs.median_ms),
        ],
        rate: rate(runs.flop, runs.median_ms, compute)?,
        operators: Vec::new(),
        page_faults: runs.page_faults,
        tensor_peak_mb: tensor_peak_mb(compute.device)?,
    })
}

/// What a generation with these models would say.
fn as_generate(models: &ModelPaths, request: &BenchRequest) -> Request {
    let mut said = Request::new("", models.clone());
    if models.ip_adapter.is_some() {
        // Not opened: that there is a face asks for the networks that know faces.
        said.faces = vec![PathBuf::new()];
    }
    if models.identitynet.is_none() {
        said.identitynet_scale = Some(0.0);
    }
    (said.device, said.precision) = (request.device, request.precision);
    said
}

/// One encoder at a time, as a generation has them.
fn text(stack: &Stack, compute: Compute) -> Result<()> {
    for i in 0..stack.tokenizers().len() {
        let encoder = stack.text_encoder(i, compute, false)?;
        let length = TEXT_TOKENS.min(encoder.config().max_position_embeddings);
        encoder.forward(&[vec![1; length], vec![2; length]], 0)?;
    }
    tensor::trim();
    Ok(())
}

fn identity(stack: &Stack, compute: Compute) -> Result<()> {
    if stack.has_identity() {
        let resampler = stack.resampler(compute)?;
        let embedding = super::values(&compute.device, &[2, 1, resampler.config().embedding_dim])?;
        resampler.forward(&embedding)?;
    }
    tensor::trim();
    Ok(())
}
