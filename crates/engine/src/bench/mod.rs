//! How long the parts of a generation take: on random weights of a known shape, since time does not depend on their
//! values, or on a model's own files.

mod faces;
mod load;
mod shapes;
mod step;
mod text;
mod vae;

pub use faces::faces;
pub use load::load;
pub use shapes::{SHAPES, Shapes};
pub use step::step;
pub use text::text;
pub use vae::vae;

use crate::plan::Compute;
use crate::vram::{self, Arrangement, Needs};
use crate::{DeviceChoice, Error, Precision, Result, memory};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::time::Instant;
use tensor::{DType, Device, Spent, Tensor};

/// What to measure, and with what.
#[derive(Clone, Copy)]
pub struct BenchRequest {
    /// Width and height in pixels; none is what the model was made for.
    pub size: Option<(u32, u32)>,
    /// Where.
    pub device: DeviceChoice,
    /// Numbers; automatic is what a generation would choose for a model of this size.
    pub precision: Precision,
    /// How often, after the first time.
    pub runs: usize,
    /// Bytes that can be had, where the system tells: what cannot fit is refused before it is taken.
    pub memory: Option<u64>,
    /// Bytes of a GPU's memory that may be taken; what is free if not given.
    pub vram: Option<u64>,
    /// Whether to tell what each operator takes.
    pub profile: bool,
    /// Whether to tell how far a step's result is from the same in f32 on the same device.
    pub error: bool,
    /// How many pages the system has had to bring into this process's memory so far, where it tells.
    pub page_faults: fn() -> Option<u64>,
}

/// A length of time and its name.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    /// In JSON, ending in `_ms`.
    pub key: &'static str,
    /// For people.
    pub label: &'static str,
    /// Milliseconds.
    pub ms: f64,
}

/// How fast the arithmetic went.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rate {
    /// Operations of one run, in 10^12; a multiply-add is two.
    pub tflop: f64,
    /// 10^12 operations a second.
    pub tflop_per_s: f64,
    /// What the arithmetic units gave in this process without memory in the way, in 10^12 operations a second.
    pub peak_tflop_per_s: f64,
    /// Share of that.
    pub share_of_peak: f64,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Measured {
    /// What was measured, for people.
    pub title: String,
    /// The setting, as JSON names it: `config`, `size`, `device`, `precision`, `threads`, `runs`.
    pub setting: Map<String, Value>,
    /// Times, the one that counts first.
    pub times: Vec<Time>,
    /// Speed of the first of [`Measured::times`].
    pub rate: Rate,
    /// Pages that a run had to be given by the system, the median; none where the system does not tell.
    pub page_faults: Option<u64>,
    /// What took how long in a run, the longest first, where that was asked for.
    pub operators: Vec<Spent>,
    /// Most memory held by tensors at once, in 10^6 bytes.
    pub tensor_peak_mb: f64,
}

impl Measured {
    /// One flat object.
    pub fn json(&self) -> Value {
        let mut all = self.setting.clone();
        all.extend(self.times.iter().map(|time| (time.key.to_string(), json!(time.ms))));
        if let Value::Object(rate) = json!(self.rate) {
            all.extend(rate);
        }
        let operators = self.operators.iter().map(|spent| {
            let Spent { work, launches, ms, flop, bytes } = spent;
            json!({"work": work, "launches": launches, "ms": ms, "flop": flop, "bytes": bytes})
        });
        if !self.operators.is_empty() {
            all.insert("operators".into(), operators.collect());
        }
        all.insert("page_faults".into(), json!(self.page_faults));
        all.insert("tensor_peak_mb".into(), json!(self.tensor_peak_mb));
        Value::Object(all)
    }
}

/// What repeated work gave.
struct Runs {
    first_ms: f64,
    median_ms: f64,
    flop: u64,
    page_faults: Option<u64>,
}

impl BenchRequest {
    /// Runs the work once, then as often as asked for, each time until the device has done it.
    fn repeat(&self, device: Device, mut work: impl FnMut() -> Result<()> + Send) -> Result<Runs> {
        let mut work = || {
            device.run(&mut work)?;
            Ok(device.synchronize()?)
        };
        let (first_ms, _) = timed(&mut work)?;
        let (mut times, mut faults, mut flop) = (Vec::new(), Vec::new(), 0);
        for _ in 0..self.runs.max(1) {
            let (counted, pages) = (tensor::flop_count(), (self.page_faults)());
            times.push(timed(&mut work)?.0);
            flop = tensor::flop_count() - counted;
            faults.extend((self.page_faults)().zip(pages).map(|(after, before)| after - before));
        }
        times.sort_by(f64::total_cmp);
        faults.sort_unstable();
        let page_faults = faults.get(faults.len() / 2).copied();
        Ok(Runs { first_ms, median_ms: times[times.len() / 2], flop, page_faults })
    }

