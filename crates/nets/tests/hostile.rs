//! Configurations with fields changed at random end in a refusal or in sizes that go together, never in a panic, and
//! networks are only asked for from files that hold them. `MUTATIONS=1000000` runs as long as wanted.

use nets::{ClipTextConfig, ControlNet, ControlNetConfig, ResamplerConfig, UNet, UNetConfig, Vae, VaeConfig};
use serde_json::{Value, json};
use tensor::{DType, Device};
use weights::Weights;

fn rounds() -> usize {
    std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000)
}

/// A fixed sequence of numbers below `n`.
struct Pick(u64);

impl Pick {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

fn unet() -> Value {
    json!({
        "sample_size": 128, "in_channels": 4, "out_channels": 4, "center_input_sample": false, "flip_sin_to_cos": true,
        "freq_shift": 0, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn", "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "downsample_padding": 1, "act_fn": "silu",
        "norm_num_groups": 32, "norm_eps": 1e-5, "cross_attention_dim": 2048, "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20], "use_linear_projection": true, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "time_cond_proj_dim": null,
        "conv_in_kernel": 3, "conv_out_kernel": 3, "num_attention_heads": null, "reverse_transformer_layers_per_block": null,
        "controlnet_conditioning_channel_order": "rgb", "conditioning_embedding_out_channels": [16, 32, 96, 256],
    })
}

fn vae() -> Value {
    json!({
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        "layers_per_block": 2, "norm_num_groups": 32, "act_fn": "silu", "scaling_factor": 0.13025, "use_quant_conv": true,
        "use_post_quant_conv": true, "mid_block_add_attention": true, "latents_mean": null, "latents_std": null,
        "sample_size": 1024, "force_upcast": true,
    })
}

fn clip() -> Value {
    json!({
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "projection_dim": 768, "eos_token_id": 2,
    })
}

/// Puts something else in one to three places, also inside lists.
fn mutate(config: &mut Value, pick: &mut Pick) {
    let values = [
        json!(null),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(7),
        json!(1e300),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.5),
        json!(4_294_967_296_u64),
        json!(65_536),
        json!(1_048_576),
        json!("silu"),
        json!(""),
        json!("\u{0}é"),
        json!(true),
        json!([]),
        json!([1]),
        json!([0, 0, 0]),
        json!([u64::MAX, 2, 3]),
        json!([[1], [2, 3], 4]),
        json!({}),
        json!([320, 640, 1280, 1280]),
        json!(["DownBlock2D"]),
        json!({"a": [1]}),
    ];
    let Some(fields) = config.as_object_mut() else { return };
    for _ in 0..1 + pick.below(3) {
        let at = pick.below(fields.len());
        let Some(value) = fields.values_mut().nth(at) else { continue };
        let new = values[pick.below(values.len())].clone();
        match value {
            Value::Array(items) if !items.is_empty() && pick.below(2) == 0 => {
                let at = pick.below(items.len());
                items[at] = new;
            }
            other => *other = new,
        }
    }
}

#[test]
fn mutated_configurations() {
    let mut pick = Pick(11);
    let nothing = Weights::from_f32("nothing", []).unwrap();
    let scope = nothing.root();
    let (device, dtype) = (Device::Cpu, DType::F32);
    let mut accepted = 0;
    for round in 0..rounds() {
        let mut config = [unet(), unet(), vae(), clip(), json!({"dim_head": 64, "heads": 20})][round % 5].clone();
        mutate(&mut config, &mut pick);
        // What is accepted must still be refused for want of tensors, and before memory is taken for them.
        let refused = match round % 5 {
            0 => UNetConfig::from_json(&config).map(|c| UNet::load(&scope, &c, &device, dtype).is_err()),
            1 => ControlNetConfig::from_json(&config).map(|c| ControlNet::load(&scope, &c, &device, dtype).is_err()),
            2 => VaeConfig::from_json(&config).map(|c| Vae::load(&scope, &c, &device, dtype).is_err()),
            3 => ClipTextConfig::from_json(&config, &scope)
                .map(|c| nets::ClipText::load(&scope, &c, &device, dtype).is_err()),
            _ => ResamplerConfig::infer(&scope, Some(&config)).map(|_| false),
        };
        if let Ok(refused) = refused {
            accepted += 1;
            assert!(refused, "{config} was built from nothing");
        }
    }
    println!("{accepted} of {} configurations were possible", rounds());
    assert!(accepted > rounds() / 20);
    assert!(tensor::memory_use().peak < 1 << 24, "{:?}", tensor::memory_use());
}
