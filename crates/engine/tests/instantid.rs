//! Whole generations against the public InstantID pipeline: tiny stacks in the real file layouts, every row a case of
//! `cases.json`. The latent must be within 1e-3 relative error and the picture within 45 dB.

mod stack;

use engine::{DeviceChoice, Event, ModelPaths, Output, Pose, Precision, Request, Rng};
use safetensors::SafeTensors;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tensor::ops::Products;

fn request(case: &Value, folder: &Path, models: ModelPaths) -> Request {
    let number = |key: &str| case[key].as_f64().unwrap();
    let mut request = Request::new(case["prompt"].as_str().unwrap(), models);
    request.negative = case["negative"].as_str().map(str::to_owned);
    request.plain_prompt = true;
    request.faces = vec![folder.join(format!("{}.safetensors", case["face"].as_str().unwrap()))];
    let side = |i: usize| case["size"][i].as_u64().unwrap() as u32;
    request.size = Some((side(0), side(1)));
    request.seed = case["seed"].as_u64();
    request.steps = Some(case["steps"].as_u64().unwrap() as usize);
    request.guidance = Some(number("guidance"));
    request.sampler = case["sampler"].as_str().map(str::to_owned);
    request.identitynet_scale = Some(number("identitynet_scale"));
    request.ip_adapter_scale = Some(number("ip_adapter_scale"));
    request.identitynet_start = number("identitynet_start");
    request.identitynet_end = number("identitynet_end");
    request.precision = Precision::F32;
    request.device = stack::device();
    request.rng = Rng::Cpu;
    request
}

