//! `sameface bench`.

use serde_json::json;

use crate::cli::{BenchArgs, BenchCommand, DeviceArg, StepArgs};
use crate::fault::Fault;
use crate::generate::precision;
use crate::{output, threads};

pub(crate) fn run(args: &BenchArgs) -> Result<(), Fault> {
    match &args.command {
        BenchCommand::Step(args) => step(args),
    }
}

fn step(args: &StepArgs) -> Result<(), Fault> {
    threads::limit(args.threads)?;
    if let Some(DeviceArg::Cuda(n)) = args.device {
        return Err(Fault::Given(format!("--device cuda:{n} is not supported by this build; use auto or cpu")));
    }
    let size = args.size.map_or((1024, 1024), |size| (size.width, size.height));
    let config = args.config.as_deref().unwrap_or("sdxl");
    let found = engine::bench_step(config, size, precision(args.precision), args.repeat.unwrap_or(3).into())?;
    let peak = peak_memory_mb().unwrap_or(found.tensor_peak_mb);
    if args.json {
        let mut object = json!(found);
        object["peak_memory_mb"] = json!(peak);
        return output::json(&object);
    }
    output::line(&format!("{} at {}x{}, {} on {}", found.config, size.0, size.1, found.precision, found.device))?;
    output::line(&format!(
        "step          {:10.0} ms (first {:.0} ms, loading {:.0} ms)",
        found.step_ms, found.first_step_ms, found.load_ms
    ))?;
    output::line(&format!(
        "work          {:10.3} TFLOP: {:.3} TFLOP/s, {:.0} % of the {:.3} that the arithmetic units gave",
        found.step_tflop,
        found.tflop_per_s,
        found.share_of_peak * 100.0,
        found.peak_tflop_per_s
    ))?;
    output::line(&format!("peak memory   {peak:10.0} MB"))
}

/// The most memory that the process had, where the system tells.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
