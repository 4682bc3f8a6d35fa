//! Original layouts against what diffusers' own converters make of them, folders, and what a file is.
#![allow(missing_docs)]

mod common;

use common::{fixture, json, numbers, open, shape};
use serde_json::Value;
use weights::{Error, Family, Folder, Kind, Prediction, Weights, family, identify};

/// The same names, and for each the shape, the sum and the ramp-weighted sum.
fn agrees(weights: &Weights, expected: &Value) {
    let expected = expected.as_object().unwrap();
    let names: Vec<&str> = expected.keys().map(String::as_str).collect();
    assert_eq!(weights.names(), names);
    for (name, row) in expected {
        let values = weights.root().get(name, &shape(row)).unwrap().to_f32().unwrap();
        let ramp = |(i, x): (usize, &f32)| *x as f64 * (i % 7 + 1) as f64;
        let sums = [values.iter().map(|&x| x as f64).sum::<f64>(), values.iter().enumerate().map(ramp).sum()];
        let expected = numbers(&Value::from(row.as_array().unwrap()[1..].to_vec()));
        // f64 sums of 16-bit values are exact; the JSON parser's last digit is not.
        let far = |(sum, expected): (&f64, &f64)| (sum - expected).abs() > 1e-13 * expected.abs();
        assert!(!sums.iter().zip(&expected).any(far), "{name}: {sums:?}, expected {expected:?}");
    }
}

#[test]
fn sdxl_in_one_file() {
    let file = open("sdxl.safetensors");
    assert_eq!((identify(&file), family(&file)), (Kind::SdxlCheckpoint, Family::Sdxl));
    let parts = weights::sdxl_checkpoint(&file).unwrap();
    assert_eq!((parts.prediction, parts.zero_terminal_snr), (Prediction::Velocity, true));
    let expected = json("sdxl.json");
    agrees(&parts.unet, &expected["unet"]);
    agrees(&parts.vae, &expected["vae"]);
    agrees(&parts.text_encoder, &expected["text_encoder"]);
    agrees(&parts.text_encoder_2, &expected["text_encoder_2"]);
    assert_eq!(file.unused(), Vec::<String>::new());
}

#[test]
fn sd15_in_one_file() {
    let file = open("sd15.safetensors");
    assert_eq!(identify(&file), Kind::Sd15Checkpoint);
    let error = weights::sdxl_checkpoint(&file).err().unwrap().to_string();
    assert!(error.ends_with("sd15.safetensors is an SD 1.5 checkpoint; an SDXL checkpoint is needed here"), "{error}");
    let parts = weights::sd15_checkpoint(&file).unwrap();
    assert_eq!((parts.prediction, parts.zero_terminal_snr), (Prediction::Unsaid, false));
    let expected = json("sd15.json");
    agrees(&parts.unet, &expected["unet"]);
    agrees(&parts.vae, &expected["vae"]);
    agrees(&parts.text_encoder, &expected["text_encoder"]);
    assert_eq!(file.unused(), Vec::<String>::new());
}

#[test]
fn controlnet_in_the_original_layout() {
    let file = open("controlnet.safetensors");
    assert_eq!(identify(&file), Kind::ControlNetOriginal);
    agrees(&weights::controlnet(&file).unwrap(), &json("controlnet.json")["controlnet"]);
}

#[test]
fn single_networks_in_either_layout() {
    let parts = weights::sdxl_checkpoint(&open("sdxl.safetensors")).unwrap();
    let file = open("sdxl.safetensors");
    for prefix in ["", "model.diffusion_model"] {
        assert_eq!(weights::unet(&file.select(prefix)).unwrap().names(), parts.unet.names());
    }
    for vae in [file.select("first_stage_model"), parts.vae.clone()] {
        assert_eq!(weights::vae(&vae).unwrap().names(), parts.vae.names());
    }
    assert_eq!(identify(&parts.text_encoder_2), Kind::TextEncoder);
    let error = weights::unet(&parts.vae).err().unwrap().to_string();
    assert!(error.ends_with("is a VAE; a UNet is needed here"), "{error}");
}