fn run(request: &Request) -> Output {
    engine::generate(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Runs a case and compares latent and picture with what the reference made of it.
fn check(case: &Value, folder: &Path, models: ModelPaths) {
    let mut request = request(case, folder, models);
    check_one(case, folder, &request);
    request.precision = Precision::Bf16x3;
    if Products::in_parts_here() {
        check_one(case, folder, &request);
    }
}

fn check_one(case: &Value, folder: &Path, request: &Request) {
    let name = case["name"].as_str().unwrap();
    let output = run(request);
    let file = std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
    let expected = SafeTensors::deserialize(&file).unwrap();
    let latent = expected.tensor("latent").unwrap();
    let want: Vec<f32> = latent.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let got = saved_latent(&output);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(a, b)| f64::from(a - b)));
    let relative = error / norm(&mut want.iter().map(|x| f64::from(*x)));
    assert!(relative <= 1e-3, "{name}: the latent's relative error is {relative:.2e}");
    let picture = expected.tensor("picture").unwrap();
    let pixels = &output.pictures[0].rgb;
    assert_eq!(pixels.len(), picture.data().len());
    let square: f64 = pixels.iter().zip(picture.data()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let psnr = 10.0 * (255.0f64.powi(2) / (square / pixels.len() as f64).max(1e-9)).log10();
    assert!(psnr >= 45.0, "{name}: the picture has {psnr:.1} dB");
    println!("{name} in {}: latent {relative:.1e}, picture {psnr:.1} dB", output.plan.precision);
}

/// The latent as `--save-latent` writes it.
fn saved_latent(output: &Output) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latent.safetensors");
    output.pictures[0].save_latent(&path).unwrap();
    let file = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    file.tensor("latent").unwrap().data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn folder_models(folder: &Path, adapter: &str) -> ModelPaths {
    ModelPaths {
        base: folder.join("model"),
        config: None,
        identitynet: Some(folder.join("ControlNetModel")),
        ip_adapter: Some(folder.join(adapter)),
        face_models: None,
    }
}

/// A copy of the stack under the case's own scheduler.
fn scheduled(case: &Value, folder: &Path, to: &Path, adapter: &str) -> ModelPaths {
    let base = to.join("model");
    stack::with_scheduler(&folder.join("model"), &case["scheduler"], &base);
    ModelPaths { base, ..folder_models(folder, adapter) }
}

#[test]
fn diffusers_folders() {
    let folder = stack::fixtures().join("folder");
    for case in stack::cases(&folder) {
        let to = tempfile::tempdir().unwrap();
        check(&case, &folder, scheduled(&case, &folder, to.path(), "ip-adapter.bin"));
    }
}

#[test]
fn adapter_as_safetensors() {
    let folder = stack::fixtures().join("folder");
    let case = &stack::cases(&folder)[0];
    let to = tempfile::tempdir().unwrap();
    check(case, &folder, scheduled(case, &folder, to.path(), "ip-adapter.safetensors"));
}

#[test]
fn single_files() {
    let folder = stack::fixtures().join("single");
    let to = tempfile::tempdir().unwrap();
    let files = stack::write_single(to.path());
    for case in stack::cases(&folder) {
        let models = ModelPaths {
            base: files.checkpoint.clone(),
            config: None,
            identitynet: Some(files.identitynet.clone()),
            ip_adapter: Some(files.adapter.clone()),
            face_models: None,
        };
        check(&case, &folder, models);
    }
}

fn first() -> (Request, PathBuf) {
    let folder = stack::fixtures().join("folder");
    let case = stack::cases(&folder).remove(0);
    (request(&case, &folder, folder_models(&folder, "ip-adapter.bin")), folder)
}

#[test]
fn weight_zero_is_no_identity_and_the_same_twice() {
    let (mut with, _) = first();
    with.identitynet_scale = Some(0.0);
    with.ip_adapter_scale = Some(0.0);
    let mut without = with.clone();
    without.faces.clear();
    without.identitynet_scale = Some(0.8);
    without.ip_adapter_scale = Some(0.8);
    let (with, without) = (run(&with), run(&without));
    assert_eq!(with.pictures[0].rgb, without.pictures[0].rgb);
    assert_eq!(saved_latent(&with), saved_latent(&without));
    let (request, _) = first();
    let (once, again) = (run(&request), run(&request));
    assert_eq!(once.pictures[0].rgb, again.pictures[0].rgb);
    assert_eq!(saved_latent(&once), saved_latent(&again));
    assert_ne!(once.pictures[0].rgb, with.pictures[0].rgb);
}

#[test]
fn a_ready_keypoint_image_is_the_same_as_its_keypoints() {
    let (request, folder) = first();
    let mut mapped = request.clone();
    mapped.pose = Some(Pose::Map(folder.join("ada.png")));
    mapped.size = None;
    assert_eq!(run(&request).pictures[0].rgb, run(&mapped).pictures[0].rgb);
}

#[test]
fn several_pictures_are_the_single_ones() {
    let (mut request, _) = first();
    request.count = 2;
    request.seed = Some(42);
    request.batch = Some(1);
    let both = run(&request);
    // The last one by itself, so that records and contexts are made anew; with noise in each step.
    request.sampler = Some("euler_a".into());
    request.count = 3;
    let apart = run(&request);
    request.batch = Some(2);
    let together = run(&request);
    assert_eq!((apart.plan.batch, together.plan.batch), (1, 2));
    let device = together.plan.device.as_str();
    for (apart, together) in apart.pictures.iter().zip(&together.pictures) {
        assert_eq!(apart.seed, together.seed);
        if together.rgb != apart.rgb {
            // A GPU's libraries may sum in another order for more rows.
            assert_ne!(device, "cpu");
            let far = apart.rgb.iter().zip(&together.rgb).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(far <= Some(2), "{far:?}");
        }
    }
    (request.sampler, request.batch) = (first().0.sampler, None);
    request.count = 1;
    request.seed = Some(43);
    assert_eq!(both.pictures[1].rgb, run(&request).pictures[0].rgb);
    assert_eq!(both.plan.seeds, [42, 43]);
}

#[test]
fn sixteen_bits_stay_near() {
    let (mut request, _) = first();
    let exact = run(&request);
    let gpu = exact.plan.device != "cpu";
    let precisions = [(Precision::Bf16, 0.1), (Precision::F16, 0.02)];
    for (precision, limit) in precisions.into_iter().take(if gpu { 2 } else { 1 }) {
        request.precision = precision;
        let near = run(&request);
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let (a, b) = (saved_latent(&exact), saved_latent(&near));
        let error = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied());
        let pixels = exact.pictures[0].rgb.iter().zip(&near.pictures[0].rgb);
        let square: f64 = pixels.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        let psnr = 10.0 * (255.0f64.powi(2) / (square / exact.pictures[0].rgb.len() as f64).max(1e-9)).log10();
        println!("{precision:?} beside f32: latent {error:.1e}, picture {psnr:.1} dB");
        assert!(error < limit, "{precision:?}: relative error {error}");
    }
}

