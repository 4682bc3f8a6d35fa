//! Samplers and schedules against diffusers' schedulers (`reference/samplers.py`).

use std::ops::ControlFlow;

use engine::Error;
use engine::samplers::{Driver, Kind, SAMPLERS, Sampler, sample};
use engine::schedule::Schedule;
use serde_json::{Value, json};
use tensor::random::TorchCpu;
use tensor::{DType, Device, Tensor};

const SHAPE: [usize; 4] = [1, 2, 3, 4];

/// The made-up network of the reference.
fn network(x: &Tensor, timestep: f32) -> engine::Result<Tensor> {
    let values: Vec<f32> = x
        .to_vec_f32()?
        .into_iter()
        .enumerate()
        .map(|(place, v)| 0.8 * v + (0.2 * (3.0 * place as f64 + 0.01 * f64::from(timestep)).cos()) as f32)
        .collect();
    Ok(Tensor::from_f32(&Device::Cpu, DType::F32, &SHAPE, &values)?)
}

fn run(
    schedule: &Schedule,
    observer: &mut dyn FnMut(&engine::samplers::Step<'_>) -> ControlFlow<()>,
) -> engine::Result<Vec<f32>> {
    let mut generator = TorchCpu::new(5);
    let mut noise = || Ok(Tensor::from_f32(&Device::Cpu, DType::F32, &SHAPE, &generator.randn(24))?);
    let first = noise()?;
    let mut driver = Driver { model: &mut |_, x, t| network(x, t), noise: &mut noise, observer };
    Ok(sample(schedule, &first, &mut driver)?.to_vec_f32()?)
}

fn go_on(_: &engine::samplers::Step<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn trajectories_equal_diffusers() {
    let rows: Vec<Value> = serde_json::from_str(include_str!("fixtures/samplers.json")).unwrap();
    let (mut worst, mut failures) = (0.0f64, Vec::new());
    for row in &rows {
        let name = format!("{} {} in {} steps", row[0], row[1], row[2]);
        let sampler = Sampler::from_name(row[0].as_str().unwrap()).unwrap();
        let schedule = Schedule::new(&row[1], sampler, row[2].as_u64().unwrap() as usize).map(|mut s| {
            s.eta = row[3].as_f64().unwrap();
            s
        });
        let result =
            schedule.as_ref().map_err(|e| e.to_string()).and_then(|s| run(s, &mut go_on).map_err(|e| e.to_string()));
        if row[7].is_null() {
            // Where diffusers ends in what is not finite, there is a refusal, or a picture if the solver got around it.
            if result.as_ref().is_ok_and(|r| r.iter().any(|v| !v.is_finite())) {
                failures.push(format!("{name} is not finite"));
            }
            continue;
        }
        let (schedule, result) = match (schedule, result) {
            (Ok(schedule), Ok(result)) => (schedule, result),
            (_, e) => {
                failures.push(format!("{name}: {e:?}"));
                continue;
            }
        };
        let t = schedule.timesteps();
        let sums = [f64::from(t[0]), f64::from(t[t.len() - 1]), t.iter().map(|t| f64::from(*t)).sum()];
        if sums.iter().zip(numbers(&row[4])).any(|(a, b)| (a - b).abs() > 1e-6 * b.abs().max(1.0)) {
            failures.push(format!("{name}: timesteps {sums:?}, not {}", row[4]));
        }
        let sigmas = schedule.sigmas();
        for (i, expected) in numbers(&row[5]).into_iter().enumerate().filter(|_| !sigmas.is_empty()) {
            let got = f64::from(sigmas[[0, t.len() - 1, t.len()][i]]);
            if (got - expected).abs() > 2e-6 * expected {
                failures.push(format!("{name}: sigma {got}, not {expected}"));
            }
        }
        let first = row[6].as_f64().unwrap();
        assert!((f64::from(schedule.init_noise_sigma()) - first).abs() <= 1e-6 * first, "{name}");

        let expected = numbers(&row[7]);
        let error: f64 = expected.iter().zip(result.iter().step_by(4)).map(|(e, r)| (e - f64::from(*r)).powi(2)).sum();
        let error = (error / expected.iter().map(|e| e * e).sum::<f64>()).sqrt();
        worst = worst.max(error);
        if error.is_nan() || error > 1e-5 {
            failures.push(format!("{name}: relative error {error:e}"));
        }
    }
    println!("{} trajectories, largest relative error {worst:e}", rows.len());
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), rows.len(), failures.join("\n"));
}