#[test]
fn diffusers_first_attention_names() {
    let names =
        ["query", "key", "value", "proj_attn"].map(|name| format!("decoder.mid_block.attentions.0.{name}.weight"));
    let old = Weights::from_f32("old", names.into_iter().map(|name| (name, vec![2, 2], vec![0.0; 4]))).unwrap();
    let leaves: Vec<String> = weights::vae(&old).unwrap().root().push("decoder.mid_block.attentions.0").children();
    assert_eq!(leaves, ["to_k", "to_out", "to_q", "to_v"]);
}

#[test]
fn what_a_file_is() {
    let made = |names: &[&str]| {
        let row = |name: &&str| (name.to_string(), vec![1], vec![0.0]);
        Weights::from_f32("made", names.iter().map(row)).unwrap()
    };
    let rows: [(&[&str], Kind); 9] = [
        (&["down_blocks.0.resnets.0.conv1.weight", "time_embedding.linear_1.weight"], Kind::Unet),
        (&["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"], Kind::ControlNet),
        (&["lora_unet_down_blocks_0.lora_up.weight"], Kind::Lora),
        (&["unet.down_blocks.0.to_q.lora_A.weight"], Kind::Lora),
        (&["model.diffusion_model.double_blocks.0.x"], Kind::Transformer),
        (&["embedding", "kps", "bbox"], Kind::Identity),
        (&["text_model.embeddings.token_embedding.weight"], Kind::TextEncoder),
        (&["image_proj.latents"], Kind::IpAdapter),
        (&["something.else"], Kind::Unknown),
    ];
    for (names, kind) in rows {
        assert_eq!(identify(&made(names)), kind, "{names:?}");
    }
    let error = weights::controlnet(&made(&["b", "a", "d", "c"])).err().unwrap().to_string();
    assert_eq!(error, "made is of an unknown layout (it begins with `a`, `b`, `c`); a ControlNet is needed here");
    let error = weights::ip_adapter(&fixture("half-adapter.safetensors")).err().unwrap().to_string();
    assert!(
        error.ends_with("is an IP-Adapter; an IP-Adapter with tensors under `ip_adapter.` is needed here"),
        "{error}"
    );
    let error = weights::sdxl_checkpoint(&made(&["model.diffusion_model.a", "conditioner.embedders.1.model.b"]));
    assert_eq!(
        error.err().unwrap().to_string(),
        "made cannot be loaded: the checkpoint has no first text encoder; use one that is complete"
    );
}

#[test]
fn a_pipeline_folder() {
    let folder = Folder::open(&fixture("folder")).unwrap();
    assert_eq!(folder.class(), Some("StableDiffusionXLPipeline"));
    assert_eq!(folder.components(), ["scheduler", "text_encoder", "unet", "vae"]);
    assert_eq!(folder.entry("force_zeros_for_empty_prompt"), Some(&Value::Bool(true)));
    assert_eq!(folder.config("scheduler").unwrap()["_class_name"], "EulerDiscreteScheduler");
    assert_eq!(folder.config("vae").unwrap()["latent_channels"], 4);
    let vae = folder.weights("vae").unwrap();
    assert_eq!(identify(&vae), Kind::Vae);
    assert!(vae.root().has("decoder.conv_out.weight") && vae.root().has("encoder.conv_in.weight"));
    assert!(!folder.weights("text_encoder").unwrap().names().is_empty());
    assert_eq!(folder.weights("unet").unwrap().names(), ["conv_in.weight"]);
    let error = folder.weights("image_encoder").unwrap_err().to_string();
    assert!(error.ends_with("it has no component image_encoder; it has scheduler, text_encoder, unet, vae"), "{error}");
    let error = Weights::open(&fixture("folder")).unwrap_err().to_string();
    assert!(error.contains("whole pipeline"), "{error}");
}