#[test]
fn the_observer_hears_steps_and_can_stop() {
    let (request, _) = first();
    let mut steps = Vec::new();
    let stopped = engine::generate(&request, &mut |event| {
        if let Event::Step { step, steps: of, .. } = event {
            steps.push((step, of));
            if step == 2 {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    });
    assert!(matches!(stopped, Err(engine::Error::Cancelled)));
    assert_eq!(steps, [(1, 3), (2, 3)]);
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    type Change = fn(&mut Request);
    let rows: [(Change, &[&str]); 14] = [
        (|r| r.size = Some((60, 64)), &["60x64", "multiples of 8", "56", "64"]),
        (|r| r.size = Some((100_000, 64)), &["100000x64", "8192"]),
        (|r| r.steps = Some(0), &["--steps is 0", "between 1 and 1000"]),
        (|r| r.steps = Some(1_000_000_000), &["--steps is 1000000000"]),
        (|r| r.guidance = Some(f64::NAN), &["--guidance is NaN"]),
        (|r| r.count = 10_000, &["--count is 10000"]),
        (|r| r.sampler = Some("plms".into()), &["plms", "euler_a"]),
        (|r| r.identitynet_start = 0.9, &[]),
        (|r| (r.identitynet_start, r.identitynet_end) = (0.9, 0.1), &["0.9", "0.1"]),
        (|r| r.prompt = "a\0b".into(), &["U+0000"]),
        (|r| r.ip_adapter_scale = Some(f64::INFINITY), &["--ip-adapter-scale is inf"]),
        (|r| r.device = DeviceChoice::Cuda(77), &["cuda:77"]),
        (|r| (r.device, r.precision) = (DeviceChoice::Cpu, Precision::F16), &["f16", "bf16"]),
        (|r| r.models.base = "/nowhere".into(), &["/nowhere"]),
    ];
    for (change, words) in rows {
        let (mut request, _) = first();
        change(&mut request);
        match engine::generate(&request, &mut |_| ControlFlow::Continue(())) {
            Ok(_) => assert!(words.is_empty(), "{words:?} was accepted"),
            Err(error) => {
                let said = error.to_string();
                assert!(error.is_user_fault(), "{said}");
                assert!(!words.is_empty() && words.iter().all(|w| said.contains(w)), "{said} lacks one of {words:?}");
            }
        }
    }
}

#[test]
fn pictures_are_saved_beside_what_is_there_and_carry_their_record() {
    let (mut request, _) = first();
    request.prompt = "ein Bär, (rot:1.2)".into();
    let output = run(&request);
    let folder = tempfile::tempdir().unwrap();
    let target = engine::Target::new(&folder.path().join("ada.png")).unwrap();
    let save = || target.save(&output.pictures[0], &output.plan).unwrap();
    let (first, second) = (save(), save());
    assert!(first.ends_with("ada.png") && second.ends_with("ada-0001.png"), "{second:?}");
    let bytes = std::fs::read(&second).unwrap();
    assert_eq!(bytes, std::fs::read(&first).unwrap());
    let texts = engine::metadata::read_texts(&bytes).unwrap();
    let text = |key: &str| &texts.iter().find(|(k, _)| k == key).unwrap().1;
    let parameters = engine::metadata::Parameters::parse(text("parameters"));
    assert_eq!(parameters.prompt, request.prompt);
    assert_eq!(parameters.get("Seed"), Some("42"));
    assert_eq!(parameters.get("Size"), Some("64x64"));
    let plan: Value = serde_json::from_str(text("sameface")).unwrap();
    assert_eq!(plan["identity"]["ip_adapter_scale"], 0.8);
    let digest = plan["models"]["model"]["sha256"]["unet/diffusion_pytorch_model.safetensors"].as_str().unwrap();
    assert_eq!(parameters.get("Model hash"), Some(&digest[..10]));
    assert!(engine::Target::new(Path::new("picture.gif")).unwrap_err().to_string().contains(".gif"));
}

#[test]
fn a_session_that_keeps_its_networks_gives_the_same_pictures() {
    let (request, _) = first();
    let mut session = engine::Session::open(&request, true).unwrap();
    let mut text_only = request.clone();
    text_only.faces.clear();
    let mut adapter_only = request.clone();
    adapter_only.identitynet_scale = Some(0.0);
    for request in [&request, &text_only, &adapter_only, &request] {
        let kept = session.generate(request, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(kept.pictures[0].rgb, run(request).pictures[0].rgb);
    }
    let mut elsewhere = request.clone();
    elsewhere.models.base = "/nowhere".into();
    assert!(session.generate(&elsewhere, &mut |_| ControlFlow::Continue(())).is_err());
    let mut without_face = engine::Session::open(&text_only, true).unwrap();
    let refused = without_face.generate(&request, &mut |_| ControlFlow::Continue(()));
    assert!(refused.err().unwrap().to_string().contains("without a face"));
}

#[test]
fn pictures_are_handed_over_one_by_one() {
    let (mut request, _) = first();
    request.count = 3;
    let all = run(&request);
    let mut taken = Vec::new();
    let mut session = engine::Session::open(&request, false).unwrap();
    let stopped = session.generate_each(&request, &mut |_| ControlFlow::Continue(()), &mut |picture, plan| {
        assert!(!plan.models["model"].sha256.is_empty());
        taken.push(picture);
        // The third is never asked for.
        if taken.len() == 2 { Err(engine::Error::Cancelled) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(engine::Error::Cancelled)));
    for (one, other) in taken.iter().zip(&all.pictures) {
        assert_eq!((one.seed, &one.rgb), (other.seed, &other.rgb));
    }
}
