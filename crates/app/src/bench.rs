//! `sameface bench`.

use std::path::Path;

use engine::bench::{self, BenchRequest, Measured, Shapes};
use faces::Photo;
use hub::Role;
use serde_json::json;

use crate::cli::{
    BenchArgs, BenchCommand, DeviceArg, FaceBenchArgs, LoadArgs, MachineArgs, PrecisionArg, RunArgs, ShapeArgs,
    SizeArg, StepArgs, WatchedArgs,
};
use crate::fault::Fault;
use crate::generate::{device, precision};
use crate::people::Drawn;
use crate::stack::{self, Given, MINI};
use crate::{memory, models, output, threads};

/// Who is looked at where nobody is named.
const SITTER: &str = "cast:1000001";
const RUNS: u16 = 3;

pub(crate) fn run(args: &BenchArgs) -> Result<(), Fault> {
    let (run, measured) = match &args.command {
        BenchCommand::Step(StepArgs { watched: WatchedArgs { shape, profile }, error }) => {
            let asked = BenchRequest { profile: *profile, error: *error, ..shaped(shape)? };
            (&shape.run, bench::step(&shapes(shape)?, &asked)?)
        }
        BenchCommand::Vae(WatchedArgs { shape, profile }) => {
            let asked = BenchRequest { profile: *profile, ..shaped(shape)? };
            (&shape.run, bench::vae(&shapes(shape)?, &asked)?)
        }
        BenchCommand::Text(shape) => (&shape.run, bench::text(&shapes(shape)?, &shaped(shape)?)?),
        BenchCommand::Faces(args) => (&args.run, faces(args)?),
        BenchCommand::Load(args) => (&args.run, load(args)?),
    };
    tell(run.json, &measured)
}

fn shaped(args: &ShapeArgs) -> Result<BenchRequest, Fault> {
    threads::limit(args.machine.threads)?;
    Ok(request(&args.machine, &args.run, args.size))
}

/// A published shape, the built-in models', or that of a folder.
fn shapes(args: &ShapeArgs) -> Result<Shapes, Fault> {
    let name = args.config.as_deref().unwrap_or("sdxl");
    if let Some(shapes) = Shapes::named(name) {
        return Ok(shapes);
    }
    let folder = Path::new(name);
    if name.eq_ignore_ascii_case(MINI) && !folder.exists() {
        let given =
            Given { model: Some(MINI), model_config: None, identitynet: None, ip_adapter: None, face_models: None };
        let base = stack::find(&models::config()?, &given, |role| role == Role::Base)?.base;
        return Ok(Shapes::of_folder(MINI, &base)?);
    }
    if folder.is_dir() {
        return Ok(Shapes::of_folder(name, folder)?);
    }
    let known = bench::SHAPES.join(", ");
    Err(Fault::Given(format!("--config is {name:?}; valid are {known}, {MINI}, and the folder of a model")))
}

fn faces(args: &FaceBenchArgs) -> Result<Measured, Fault> {
    threads::limit(args.threads)?;
    let (folder, _) = stack::face_models(&models::config()?, args.face_models.as_deref())?;
    let mut drawn = Drawn::new();
    let file = drawn.file(args.photo.as_deref().unwrap_or(Path::new(SITTER)))?;
    let photo = Photo::open(&file).map_err(|error| Fault::from(error).reworded(|sentence| drawn.in_words(sentence)))?;
    let on = MachineArgs {
        device: Some(DeviceArg::Cpu),
        precision: Some(PrecisionArg::F32),
        vram: None,
        threads: args.threads,
    };
    Ok(bench::faces(&folder, &photo, &request(&on, &args.run, None))?)
}