/// File names in an index lead nowhere but into the folder, and an index that lies is told.
#[test]
fn shard_indexes_are_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::copy(fixture("only-unet.safetensors"), path.join("shard.safetensors")).unwrap();
    let names: Vec<String> = open("only-unet.safetensors").names().into_iter().map(str::to_owned).collect();
    let index = |map: Value| {
        let text = serde_json::json!({ "weight_map": map }).to_string();
        std::fs::write(path.join("model.safetensors.index.json"), text).unwrap();
        Weights::open(path).map(|weights| weights.names().len()).map_err(|e| e.to_string())
    };
    let all = |file: &str| Value::Object(names.iter().map(|name| (name.clone(), file.into())).collect());
    assert_eq!(index(all("shard.safetensors")), Ok(names.len()));
    for outside in ["../shard.safetensors", "/etc/passwd", "..", "a/b", "a\\b", "", "c:x", "a\0b"] {
        let error = index(all(outside)).unwrap_err();
        assert!(error.contains("is not the name of a file in this folder"), "{outside}: {error}");
    }
    assert!(index(all("other.safetensors")).unwrap_err().contains("other.safetensors"));
    let mut more = all("shard.safetensors");
    more["more"] = "shard.safetensors".into();
    assert!(index(more).unwrap_err().contains("it lists `more`, which none of its files holds"));
    let mut fewer = all("shard.safetensors");
    fewer.as_object_mut().unwrap().remove(&names[0]);
    assert!(index(fewer).unwrap_err().contains("does not list"));
    assert!(index(Value::Null).unwrap_err().contains("no weight_map"));
}

#[test]
fn scopes_name_what_is_wrong() {
    let row = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec(), vec![0.0; shape.iter().product()]);
    let names = ["blocks.10.w", "blocks.2.w", "blocks.x.w", "mid_block.attentions.0.norm.weight"];
    let weights = Weights::from_f32("unet.safetensors", names.iter().map(|name| row(name, &[640]))).unwrap();
    let scope = weights.root().push("mid_block").push("attentions").push(0).push("norm");
    assert_eq!(
        scope.get("weight", &[1280]).unwrap_err().to_string(),
        "`mid_block.attentions.0.norm.weight` in unet.safetensors is [640]; this model needs [1280]"
    );
    assert_eq!(
        scope.get("bias", &[640]).unwrap_err().to_string(),
        "`mid_block.attentions.0.norm.bias` is missing from unet.safetensors; this model needs it as [640]"
    );
    let below = weights.select("mid_block").select("attentions").root().push(0);
    assert_eq!(
        below.get("norm.weight", &[1280]).unwrap_err().to_string(),
        "`mid_block.attentions.0.norm.weight` in unet.safetensors is [640]; this model needs [1280]"
    );
    assert_eq!(weights.root().push("blocks").children(), ["2", "10", "x"]);
    assert_eq!(weights.unused().len(), 4);
    weights.select("blocks").root().get("2.w", &[640]).unwrap();
    weights.root().push("blocks.x").ignore("w");
    assert_eq!(weights.unused(), ["blocks.10.w", "mid_block.attentions.0.norm.weight"]);
}

#[test]
fn whole_numbers_are_no_weights() {
    let weights = open("tensors.safetensors");
    let integers = weights.names().into_iter().filter(|name| !weights.root().dtype(name).unwrap().is_float());
    let mut count = 0;
    for name in integers {
        let error = weights.root().get(name, &weights.root().shape(name).unwrap()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("needs floating point"), "{error}");
        count += 1;
    }
    assert!(count > 3 && weights.unused().len() == weights.names().len());
}

#[test]
fn random_weights_repeat_and_stay_small() {
    let read = |seed, name: &str| Weights::random(seed).root().get(name, &[64, 32, 3, 3]).unwrap().to_f32().unwrap();
    let values = read(1, "a.weight");
    assert_eq!(values, read(1, "a.weight"));
    assert_ne!(values, read(2, "a.weight"));
    assert_ne!(values, read(1, "b.weight"));
    let variance = values.iter().map(|x| (x * x) as f64).sum::<f64>() / values.len() as f64;
    assert!((variance * 288.0 - 1.0).abs() < 0.03, "{variance}");
    let scope = Weights::random(0).root();
    assert!(scope.has("anything") && scope.shape("anything").is_none());
    assert!(matches!(scope.get_any("anything"), Err(Error::Missing { .. })));
    let norm = scope.get("norm.weight", &[1000]).unwrap().to_bf16().unwrap();
    assert!(norm.iter().all(|&bits| (f32::from_bits((bits as u32) << 16) - 1.0).abs() < 0.03));
}
