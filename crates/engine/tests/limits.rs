//! What is found out before the work rather than after it, and what is not complained about.

mod stack;

use engine::{Event, ModelPaths, Precision, Request};
use std::ops::ControlFlow;

fn request() -> Request {
    let folder = stack::fixtures().join("folder");
    let models = ModelPaths {
        base: folder.join("model"),
        config: None,
        identitynet: Some(folder.join("ControlNetModel")),
        ip_adapter: Some(folder.join("ip-adapter.bin")),
        face_models: None,
    };
    let mut request = Request::new("a sailor", models);
    request.faces = vec![folder.join("ada.safetensors")];
    request.size = Some((64, 64));
    request.steps = Some(1);
    request.seed = Some(1);
    request
}

/// The error or nothing, and what was heard on the way.
fn run(request: &Request) -> (Option<engine::Error>, Vec<Event>) {
    let mut heard = Vec::new();
    let made = engine::generate(request, &mut |event| {
        heard.push(event);
        ControlFlow::Continue(())
    });
    (made.err(), heard)
}

fn notes(heard: &[Event]) -> Vec<&String> {
    heard.iter().filter_map(|event| if let Event::Note(note) = event { Some(note) } else { None }).collect()
}

fn steps(heard: &[Event]) -> usize {
    heard.iter().filter(|event| matches!(event, Event::Step { .. })).count()
}

#[test]
fn what_cannot_fit_into_memory_is_refused_before_any_work() {
    let rows: [(u64, (u32, u32), Option<&str>); 4] = [
        (1 << 30, (64, 64), None),
        (1 << 20, (2048, 2048), Some("a smaller --size, fewer pictures or --precision bf16 need less")),
        (1 << 30, (8192, 8192), Some("--size 8192x8192 in f32 needs at least ")),
        (1, (64, 64), Some("of memory with these models, and 1 MB are free")),
    ];
    for (memory, size, said) in rows {
        let mut request = request();
        (request.memory, request.size) = (Some(memory), Some(size));
        request.precision = Precision::F32;
        let (error, heard) = run(&request);
        match (&error, said) {
            (None, None) => {}
            (Some(error), Some(said)) => {
                assert!(error.is_user_fault() && error.to_string().contains(said), "{error}");
                assert_eq!(steps(&heard), 0);
            }
            _ => panic!("{memory} {size:?}: {error:?}"),
        }
    }
}

#[test]
fn the_vae_is_read_before_the_long_work() {
    let to = tempfile::tempdir().unwrap();
    let base = to.path().join("model");
    let folder = stack::fixtures().join("folder");
    stack::with_scheduler(&folder.join("model"), &stack::cases(&folder)[0]["scheduler"], &base);
    let file = base.join("vae/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    // The last number, which is half precision, becomes NaN.
    let end = bytes.len() - 2;
    bytes[end..].copy_from_slice(&0x7e00u16.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let mut request = request();
    request.models.base = base;
    let (error, heard) = run(&request);
    assert!(error.unwrap().to_string().contains("not finite"));
    assert_eq!(steps(&heard), 0);
}

#[test]
fn sound_models_are_not_complained_about() {
    let (error, heard) = run(&request());
    assert!(error.is_none() && notes(&heard).is_empty(), "{error:?} {heard:?}");

    // With weight 0 the adapter's second half is known and not needed.
    let mut without = request();
    without.ip_adapter_scale = Some(0.0);
    assert_eq!(notes(&run(&without).1), [""; 0]);

    let to = tempfile::tempdir().unwrap();
    let files = stack::write_single(to.path());
    let mut single = request();
    single.faces = vec![stack::fixtures().join("single/ada.safetensors")];
    single.models = ModelPaths {
        base: files.checkpoint,
        config: None,
        identitynet: Some(files.identitynet),
        ip_adapter: Some(files.adapter),
        face_models: None,
    };
    let (error, heard) = run(&single);
    assert!(error.is_none() && notes(&heard).is_empty(), "{error:?} {heard:?}");
}

#[test]
fn what_the_models_settings_ask_of_a_sampler_belongs_to_its_name() {
    let place = tempfile::tempdir().unwrap();
    let mut request = request();
    let scheduler = serde_json::json!({
        "_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": true, "algorithm_type": "sde-dpmsolver++",
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    });
    stack::with_scheduler(&request.models.base, &scheduler, place.path());
    request.models.base = place.path().to_path_buf();
    let mut made = |sampler: Option<&str>| {
        request.sampler = sampler.map(str::to_string);
        engine::generate(&request, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let (by_settings, by_name) = (made(None), made(Some("DPM++ 2M SDE Karras")));
    assert_eq!(
        (by_settings.plan.sampler, by_settings.plan.sampler_title),
        ("dpmpp_2m_sde_karras", "DPM++ 2M SDE Karras")
    );
    assert_eq!(by_settings.pictures[0].rgb, by_name.pictures[0].rgb);
}