    /// What the operators of the work take, which must not be recorded; nothing where nobody asked.
    fn operators(&self, device: Device, work: impl Fn() -> Result<()> + Sync) -> Result<Vec<Spent>> {
        if !self.profile {
            return Ok(Vec::new());
        }
        // Asked for ahead of the watched one, so that the GPU never waits for a launch.
        for _ in 0..if device == Device::Cpu { 0 } else { 3 } {
            work()?;
        }
        tensor::begin_profile(&device)?;
        device.run(&work)?;
        Ok(tensor::end_profile(&device)?)
    }

    /// What of the networks waits on the host, which a GPU is then told; nothing on the CPU, whose memory is compared
    /// with what the work takes at the least.
    fn arrange(&self, what: &str, needs: &Needs, least: u64, compute: Compute) -> Result<Arrangement> {
        match memory::arrange(needs, what, compute, self.vram, self.memory)? {
            None => memory::check_bench(what, least, self.memory, compute).map(|()| Arrangement::default()),
            Some((arrangement, there)) => {
                compute.device.limit_memory(self.vram.map(|_| there as usize))?;
                Ok(arrangement)
            }
        }
    }

    /// Device and numbers; `parameters` decide where nothing was said.
    fn compute(&self, parameters: usize) -> Result<Compute> {
        self.check()?;
        Ok(Compute::choose(self.device, self.precision, parameters)?.0)
    }

    fn check(&self) -> Result<()> {
        match self.device {
            DeviceChoice::Halves(..) => Error::refused(
                "a benchmark is of one device, and --device names two; `generate --json` tells \"step_ms\" of both",
            ),
            _ => vram::check(self.vram, self.device),
        }
    }

    /// Device and numbers of a network that a generation always runs in f32.
    fn compute_in_f32(&self) -> Result<Compute> {
        self.check()?;
        let precision = if self.precision == Precision::Auto { Precision::F32 } else { self.precision };
        Ok(Compute::choose(self.device, precision, 0)?.0)
    }

    /// The size, checked against how many pixels one of the latent's stands for and how often the UNet halves.
    fn size(&self, shapes: &Shapes) -> Result<(u32, u32)> {
        let (width, height) = self.size.unwrap_or(shapes.size);
        let unit = shapes.unit();
        if [width, height].iter().any(|s| *s < unit || *s > 4096 || s % unit != 0) {
            return Error::refused(format!(
                "--size is {width}x{height}; sides must be multiples of {unit} between {unit} and 4096"
            ));
        }
        Ok((width, height))
    }

    fn setting(&self, config: &str, size: Option<(u32, u32)>, compute: Compute) -> Map<String, Value> {
        let size = size.map(|(width, height)| json!([width, height]));
        let all = [
            ("config", Some(json!(config))),
            ("size", size),
            ("device", Some(json!(compute.device.to_string()))),
            ("precision", Some(json!(compute.precision()))),
            (
                "instructions",
                tensor::instructions().ok().filter(|_| compute.device == Device::Cpu).map(|name| json!(name)),
            ),
            ("threads", Some(json!(tensor::threads()))),
            ("runs", Some(json!(self.runs.max(1)))),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))).collect()
    }
}

/// Milliseconds, and what the work gave.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let begin = Instant::now();
    let done = work()?;
    Ok((begin.elapsed().as_secs_f64() * 1e3, done))
}

/// Measures what the arithmetic units give, and compares; where memory is capped, networks should have been dropped.
fn rate(flop: u64, ms: f64, Compute { device, dtype, products, .. }: Compute) -> Result<Rate> {
    device.limit_memory(None)?;
    let peak = tensor::measure_peak_of(&device, dtype, products)?;
    let per_s = flop as f64 / ms * 1e3;
    Ok(Rate {
        tflop: flop as f64 / 1e12,
        tflop_per_s: per_s / 1e12,
        peak_tflop_per_s: peak / 1e12,
        share_of_peak: per_s / peak,
    })
}

fn tensor_peak_mb(device: Device) -> Result<f64> {
    Ok(tensor::memory_use_of(&device)?.peak as f64 / 1e6)
}

/// A fixed sequence without visible period, about as large as normal noise.
fn values(device: &Device, shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product::<usize>() as u64;
    let number = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
    Ok(Tensor::from_f32(device, DType::F32, shape, &(0..count).map(number).collect::<Vec<_>>())?)
}
