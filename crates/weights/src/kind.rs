//! Which model a file holds, told from its names and shapes.

use std::fmt;

use crate::error::Quoted;
use crate::table::Weights;

/// What a set of tensors is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A whole SDXL model in the original layout.
    SdxlCheckpoint,
    /// An SDXL refiner, which has only the second text encoder.
    SdxlRefinerCheckpoint,
    /// A whole Stable Diffusion 2 model in the original layout.
    Sd2Checkpoint,
    /// A whole Stable Diffusion 1 model in the original layout.
    Sd15Checkpoint,
    /// Stable Diffusion 3, Flux and other transformers.
    Transformer,
    /// A UNet with diffusers' names.
    Unet,
    /// A UNet with the original's names.
    UnetOriginal,
    /// A ControlNet, IdentityNet included, with diffusers' names.
    ControlNet,
    /// A ControlNet with the original's names.
    ControlNetOriginal,
    /// An autoencoder with diffusers' names.
    Vae,
    /// An autoencoder with the original's names.
    VaeOriginal,
    /// A CLIP text encoder with transformers' names.
    TextEncoder,
    /// A CLIP image encoder.
    VisionEncoder,
    /// An IP-Adapter, InstantID's included.
    IpAdapter,
    /// A LoRA.
    Lora,
    /// A textual inversion.
    Embedding,
    /// A saved face.
    Identity,
    /// None of these.
    Unknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::SdxlCheckpoint => "an SDXL checkpoint",
            Kind::SdxlRefinerCheckpoint => "an SDXL refiner checkpoint",
            Kind::Sd2Checkpoint => "an SD 2 checkpoint",
            Kind::Sd15Checkpoint => "an SD 1.5 checkpoint",
            Kind::Transformer => "a diffusion transformer such as SD 3 or Flux",
            Kind::Unet | Kind::UnetOriginal => "a UNet",
            Kind::ControlNet | Kind::ControlNetOriginal => "a ControlNet",
            Kind::Vae | Kind::VaeOriginal => "a VAE",
            Kind::TextEncoder => "a CLIP text encoder",
            Kind::VisionEncoder => "a CLIP image encoder",
            Kind::IpAdapter => "an IP-Adapter",
            Kind::Lora => "a LoRA",
            Kind::Embedding => "a textual inversion",
            Kind::Identity => "a saved face",
            Kind::Unknown => "of an unknown layout",
        })
    }
}

/// The family that a UNet or ControlNet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Text of 768 numbers a token.
    Sd15,
    /// Text of 1024 numbers a token.
    Sd2,
    /// A second embedding of pooled text and sizes.
    Sdxl,
    /// Neither.
    Unknown,
}

/// What these tensors are. A name that only one kind has decides, so that tiny and unusual sizes are told too.
pub fn identify(weights: &Weights) -> Kind {
    let names = weights.entries();
    let has = |name: &str| names.contains_key(name);
    let below =
        |prefix: &str| names.range(prefix.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(prefix));
    let ends = |end: &str| names.keys().any(|name| name.ends_with(end));

    if below("model.diffusion_model.") {
        return if below("model.diffusion_model.joint_blocks.") || below("model.diffusion_model.double_blocks.") {
            Kind::Transformer
        } else if below("conditioner.embedders.1.") {
            Kind::SdxlCheckpoint
        } else if below("conditioner.embedders.0.model.") {
            Kind::SdxlRefinerCheckpoint
        } else if below("cond_stage_model.model.") {
            Kind::Sd2Checkpoint
        } else if below("cond_stage_model.") {
            Kind::Sd15Checkpoint
        } else if below("model.diffusion_model.input_blocks.") {
            Kind::UnetOriginal
        } else {
            Kind::Unknown
        };
    }
    if below("image_proj.") || below("ip_adapter.") {
        return Kind::IpAdapter;
    }
    if below("lora_unet_")
        || below("lora_te")
        || ends(".lora_A.weight")
        || ends(".lora_down.weight")
        || ends(".lora.down.weight")
    {
        return Kind::Lora;
    }
    if below("joint_blocks.") || below("double_blocks.") || below("transformer_blocks.") {
        return Kind::Transformer;
    }
    if below("control_model.") || below("zero_convs.") || below("input_hint_block.") {
        return Kind::ControlNetOriginal;
    }
    if below("controlnet_cond_embedding.") || below("controlnet_down_blocks.") {
        return Kind::ControlNet;
    }
    if below("input_blocks.") && below("time_embed.") {
        return Kind::UnetOriginal;
    }
    if below("down_blocks.") && below("time_embedding.") {
        return Kind::Unet;
    }
    if below("first_stage_model.") || below("decoder.up.") || below("decoder.mid.") || below("encoder.down.") {
        return Kind::VaeOriginal;
    }
    if below("decoder.up_blocks.") || below("decoder.mid_block.") || below("encoder.down_blocks.") {
        return Kind::Vae;
    }
    if below("text_model.") || has("embeddings.token_embedding.weight") {
        return Kind::TextEncoder;
    }
    if below("vision_model.") || has("visual.conv1.weight") {
        return Kind::VisionEncoder;
    }
    if has("embedding") && (has("kps") || has("bbox")) {
        return Kind::Identity;
    }
    if has("emb_params") || has("clip_l") || has("clip_g") || has("string_to_param.*") {
        return Kind::Embedding;
    }
    Kind::Unknown
}

/// The family of a UNet, ControlNet or checkpoint, told from its second embedding or from the width of its text.
pub fn family(weights: &Weights) -> Family {
    let names = weights.entries();
    if names.keys().any(|name| name.contains("add_embedding.linear_1.") || name.contains("label_emb.0.0.")) {
        return Family::Sdxl;
    }
    let text = names.iter().find(|(name, _)| name.ends_with(".attn2.to_k.weight"));
    match text.and_then(|(_, entry)| entry.tensor.shape.last()) {
        Some(768) => Family::Sd15,
        Some(1024) => Family::Sd2,
        Some(2048) => Family::Sdxl,
        _ => Family::Unknown,
    }
}

/// What these tensors are, in words that fit after "is": for messages. An unknown layout is shown by its first names.
pub fn describe(weights: &Weights) -> String {
    let kind = identify(weights);
    match kind {
        Kind::Unknown => {
            let first: Vec<String> = weights.entries().keys().take(3).map(|name| Quoted(name).to_string()).collect();
            format!("{kind} (it begins with {})", first.join(", "))
        }
        Kind::Unet | Kind::UnetOriginal | Kind::ControlNet | Kind::ControlNetOriginal => {
            let kind = kind.to_string();
            let noun = kind.trim_start_matches("a ");
            match family(weights) {
                Family::Sd15 => format!("an SD 1.5 {noun}"),
                Family::Sd2 => format!("an SD 2 {noun}"),
                Family::Sdxl => format!("an SDXL {noun}"),
                Family::Unknown => kind,
            }
        }
        _ => kind.to_string(),
    }
}