fn load(args: &LoadArgs) -> Result<Measured, Fault> {
    threads::limit(args.machine.threads)?;
    let given = Given {
        model: Some(&args.model),
        model_config: None,
        identitynet: args.identitynet.as_deref(),
        ip_adapter: args.ip_adapter.as_deref(),
        face_models: None,
    };
    if given.identitynet.is_some() && given.ip_adapter.is_none() {
        return Err(Fault::Given(
            "--identitynet reads the tokens that the identity adapter makes; name it with --ip-adapter".into(),
        ));
    }
    let paths = stack::find(&models::config()?, &given, |role| match role {
        Role::Base => true,
        Role::IdentityNet => given.identitynet.is_some(),
        Role::IpAdapter => given.ip_adapter.is_some(),
        Role::FaceModels => false,
    })?;
    Ok(bench::load(&paths, &request(&args.machine, &args.run, args.size))?)
}

fn request(on: &MachineArgs, run: &RunArgs, size: Option<SizeArg>) -> BenchRequest {
    BenchRequest {
        size: size.map(|size| (size.width, size.height)),
        device: device(on.device),
        precision: precision(on.precision),
        runs: run.runs.unwrap_or(RUNS).into(),
        memory: memory::available(),
        vram: on.vram,
        profile: false,
        error: false,
        page_faults: memory::page_faults,
    }
}

fn tell(json: bool, measured: &Measured) -> Result<(), Fault> {
    let peak = memory::peak_mb().unwrap_or(measured.tensor_peak_mb);
    if json {
        let mut object = measured.json();
        object["peak_memory_mb"] = json!(peak);
        return output::json(&object);
    }
    let said =
        |key: &str| measured.setting.get(key).map(|value| value.to_string().replace('"', "")).unwrap_or_default();
    output::line(&format!(
        "{}; {} on {}, {} threads",
        measured.title,
        said("precision"),
        said("device"),
        said("threads")
    ))?;
    if let Some(error) = measured.setting.get("error_beside_f32").and_then(serde_json::Value::as_f64) {
        output::line(&format!("{:36}{error:12.1e}", "error beside f32"))?;
    }
    if let Some(why) = measured.setting.get("not_recorded").and_then(serde_json::Value::as_str) {
        output::line(&format!("steps are not replayed from a record: {why}"))?;
    }
    if let Some(waiting) = measured.setting.get("waiting_mb").and_then(serde_json::Value::as_f64) {
        let passing = measured.setting.get("passing_mb").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
        output::line(&format!(
            "{:36}{waiting:12.0} MB, {passing:.0} MB of which pass in every step",
            "weights wait on the host"
        ))?;
    }
    for time in &measured.times {
        // Three digits of what is short, none behind the point of what is long.
        let digits = if time.ms < 100.0 { 1 } else { 0 };
        output::line(&format!("{:36}{:12.digits$} ms", time.label, time.ms))?;
    }
    let rate = &measured.rate;
    output::line(&format!(
        "{:36}{:12.3} TFLOP: {:.3} TFLOP/s, {:.0} % of the {:.3} that the arithmetic units gave",
        "work",
        rate.tflop,
        rate.tflop_per_s,
        rate.share_of_peak * 100.0,
        rate.peak_tflop_per_s
    ))?;
    if let Some(faults) = measured.page_faults {
        output::line(&format!("{:36}{faults:12} in a run", "page faults"))?;
    }
    output::line(&format!("{:36}{peak:12.0} MB", "peak memory"))?;
    operators(measured)
}

/// A line for each kind of work, the longest first.
fn operators(measured: &Measured) -> Result<(), Fault> {
    let total: f64 = measured.operators.iter().map(|spent| spent.ms).sum();
    if total > 0.0 {
        let launches: usize = measured.operators.iter().map(|spent| spent.launches).sum();
        output::line(&format!("{:72}{launches:6} {total:9.3} ms", "all operators"))?;
    }
    for spent in &measured.operators {
        // Nothing where operations or bytes are not counted.
        let per_s = |count: u64, unit: f64, name: &str| match count {
            0 => String::new(),
            _ => format!(" {:9.3} {name}", count as f64 / spent.ms * 1e3 / unit),
        };
        let rates = per_s(spent.flop, 1e12, "TFLOP/s") + &per_s(spent.bytes, 1e9, "GB/s");
        output::line(&format!("{:72}{:6} {:9.3} ms{rates}", spent.work, spent.launches, spent.ms))?;
    }
    Ok(())
}
