//! Encoding a prompt and a negative one.

use super::step::TEXT_TOKENS;
use super::{BenchRequest, Measured, Shapes, Time, rate, tensor_peak_mb, timed};
use crate::vram::Needs;
use crate::{Result, memory};
use nets::{ClipText, ClipTextConfig};
use weights::Weights;

/// Times all text encoders on a prompt and a negative one of a chunk each.
///
/// # Errors
/// A device that is not valid, what clearly does not fit into memory, no memory.
pub fn text(shapes: &Shapes, request: &BenchRequest) -> Result<Measured> {
    let compute = request.compute_in_f32()?;
    let parameters = shapes.text.iter().map(ClipTextConfig::parameters).sum::<usize>() as u64;
    let what = format!("the text encoders of {}", shapes.name);
    let weights = parameters * memory::bytes(compute.dtype);
    request.arrange(&what, &Needs { vae: weights, ..Needs::default() }, weights, compute)?;

    let random = Weights::random(1);
    let load = |config| Ok(ClipText::load(&random.root(), config, &compute.device, compute.numbers())?);
    let (load_ms, encoders) = timed(|| shapes.text.iter().map(load).collect::<Result<Vec<ClipText>>>())?;
    let prompt = |encoder: &ClipText, first: u32| {
        let config = encoder.config();
        let length = TEXT_TOKENS.min(config.max_position_embeddings) as u32;
        (0..length).map(|i| (first + 37 * i) % config.vocab_size as u32).collect::<Vec<u32>>()
    };
    let runs = request.repeat(compute.device, || {
        for encoder in &encoders {
            encoder.forward(&[prompt(encoder, 1), prompt(encoder, 2)], 0)?;
        }
        Ok(())
    })?;
    Ok(Measured {
        title: format!("a prompt and a negative one through {} text encoders of {}", encoders.len(), shapes.name),
        setting: request.setting(&shapes.name, None, compute),
        times: vec![
            Time { key: "text_ms", label: "both prompts", ms: runs.median_ms },
            Time { key: "first_text_ms", label: "first time", ms: runs.first_ms },
            Time { key: "load_ms", label: "making the networks", ms: load_ms },
        ],
        rate: rate(runs.flop, runs.median_ms, compute)?,
        operators: Vec::new(),
        page_faults: runs.page_faults,
        tensor_peak_mb: tensor_peak_mb(compute.device)?,
    })
}
