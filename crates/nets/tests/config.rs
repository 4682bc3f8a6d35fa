//! Configurations: published files, told from tensors, and what is refused.

#![recursion_limit = "256"] // json! takes long objects field by field

mod common;

use common::*;
use nets::*;
use serde_json::{Value, json};
use std::io::Write;
use tensor::{DType, Tensor};
use weights::Weights;

/// What differs from diffusers' defaults in published files, with the fields that users' files always have.
fn sdxl_unet() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "addition_embed_type": "text_time",
        "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280], "center_input_sample": false, "class_embed_type": null,
        "class_embeddings_concat": false, "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_dim": 2048,
        "cross_attention_norm": null, "downsample_padding": 1, "dual_cross_attention": false, "encoder_hid_dim": null,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "encoder_hid_dim_type": null, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_only_cross_attention": null, "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-05, "norm_num_groups": 32,
        "num_attention_heads": null, "num_class_embeds": null, "only_cross_attention": false, "out_channels": 4,
        "projection_class_embeddings_input_dim": 2816, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": false,
        "resnet_time_scale_shift": "default", "sample_size": 128, "time_cond_proj_dim": null,
        "time_embedding_act_fn": null, "time_embedding_dim": null, "time_embedding_type": "positional",
        "timestep_post_act": null, "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": null,
        "use_linear_projection": true,
    })
}