#[test]
fn names_of_other_programs_are_known() {
    for (name, expected) in [
        ("Euler a", "euler_a"),
        ("k_euler_ancestral", "euler_a"),
        ("euler_ancestral", "euler_a"),
        ("EULER", "euler"),
        ("DPM++ 2M", "dpmpp_2m"),
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("dpmpp-2m", "dpmpp_2m"),
        ("DPM++ 2M SDE Karras", "dpmpp_2m_sde_karras"),
        ("dpmpp_2m_sde", "dpmpp_2m_sde"),
        ("DDIM", "ddim"),
        ("UniPC", "unipc"),
        ("uni_pc_bh2", "unipc"),
        ("LCM", "lcm"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("sample_dpmpp_2m", "dpmpp_2m"),
    ] {
        assert_eq!(Sampler::from_name(name).unwrap().name(), expected, "{name}");
    }
    for entry in SAMPLERS {
        assert_eq!(Sampler::from_name(entry.name).unwrap(), entry.sampler);
        assert_eq!(Sampler::from_name(entry.title).unwrap(), entry.sampler);
        assert_eq!((entry.sampler.name(), entry.sampler.title()), (entry.name, entry.title));
    }
    let message = Sampler::from_name("heun").unwrap_err().to_string();
    assert!(message.contains("`heun`") && message.contains("dpmpp_2m_karras"), "{message}");
}

#[test]
fn the_models_settings_choose_the_sampler() {
    let class = |name: &str| Sampler::from_config(&json!({ "_class_name": name }));
    assert_eq!(class("UniPCMultistepScheduler").unwrap().kind, Kind::UniPc);
    assert_eq!(class("EulerAncestralDiscreteScheduler").unwrap().name(), "euler_a");
    assert!(class("PNDMScheduler").unwrap_err().to_string().contains("`PNDMScheduler` is not supported; choose"));
    let settings = json!({ "_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": true });
    let schedule = Schedule::new(&settings, Sampler::from_config(&settings).unwrap(), 5).unwrap();
    assert_eq!(schedule.sampler().title(), "DPM++ 2M Karras");
    let settings = json!({ "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": true });
    let schedule = Schedule::new(&settings, Sampler::from_name("dpmpp_2m").unwrap(), 5).unwrap();
    assert_eq!(schedule.sampler().title(), "DPM++ 2M SDE Karras");
}

#[test]
fn what_is_not_supported_is_refused_by_name_and_value() {
    let cases = [
        (
            "euler",
            json!({ "prediction_type": "flow" }),
            5,
            "`prediction_type` is \"flow\"; supported: epsilon, v_prediction",
        ),
        ("euler", json!({ "timestep_spacing": 3 }), 5, "`timestep_spacing` is 3; supported: linspace"),
        ("euler", json!({ "beta_schedule": "sigmoid" }), 5, "`beta_schedule` is \"sigmoid\""),
        ("euler", json!({ "beta_end": 1.5 }), 5, "`beta_end` is 1.5"),
        ("euler", json!({ "num_train_timesteps": 0 }), 5, "`num_train_timesteps` is 0"),
        ("euler", json!({ "use_beta_sigmas": 1 }), 5, "`use_beta_sigmas` is 1; supported: true or false"),
        ("unipc", json!({ "use_beta_sigmas": true, "use_karras_sigmas": true }), 5, "beside another curve"),
        ("euler", json!({ "trained_betas": [0.1, 2] }), 5, "`trained_betas` holds 2 numbers, 1 of them"),
        ("euler", json!({ "use_karras_sigmas": true, "use_exponential_sigmas": true }), 5, "beside another curve"),
        ("euler", json!({ "timestep_spacing": "leading", "steps_offset": 999 }), 2, "timestep 1499"),
        ("dpmpp_2m", json!({ "algorithm_type": "dpmsolver" }), 5, "`algorithm_type` is \"dpmsolver\""),
        ("dpmpp_2m", json!({ "solver_order": 4 }), 5, "`solver_order` is 4; supported: a whole number from 1 to 3"),
        ("dpmpp_2m", json!({ "thresholding": true }), 5, "`thresholding` is true"),
        ("dpmpp_2m", json!({ "use_flow_sigmas": true }), 5, "`use_flow_sigmas` is true"),
        ("dpmpp_2m", json!({ "variance_type": "learned" }), 5, "`variance_type` is \"learned\""),
        ("dpmpp_2m", json!({ "timestep_spacing": "leading" }), 1000, "the same noise level; use fewer steps"),
        ("unipc", json!({ "predict_x0": false }), 5, "`predict_x0` is false"),
        ("unipc", json!({ "disable_corrector": "all" }), 5, "`disable_corrector` is \"all\""),
        (
            "dpmpp_2m",
            json!({ "timestep_spacing": "trailing", "lambda_min_clipped": 99 }),
            5,
            "`lambda_min_clipped` 99 leaves no",
        ),
        ("euler", json!({ "beta_start": 0, "beta_end": 0, "rescale_betas_zero_snr": true }), 5, "the betas"),
        ("euler", json!({ "beta_start": 0.999, "beta_end": 0.999 }), 5, "the betas"),
        (
            "lcm",
            json!({ "num_train_timesteps": 30 }),
            5,
            "`original_inference_steps` is null; supported: a whole number from 1 to 30",
        ),
        ("euler", json!({}), 0, "0 steps were asked for; euler takes 1 to 1000"),
        ("euler", json!({}), 1_000_000_000, "euler takes 1 to 1000"),
        ("lcm", json!({}), 51, "51 steps were asked for; lcm takes 1 to 50"),
    ];
    for (name, settings, steps, expected) in cases {
        let error = Schedule::new(&settings, Sampler::from_name(name).unwrap(), steps).unwrap_err().to_string();
        assert!(error.contains(expected), "{settings}: {error}");
    }
    // What a sampler does not read does not hinder it.
    assert!(Schedule::new(&json!({ "use_beta_sigmas": 1 }), Sampler::from_name("ddim").unwrap(), 5).is_ok());
}

#[test]
fn steps_are_told_and_can_be_broken_off() {
    for entry in SAMPLERS {
        let schedule = Schedule::new(&json!({}), entry.sampler, 4).unwrap();
        let mut seen = Vec::new();
        run(&schedule, &mut |step| {
            assert!(step.preview().unwrap().to_vec_f32().unwrap().iter().all(|v| v.is_finite()));
            seen.push((step.index, step.total));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, [(0, 4), (1, 4), (2, 4), (3, 4)], "{}", entry.name);
        let stopped = run(&schedule, &mut |step| {
            if step.index == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Err(Error::Cancelled)), "{}", entry.name);
    }
}

#[test]
fn any_number_of_steps_gives_a_schedule_or_a_sentence() {
    for spacing in ["leading", "linspace", "trailing"] {
        for entry in SAMPLERS {
            for steps in (1..=70).chain([99, 121, 122, 206, 250, 333, 500, 501, 998, 999, 1000]) {
                let settings = json!({ "timestep_spacing": spacing, "beta_schedule": "scaled_linear" });
                if let Ok(schedule) = Schedule::new(&settings, entry.sampler, steps) {
                    assert_eq!(schedule.len(), steps, "{} {spacing}", entry.name);
                    assert!(schedule.timesteps().iter().all(|t| (0.0..1000.0).contains(t)));
                }
            }
        }
    }
}

/// Settings that a hostile file could hold end in a refusal or in numbers, never in a panic.
#[test]
fn settings_at_random_never_panic() {
    let mut generator = TorchCpu::new(1);
    let mut pick = |n: usize| ((generator.randn(1)[0].abs() * 1e4) as usize) % n;
    let values = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(0.5),
        json!(1e300),
        json!("x"),
        json!("trailing"),
        json!("leading"),
        json!("v_prediction"),
        json!("sample"),
        json!("squaredcos_cap_v2"),
        json!([0, 1]),
        json!({}),
        json!("sde-dpmsolver++"),
        json!("heun"),
        json!("bh1"),
        json!("sigma_min"),
        json!("log_linear"),
        json!(999),
        json!(0.9999),
    ];
    let keys = [
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "timestep_spacing",
        "steps_offset",
        "rescale_betas_zero_snr",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
        "sigma_min",
        "sigma_max",
        "final_sigmas_type",
        "solver_order",
        "solver_type",
        "algorithm_type",
        "lower_order_final",
        "euler_at_final",
        "lambda_min_clipped",
        "set_alpha_to_one",
        "clip_sample",
        "clip_sample_range",
        "original_inference_steps",
        "timestep_scaling",
        "interpolation_type",
        "timestep_type",
        "disable_corrector",
    ];
    let mut ran = 0;
    let rounds: usize = std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    for _ in 0..rounds {
        let mut settings = json!({});
        for _ in 0..1 + pick(3) {
            settings[keys[pick(keys.len())]] = values[pick(values.len())].clone();
        }
        let sampler = SAMPLERS[pick(SAMPLERS.len())].sampler;
        if let Ok(schedule) = Schedule::new(&settings, sampler, 1 + pick(20)) {
            ran += usize::from(run(&schedule, &mut go_on).is_ok());
        }
    }
    assert!(ran > rounds / 6, "{ran} of {rounds} settings were possible");
}
