//! The tiny stacks under `tests/fixtures/instantid`, as files on disk. `reference/instantid.py` wrote them and
//! says what they hold.
#![allow(dead_code)] // every test binary uses its own part

use std::{
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use serde_json::Value;

/// Where generations are tested: what SAMEFACE_TEST_DEVICE names (`cpu`, `cuda:0`), else what users get.
pub(crate) fn device() -> engine::DeviceChoice {
    match std::env::var("SAMEFACE_TEST_DEVICE").ok().as_deref() {
        Some("cpu") => engine::DeviceChoice::Cpu,
        Some(gpu) => engine::DeviceChoice::Cuda(gpu.trim_start_matches("cuda:").parse().unwrap()),
        None => engine::DeviceChoice::Auto,
    }
}

/// The fixtures' folder.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/instantid")
}

/// Four steps of a picture of 64x64 with a face, on [`device`].
pub(crate) fn request() -> engine::Request {
    let folder = fixtures().join("folder");
    let models = engine::ModelPaths {
        base: folder.join("model"),
        identitynet: Some(folder.join("ControlNetModel")),
        ip_adapter: Some(folder.join("ip-adapter.bin")),
        ..engine::ModelPaths::default()
    };
    let mut request = engine::Request::new("a portrait of a person", models);
    request.faces = vec![folder.join("ada.safetensors")];
    request.device = device();
    (request.size, request.steps, request.seed) = (Some((64, 64)), Some(4), Some(7));
    request
}

/// The rows of `cases.json` in a folder.
pub(crate) fn cases(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("cases.json")).unwrap();
    // Python's JSON has infinities; the crate that reads configurations has a test of its own for them.
    serde_json::from_str(&text.replace("-Infinity", "null")).unwrap()
}

/// A copy of a diffusers folder that runs under another `scheduler_config.json`.
pub(crate) fn with_scheduler(model: &Path, scheduler: &Value, to: &Path) {
    copy(model, to);
    fs::write(to.join("scheduler/scheduler_config.json"), scheduler.to_string()).unwrap();
    let index = to.join("model_index.json");
    let mut named: Value = serde_json::from_str(&fs::read_to_string(&index).unwrap()).unwrap();
    named["scheduler"][1] = scheduler["_class_name"].clone();
    fs::write(index, named.to_string()).unwrap();
}

/// A folder with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The files of the stack whose weights are a rule: an SDXL checkpoint in the original layout, an IdentityNet and an
/// adapter, all f16.
pub(crate) struct Single {
    pub(crate) checkpoint: PathBuf,
    pub(crate) identitynet: PathBuf,
    pub(crate) adapter: PathBuf,
}

/// Writes them into `to`.
pub(crate) fn write_single(to: &Path) -> Single {
    let folder = fixtures().join("single");
    let rules: Value = serde_json::from_str(&fs::read_to_string(folder.join("weights.json")).unwrap()).unwrap();
    let files = Single {
        checkpoint: to.join("checkpoint.safetensors"),
        identitynet: to.join("ControlNetModel"),
        adapter: to.join("ip-adapter.safetensors"),
    };
    copy(&folder.join("ControlNetModel"), &files.identitynet);
    write_ruled(&files.checkpoint, &rules["checkpoint"]);
    write_ruled(&files.identitynet.join("diffusion_pytorch_model.safetensors"), &rules["ControlNetModel"]);
    write_ruled(&files.adapter, &rules["ip-adapter"]);
    files
}

fn write_ruled(path: &Path, rules: &Value) {
    let rules = rules.as_object().unwrap();
    let count = |rule: &Value| -> usize {
        rule["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).product()
    };
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, rule) in rules {
        let start = end;
        end += 2 * count(rule);
        let entry = serde_json::json!({"dtype": "F16", "shape": rule["shape"], "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = Value::from(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::new(fs::File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    for (name, rule) in rules {
        let exponent = rule["exponent"].as_i64().unwrap() as i32;
        let offset = rule["offset"].as_i64().unwrap() as f32;
        for k in bytes(name).take(count(rule)) {
            let value = offset + f32::from(k) * 2f32.powi(-exponent);
            file.write_all(&f16_bits(value).to_le_bytes()).unwrap();
        }
    }
    file.flush().unwrap();
}

/// Top bytes of splitmix64, started from the name's FNV-1a hash: `ruled_weight` of reference/stack.py.
fn bytes(name: &str) -> impl Iterator<Item = i8> {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    (1u64..).map(move |i| {
        let mut z = i.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 56) as i8
    })
}

/// For values that f16 holds exactly as zero or as normal numbers, which the rule's all are.
fn f16_bits(value: f32) -> u16 {
    if value == 0.0 {
        return 0;
    }
    let bits = value.to_bits();
    let exponent = (bits >> 23 & 0xFF) as i32 - 127 + 15;
    assert!((1..31).contains(&exponent) && bits & 0x1FFF == 0, "{value} is no f16");
    (bits >> 16 & 0x8000) as u16 | (exponent as u16) << 10 | (bits >> 13 & 0x3FF) as u16
}