fn sd15_unet() -> Value {
    json!({"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64, "use_linear_projection": false})
}

fn patched(mut config: Value, patch: Value) -> Value {
    patch.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
    config
}

#[test]
fn published_files_are_the_presets() {
    assert_eq!(UNetConfig::from_json(&sdxl_unet()).unwrap(), UNetConfig::sdxl());
    assert_eq!(UNetConfig::from_json(&sd15_unet()).unwrap(), UNetConfig::sd15());
    let hint = json!({"conditioning_embedding_out_channels": [16, 32, 96, 256], "global_pool_conditions": false,
                      "controlnet_conditioning_channel_order": "rgb"});
    assert_eq!(ControlNetConfig::from_json(&patched(sdxl_unet(), hint)).unwrap(), ControlNetConfig::sdxl());
    assert_eq!(ControlNetConfig::from_json(&sd15_unet()).unwrap(), ControlNetConfig::sd15());
    let vae = json!({"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "scaling_factor": 0.13025,
                     "down_block_types": vec!["DownEncoderBlock2D"; 4], "up_block_types": vec!["UpDecoderBlock2D"; 4],
                     "sample_size": 1024, "latents_mean": null, "force_upcast": true});
    assert_eq!(VaeConfig::from_json(&vae).unwrap(), VaeConfig::sdxl());
    let none = Weights::from_f32("memory", []).unwrap();
    let text = json!({"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "eos_token_id": 2,
                      "projection_dim": 768, "architectures": ["CLIPTextModel"]});
    assert_eq!(ClipTextConfig::from_json(&text, &none.root()).unwrap(), ClipTextConfig::clip_l());
}

/// A file of these tensors whose numbers nobody reads: a header and a hole.
fn hollow_file(tensors: &[(String, Vec<usize>)]) -> tempfile::NamedTempFile {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.as_file().set_len((8 + header.len() + end) as u64).unwrap();
    file
}

/// The tensors of a UNet from which its sizes are told.
fn telltale(config: &UNetConfig, linear: bool) -> Vec<(String, Vec<usize>)> {
    let encoder = &config.encoder;
    let first = encoder.levels[0].width;
    let mut out = vec![
        ("conv_in.weight".to_owned(), vec![first, encoder.in_channels, 3, 3]),
        ("conv_out.weight".to_owned(), vec![config.out_channels, first, 3, 3]),
        ("time_embedding.linear_1.weight".to_owned(), vec![encoder.time_embed_dim, first]),
    ];
    if let Some(addition) = &encoder.addition {
        out.push(("add_embedding.linear_1.weight".into(), vec![encoder.time_embed_dim, addition.input_dim]));
    }
    let last = encoder.levels.last().unwrap();
    let MidBlockConfig::CrossAttention { depth, heads } = encoder.mid else { panic!() };
    let mid = Level { attention: Some(vec![depth]), heads, layers: 2, ..last.clone() };
    let down = encoder.levels.iter().enumerate().map(|(i, level)| (format!("down_blocks.{i}"), level));
    let up = config.up.iter().enumerate().map(|(i, level)| (format!("up_blocks.{i}"), level));
    for (block, level) in down.chain(up).chain([("mid_block".to_owned(), &mid)]) {
        let width = level.width;
        for i in 0..level.layers {
            out.push((format!("{block}.resnets.{i}.conv1.weight"), vec![width, width, 3, 3]));
        }
        for (i, &depth) in level.attention.iter().flatten().enumerate() {
            let at = format!("{block}.attentions.{i}");
            let proj_in = if linear { vec![width, width] } else { vec![width, width, 1, 1] };
            out.push((format!("{at}.proj_in.weight"), proj_in));
            let to_k = |j| {
                (format!("{at}.transformer_blocks.{j}.attn2.to_k.weight"), vec![width, encoder.cross_attention_dim])
            };
            out.extend((0..depth).map(to_k));
        }
    }
    out
}

/// The width of one number's embedding leaves no trace in the tensors.
fn without_time_embed_dim(mut config: UNetConfig) -> UNetConfig {
    config.encoder.addition.iter_mut().for_each(|addition| addition.time_embed_dim = None);
    config
}

#[test]
fn published_shapes_tell_the_presets() {
    for (preset, linear) in [(UNetConfig::sdxl(), true), (UNetConfig::sd15(), false)] {
        let mut tensors = telltale(&preset, linear);
        let file = hollow_file(&tensors);
        let weights = Weights::open(file.path()).unwrap();
        assert_eq!(UNetConfig::infer(&weights.root()).unwrap(), without_time_embed_dim(preset.clone()));
        tensors.push(("controlnet_cond_embedding.conv_in.weight".into(), vec![16, 3, 3, 3]));
        for (i, (a, b)) in [(16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256)].into_iter().enumerate() {
            tensors.push((format!("controlnet_cond_embedding.blocks.{i}.weight"), vec![b, a, 3, 3]));
        }
        let file = hollow_file(&tensors);
        let control = ControlNetConfig::infer(&Weights::open(file.path()).unwrap().root()).unwrap();
        assert_eq!(control.encoder, without_time_embed_dim(preset).encoder);
        assert_eq!(control.conditioning_embedding_out_channels, [16, 32, 96, 256]);
    }
}

/// Heads cannot be told; everything else of a tiny model can, and the network then gives the same numbers.
#[test]
fn tensors_tell_a_unet() {
    for name in ["unet_sdxl_a", "unet_sd15"] {
        let f = Fixture::open(name);
        let given = without_time_embed_dim(UNetConfig::from_json(&f.config).unwrap());
        let mut told = UNetConfig::infer(&f.scope()).unwrap();
        let levels = told.encoder.levels.iter_mut().chain(&mut told.up);
        levels.zip(given.encoder.levels.iter().chain(&given.up)).for_each(|(told, given)| told.heads = given.heads);
        if let (MidBlockConfig::CrossAttention { heads, .. }, MidBlockConfig::CrossAttention { heads: known, .. }) =
            (&mut told.encoder.mid, given.encoder.mid)
        {
            *heads = known;
        }
        assert_eq!(told, given, "{name}");
        let unet = UNet::load(&f.scope(), &told, &device(), DType::F32).unwrap();
        f.agrees("sample", &unet_sample(&f, &unet), DType::F32, 1e-4);
    }
}

#[test]
fn tensors_tell_the_other_networks() {
    let f = Fixture::open("vae_sdxl");
    let given = VaeConfig::from_json(&f.config).unwrap();
    let told = VaeConfig::infer(&f.scope()).unwrap();
    assert_eq!(VaeConfig { scaling_factor: 0.13025, sample_size: 32, ..told }, given);
    for name in ["clip_plain", "clip_prefixed", "clip_projection"] {
        let f = Fixture::open(name);
        let given = ClipTextConfig::from_json(&f.config, &f.scope()).unwrap();
        let told = ClipTextConfig::infer(&f.scope()).unwrap();
        let (num_attention_heads, layer_norm_eps) = (given.num_attention_heads, given.layer_norm_eps);
        assert_eq!(
            ClipTextConfig { num_attention_heads, layer_norm_eps, eos_token_id: given.eos_token_id, ..told },
            given
        );
    }
    let config = ResamplerConfig::infer(&Fixture::open("resampler_a").scope(), None).unwrap();
    assert_eq!((config.dim_head, config.heads, config.num_queries), (64, 2, 5));
    // 48 channels: the greatest power of two that divides them.
    let config = ResamplerConfig::infer(&Fixture::open("resampler_b").scope(), None).unwrap();
    assert_eq!((config.dim_head, config.heads), (16, 3));
}

/// A refusal names the field, shows its value and says what would be valid.
#[test]
fn unsupported_fields_are_refused_by_name() {
    let rows = [
        (json!({"class_embed_type": "timestep"}), "`class_embed_type` is \"timestep\"; only null is supported"),
        (json!({"num_class_embeds": 7}), "`num_class_embeds` is 7; only null"),
        (json!({"addition_embed_type": "image"}), "`addition_embed_type` is \"image\"; only text_time or null"),
        (json!({"resnet_time_scale_shift": "scale_shift"}), "only null or \"default\" is supported"),
        (json!({"only_cross_attention": [true, false, false]}), "`only_cross_attention` is [true,false,false]"),
        (json!({"dual_cross_attention": true}), "`dual_cross_attention` is true; only null or false"),
        (json!({"encoder_hid_dim": 5}), "`encoder_hid_dim` is 5"),
        (json!({"time_embedding_type": "fourier"}), "`time_embedding_type` is \"fourier\""),
        (json!({"mid_block_scale_factor": 1.5}), "`mid_block_scale_factor` is 1.5; only null or 1"),
        (json!({"attention_type": "gated"}), "`attention_type` is \"gated\""),
        (json!({"act_fn": "mish"}), "`act_fn` is \"mish\"; expected silu"),
        (
            json!({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}),
            "expected UNetMidBlock2DCrossAttn, UNetMidBlock2D",
        ),
        (
            json!({"down_block_types": ["DownBlock2D", "KDownBlock2D", "DownBlock2D"]}),
            "expected DownBlock2D and CrossAttn",
        ),
        (json!({"up_block_types": ["UpBlock2D"]}), "`up_block_types` is [\"UpBlock2D\"]; expected 3 names"),
        (
            json!({"attention_head_dim": [5, 10, 7]}),
            "`attention_head_dim[2]` is 7; expected a divisor of the level's width, 1280",
        ),
        (json!({"attention_head_dim": [5, 10]}), "expected one number, or 3"),
        (
            json!({"block_out_channels": [320, 648, 1280]}),
            "`block_out_channels[1]` is 648; expected a multiple of `norm_num_groups`, 32",
        ),
        (json!({"norm_num_groups": null}), "`norm_num_groups` is null; expected a number"),
        (json!({"norm_num_groups": 0}), "`norm_num_groups` is 0; expected a whole number from 1"),
        (json!({"cross_attention_dim": [2048, 1024, 2048]}), "expected one number, or the same for all levels"),
        (json!({"layers_per_block": 1000000}), "`layers_per_block` is 1000000"),
        (json!({"block_out_channels": [u64::MAX]}), "`block_out_channels` is [18446744073709551615]"),
        (json!({"conv_in_kernel": 4}), "`conv_in_kernel` is 4; expected an odd number"),
        (json!({"freq_shift": 160}), "`freq_shift` is 160"),
        (json!({"norm_eps": -1}), "`norm_eps` is -1; expected a number from 0 to 1"),
        (json!({"projection_class_embeddings_input_dim": null}), "`projection_class_embeddings_input_dim` is null"),
        (json!({"transformer_layers_per_block": [1, [2, 2], 10]}), "needs `reverse_transformer_layers_per_block`"),
        (json!({"transformer_layers_per_block": [1, [2], 10]}), "a list of 2 for a level of 2 layers"),
        (json!({"transformer_layers_per_block": [1, 2]}), "expected one number or a list of 3"),
    ];
    let deep = json!({"block_out_channels": vec![320; 17], "down_block_types": vec!["DownBlock2D"; 17],
        "up_block_types": vec!["UpBlock2D"; 17], "attention_head_dim": 5, "transformer_layers_per_block": 1});
    let rows = rows.into_iter().chain([(deep, "`block_out_channels` is 17; expected 1 to 16 levels")]);
    for (patch, expected) in rows {
        let message = UNetConfig::from_json(&patched(sdxl_unet(), patch.clone())).unwrap_err().to_string();
        assert!(message.starts_with("UNet configuration: `") && message.contains(expected), "{patch}: {message}");
    }
    assert_eq!(
        UNetConfig::from_json(&json!([])).unwrap_err().to_string(),
        "UNet configuration: `config.json` is []; expected an object with named fields"
    );
}

/// Whatever a field holds, reading it and loading what it asks for gives a result or an error.
#[test]
fn hostile_values_give_errors() {
    let hostile = [
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(65536),
        json!(1e300),
        json!(u64::MAX),
        json!(1.5),
        json!(true),
        json!(""),
        json!("é\u{0}"),
        json!([]),
        json!([0]),
        json!([1, 1, 1]),
        json!([[[]]]),
        json!({}),
        json!([1e308, null]),
        json!(null),
        json!([65536, 65536, 65536, 65536]),
    ];
    let device = device();
    let each = |names: &[&'static str], read: &dyn Fn(&Fixture, &Value)| {
        for f in names.iter().map(|name| Fixture::open(name)) {
            for field in f.config.as_object().unwrap().keys() {
                hostile.iter().for_each(|value| read(&f, &patched(f.config.clone(), json!({field: value}))));
            }
        }
    };
    each(&["unet_sdxl_a", "unet_sd15"], &|f, config| {
        let _ = UNetConfig::from_json(config).and_then(|config| UNet::load(&f.scope(), &config, &device, DType::F32));
    });
    each(&["controlnet_sdxl", "controlnet_sd15"], &|f, config| {
        let config = ControlNetConfig::from_json(config);
        let _ = config.and_then(|config| ControlNet::load(&f.scope(), &config, &device, DType::F32));
    });
    each(&["vae_plain", "vae_sdxl"], &|f, config| {
        if let Ok(net) =
            VaeConfig::from_json(config).and_then(|config| Vae::load(&f.scope(), &config, &device, DType::F32))
        {
            let tensor = Tensor::zeros(&device, DType::F32, &[1, 4, 4, 4]).unwrap();
            let _ = net.decode(&tensor);
        }
    });
    each(&["clip_plain"], &|f, config| {
        let config = ClipTextConfig::from_json(config, &f.scope());
        if let Ok(net) = config.and_then(|config| ClipText::load(&f.scope(), &config, &device, DType::F32)) {
            let _ = net.forward(&[vec![1, 2]], 1);
        }
    });
    each(&["resampler_b"], &|f, config| {
        let config = ResamplerConfig::infer(&f.scope(), Some(config));
        let _ = config.and_then(|config| Resampler::load(&f.scope(), &config, &device, DType::F32));
    });
    for value in
        [json!({"heads": 7}), json!({"dim_head": 5}), json!({"dim_head": 0}), json!({"dim_head": 8, "heads": 3})]
    {
        let f = Fixture::open("resampler_b");
        assert!(ResamplerConfig::infer(&f.scope(), Some(&value)).is_err(), "{value}");
    }
}

/// Weights of another sort are told apart by what they lack.
#[test]
fn other_networks_are_not_recognised() {
    let scope = Fixture::open("clip_plain").scope();
    let rows = [
        (UNetConfig::infer(&scope).unwrap_err(), "does not look like a UNet: it has no `conv_in.weight`"),
        (ControlNetConfig::infer(&scope).unwrap_err(), "does not look like a ControlNet: it has no `conv_in.weight`"),
        (VaeConfig::infer(&scope).unwrap_err(), "does not look like a VAE: it has no `encoder.conv_in.weight`"),
        (ResamplerConfig::infer(&scope, None).unwrap_err(), "does not look like a Resampler: it has no `latents`"),
        (
            ClipTextConfig::infer(&Fixture::open("vae_plain").scope()).unwrap_err(),
            "it has no `text_model.embeddings.token_embedding.weight`",
        ),
        (
            ControlNetConfig::infer(&Fixture::open("unet_sd15").scope()).unwrap_err(),
            "it has no `controlnet_cond_embedding.conv_in.weight`",
        ),
    ];
    for (error, expected) in rows {
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn parameters_are_counted_before_anything_is_built() {
    let near = |counted: usize, published: f64| assert!((counted as f64 / published - 1.0).abs() < 1e-3, "{counted}");
    near(UNetConfig::sdxl().parameters(), 2_567_463_684.0);
    near(UNetConfig::sd15().parameters(), 859_520_964.0);
    near(ControlNetConfig::sdxl().parameters(), 1_251_015_248.0);
    near(VaeConfig::sdxl().parameters(), 83_653_863.0);
    near(ClipTextConfig::clip_l().parameters(), 123_060_480.0);
    near(ClipTextConfig::open_clip_g().parameters(), 694_659_840.0);
}
