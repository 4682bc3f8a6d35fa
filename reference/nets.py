"""Writes crates/nets/tests/fixtures: tiny random networks of diffusers and transformers with inputs and outputs.

    python reference/nets.py [NAME ...]          all fixtures, or those named

One safetensors file each: `w.*` the weights under the names that `save_pretrained` gives them, `in.*` inputs and
`out.*` outputs in the layouts of the Rust crate (images and latents NHWC), metadata `fixture` an object with
`config`, the config.json, and `case`, the scalar inputs. Weights are rounded to f16 before the reference runs and
stored as f16, inputs and outputs as f32. Every parameter is random, norms, biases and zero-initialised convolutions included, so that a swapped or
forgotten one shows.
"""

import json
import math
import os
import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

FOLDER = os.path.join(os.path.dirname(__file__), "..", "crates", "nets", "tests", "fixtures")
FIXTURES = {}


def fixture(function):
    FIXTURES[function.__name__] = function
    return function


def randomise(tensors, generator):
    """Random values for a name -> tensor map, in place: norms about one, small biases, the deviation that PyTorch gives
    a fresh layer, but queries and keys strong enough that softmax has an opinion."""
    strong = ("to_q", "to_k", "q_proj", "k_proj", "to_kv")
    for name, value in tensors.items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("bias"):
            noise *= 0.1
        elif value.ndim == 1:
            noise = 1 + 0.2 * noise
        elif name.endswith("embedding.weight") or name == "latents":
            noise *= 0.5
        else:
            noise /= math.sqrt(value[0].numel() * (1 if any(part in name for part in strong) else 3))
        value.copy_(noise.half().float())


def model(cls, config, seed):
    torch.manual_seed(0)
    built = cls(config) if isinstance(config, CLIPTextConfig) else cls(**config)
    built.eval()
    with torch.no_grad():
        randomise(dict(built.named_parameters()), torch.Generator().manual_seed(seed))
    return built


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nhwc(x):
    return x.permute(0, 2, 3, 1).contiguous()


def save(name, weights, config, case, inputs, outputs):
    tensors = {f"w.{k}": v.detach().half().contiguous() for k, v in weights.items()}
    for prefix, group in (("in", inputs), ("out", outputs)):
        tensors |= {f"{prefix}.{k}": v.detach().float().contiguous() for k, v in group.items()}
    path = os.path.join(FOLDER, name + ".safetensors")
    # One entry: the library writes several in an order of its own each time.
    save_file(tensors, path, {"fixture": json.dumps({"config": config, "case": case})})
    os.chmod(path, 0o644)
    print(f"{name}: {os.path.getsize(path) / 1000:.0f} kB")


def config_of(built):
    """The config.json as `save_pretrained` writes it, defaults and all."""
    if hasattr(built.config, "to_json_string"):
        return json.loads(built.config.to_json_string())
    return json.loads(built.to_json_string())


# --- UNet -----------------------------------------------------------------------------------------------------------

SDXL_A = dict(
    block_out_channels=(8, 12, 20), layers_per_block=1, norm_num_groups=4, cross_attention_dim=20,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 1), attention_head_dim=(2, 3, 5), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=12 + 6 * 8,
)
SDXL_B = dict(
    in_channels=5, out_channels=3, block_out_channels=(12, 20), layers_per_block=(2, 1), norm_num_groups=4,
    norm_eps=1e-4, cross_attention_dim=14, act_fn="gelu", flip_sin_to_cos=False, freq_shift=1, conv_in_kernel=5,
    conv_out_kernel=1, downsample_padding=0, center_input_sample=True, time_cond_proj_dim=6, time_embedding_dim=30,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), mid_block_type="UNetMidBlock2D",
    transformer_layers_per_block=[[1, 2], 1], reverse_transformer_layers_per_block=[[1, 2], [2, 1, 1]],
    attention_head_dim=(3, 1), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=6, projection_class_embeddings_input_dim=7 + 6 * 6,
)
SD15 = dict(
    block_out_channels=(8, 8, 12, 12), layers_per_block=1, norm_num_groups=4, cross_attention_dim=14,
    attention_head_dim=4,
)
IDENTITY = dict(
    block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=18,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2), attention_head_dim=(2, 4), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=10 + 6 * 4,
)


def added_inputs(config, batch, seed):
    if config.get("addition_embed_type") is None:
        return None
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    ids = torch.tensor([[1024.0, 768.0, 0.0, 16.0, 1024.0, 1024.0]]).repeat(batch, 1)
    ids[0, 3] = 0
    return {"text_embeds": noise(batch, pooled, seed=seed), "time_ids": ids}


def unet_case(name, config, seed, batch, size, tokens, timestep, guidance=None):
    unet = model(UNet2DConditionModel, config, seed)
    latent = noise(batch, unet.config.in_channels, *size, seed=seed + 1)
    text = noise(batch, tokens, unet.config.cross_attention_dim, seed=seed + 2)
    added = added_inputs(config, batch, seed + 3)
    inputs, case = {"latent": nhwc(latent), "text": text}, {"timestep": timestep}
    if added:
        inputs |= {"pooled": added["text_embeds"], "time_ids": added["time_ids"]}
    condition = None
    if guidance is not None:
        # The embedding of the guidance weight in latent consistency models (arXiv:2310.04378), as the pipelines call it.
        half = config["time_cond_proj_dim"] // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(10000.0) / (half - 1)))
        angles = torch.full((batch, 1), guidance - 1.0) * 1000.0 * frequencies[None]
        condition = torch.cat([angles.sin(), angles.cos()], dim=1)
        case["guidance"] = guidance
    with torch.no_grad():
        out = unet(latent, timestep, text, timestep_cond=condition, added_cond_kwargs=added).sample
    save(name, unet.state_dict(), config_of(unet), case, inputs, {"sample": nhwc(out)})


@fixture
def unet_sdxl_a():
    unet_case("unet_sdxl_a", SDXL_A, 10, 2, (8, 12), 7, 981)


@fixture
def unet_sdxl_b():
    unet_case("unet_sdxl_b", SDXL_B, 20, 1, (7, 9), 11, 17.25, guidance=3.5)


@fixture
def unet_sd15():
    unet_case("unet_sd15", SD15, 30, 1, (9, 14), 6, 500)


class IdentityAttention(torch.nn.Module):
    """Decoupled cross-attention (arXiv:2308.06721, equation 5): the last tokens of the context are identity tokens,
    attended to with keys and values of their own; the two results are added, the second one weighted."""

    def __init__(self, width, context, tokens, scale):
        super().__init__()
        self.to_k_ip = torch.nn.Linear(context, width, bias=False)
        self.to_v_ip = torch.nn.Linear(context, width, bias=False)
        self.tokens, self.scale = tokens, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        def heads(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        text, identity = encoder_hidden_states.split([encoder_hidden_states.shape[1] - self.tokens, self.tokens], dim=1)
        q = heads(attn.to_q(hidden_states))
        x = F.scaled_dot_product_attention(q, heads(attn.to_k(text)), heads(attn.to_v(text)))
        x = x + self.scale * F.scaled_dot_product_attention(
            q, heads(self.to_k_ip(identity)), heads(self.to_v_ip(identity))
        )
        return attn.to_out[0](x.transpose(1, 2).flatten(2))


@fixture
def unet_identity():
    """A UNet with an identity branch of 4 tokens and the residuals of a ControlNet."""
    scale, tokens = 0.7, 4
    unet = model(UNet2DConditionModel, IDENTITY, 40)
    plain = dict(unet.state_dict())
    latent = noise(2, 4, 6, 10, seed=41)
    text = noise(2, 9, 18, seed=42)
    identity = noise(2, tokens, 18, seed=43)
    added = added_inputs(IDENTITY, 2, 44)
    processors = {}
    for name, processor in unet.attn_processors.items():
        cross = unet.get_submodule(name.removesuffix(".processor")).to_k
        if "attn2" in name:
            processor = IdentityAttention(cross.out_features, cross.in_features, tokens, scale)
        processors[name] = processor
    unet.set_attn_processor(processors)
    # The adapter's file numbers the processors in this order.
    adapter = {
        f"{i}.{name}": parameter
        for i, processor in enumerate(unet.attn_processors.values())
        if isinstance(processor, IdentityAttention)
        for name, parameter in processor.named_parameters()
    }
    with torch.no_grad():
        randomise(adapter, torch.Generator().manual_seed(45))
        shapes = [(8, 6, 10), (8, 6, 10), (8, 3, 5), (16, 3, 5)]
        residuals = [0.3 * noise(2, *shape, seed=46 + i) for i, shape in enumerate(shapes)]
        middle = 0.3 * noise(2, 16, 3, 5, seed=60)
        context = torch.cat([text, identity], dim=1)
        run = lambda **extra: unet(latent, 321, context, added_cond_kwargs=added, **extra).sample
        both = run(down_block_additional_residuals=residuals, mid_block_additional_residual=middle)
        alone = run()
    inputs = {"latent": nhwc(latent), "text": text, "identity": identity, "mid": nhwc(middle)}
    inputs |= {"pooled": added["text_embeds"], "time_ids": added["time_ids"]}
    inputs |= {f"down.{i}": nhwc(r) for i, r in enumerate(residuals)}
    weights = plain | {f"ip_adapter.{k}": v for k, v in adapter.items()}
    save(
        "unet_identity", weights, config_of(unet), {"timestep": 321, "identity_scale": scale}, inputs,
        {"sample": nhwc(both), "identity_alone": nhwc(alone)},
    )


# --- ControlNet -----------------------------------------------------------------------------------------------------

CONTROL_SDXL = dict(
    block_out_channels=(12, 20), layers_per_block=2, norm_num_groups=4, cross_attention_dim=16,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), transformer_layers_per_block=(1, 2),
    attention_head_dim=(2, 5), use_linear_projection=True, conditioning_embedding_out_channels=(4, 6, 10, 12),
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=12 + 6 * 8,
)
CONTROL_SD15 = dict(
    block_out_channels=(8, 12, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=10,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=2,
    conditioning_embedding_out_channels=(4, 5, 8), controlnet_conditioning_channel_order="bgr",
)


def controlnet_case(name, config, seed, batch, size, tokens, timestep, scale):
    net = model(ControlNetModel, config, seed)
    zoom = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    latent = noise(batch, 4, *size, seed=seed + 1)
    context = noise(batch, tokens, config["cross_attention_dim"], seed=seed + 2)
    hint = torch.rand(batch, 3, size[0] * zoom, size[1] * zoom, generator=torch.Generator().manual_seed(seed + 3))
    added = added_inputs(config, batch, seed + 4)
    with torch.no_grad():
        down, mid = net(latent, timestep, context, hint, scale, added_cond_kwargs=added, return_dict=False)
    inputs = {"latent": nhwc(latent), "tokens": context, "hint": nhwc(hint)}
    if added:
        inputs |= {"pooled": added["text_embeds"], "time_ids": added["time_ids"]}
    outputs = {f"down.{i}": nhwc(d) for i, d in enumerate(down)} | {"mid": nhwc(mid)}
    save(name, net.state_dict(), config_of(net), {"timestep": timestep, "scale": scale}, inputs, outputs)


@fixture
def controlnet_sdxl():
    controlnet_case("controlnet_sdxl", CONTROL_SDXL, 70, 2, (6, 4), 5, 777, 0.8)


@fixture
def controlnet_sd15():
    controlnet_case("controlnet_sd15", CONTROL_SD15, 80, 1, (5, 7), 4, 3, 1.0)


# --- Resampler ------------------------------------------------------------------------------------------------------


def resampler(w, x, depth, heads):
    """InstantID's perceiver resampler (its ip_adapter/resampler.py; arXiv:2204.14198), written out over its tensors."""

    def norm(name, y):
        return F.layer_norm(y, y.shape[-1:], w[name + ".weight"], w[name + ".bias"])

    def split(y):
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    latents = w["latents"].expand(x.shape[0], -1, -1)
    x = F.linear(x, w["proj_in.weight"], w["proj_in.bias"])
    for i in range(depth):
        a, f = f"layers.{i}.0", f"layers.{i}.1"
        tokens, queries = norm(a + ".norm1", x), norm(a + ".norm2", latents)
        k, v = F.linear(torch.cat([tokens, queries], 1), w[a + ".to_kv.weight"]).chunk(2, dim=-1)
        q = F.linear(queries, w[a + ".to_q.weight"])
        y = F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)
        latents = latents + F.linear(y, w[a + ".to_out.weight"])
        y = F.gelu(F.linear(norm(f + ".0", latents), w[f + ".1.weight"]))
        latents = latents + F.linear(y, w[f + ".3.weight"])
    return norm("norm_out", F.linear(latents, w["proj_out.weight"], w["proj_out.bias"]))


def resampler_case(name, seed, dim, depth, heads, dim_head, queries, embedding, output, mult, batch, given):
    inner, shapes = heads * dim_head, {"latents": (1, queries, dim)}
    shapes |= {"proj_in.weight": (dim, embedding), "proj_in.bias": (dim,)}
    shapes |= {"proj_out.weight": (output, dim), "proj_out.bias": (output,)}
    shapes |= {"norm_out.weight": (output,), "norm_out.bias": (output,)}
    for i in range(depth):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"layers.{i}.{norm}.weight": (dim,), f"layers.{i}.{norm}.bias": (dim,)}
        shapes |= {f"layers.{i}.0.to_q.weight": (inner, dim), f"layers.{i}.0.to_kv.weight": (2 * inner, dim)}
        shapes |= {f"layers.{i}.0.to_out.weight": (dim, inner), f"layers.{i}.1.1.weight": (dim * mult, dim)}
        shapes |= {f"layers.{i}.1.3.weight": (dim, dim * mult)}
    weights = {k: torch.empty(s) for k, s in shapes.items()}
    randomise(weights, torch.Generator().manual_seed(seed))
    x = noise(batch, 1, embedding, seed=seed + 1)
    config = {"dim_head": dim_head} if given else {}
    save(name, weights, config, {}, {"embedding": x}, {"tokens": resampler(weights, x, depth, heads)})


@fixture
def resampler_a():
    resampler_case("resampler_a", 90, 24, 2, 2, 64, 5, 32, 20, 4, 2, False)


@fixture
def resampler_b():
    resampler_case("resampler_b", 95, 36, 3, 6, 8, 16, 20, 28, 2, 1, True)


# --- CLIP -----------------------------------------------------------------------------------------------------------

CLIP_IDS = [[60, 5, 17, 3, 61, 61, 61], [60, 61, 9, 2, 44, 7, 61]]


def clip_case(name, cls, seed, rename=lambda key: key, **config):
    config = CLIPTextConfig(vocab_size=64, bos_token_id=60, pad_token_id=61, **config)
    net = model(cls, config, seed)
    with torch.no_grad():
        out = net(torch.tensor(CLIP_IDS), output_hidden_states=True)
    states = {f"hidden.{i}": h for i, h in enumerate(out.hidden_states)}
    pooled = out.text_embeds if cls is CLIPTextModelWithProjection else out.pooler_output
    weights = {rename(k): v for k, v in net.state_dict().items() if not k.endswith("position_ids")}
    assert any(k.startswith("text_model.") for k in weights) == (name != "clip_plain"), sorted(weights)[0]
    # Not the config after loading: transformers adds fields of its own version.
    save(name, weights, config.to_dict(), {"ids": CLIP_IDS}, {}, states | {"last": out.last_hidden_state, "pooled": pooled})


CLIP_L = dict(hidden_size=24, intermediate_size=56, num_hidden_layers=3, num_attention_heads=3,
              max_position_embeddings=7, eos_token_id=2)


@fixture
def clip_plain():
    clip_case("clip_plain", CLIPTextModel, 100, **CLIP_L)


@fixture
def clip_prefixed():
    """The published layout of the same encoder."""
    clip_case("clip_prefixed", CLIPTextModel, 101, lambda k: "text_model." + k, **CLIP_L)


@fixture
def clip_projection():
    clip_case("clip_projection", CLIPTextModelWithProjection, 102, hidden_size=32, intermediate_size=72,
              num_hidden_layers=4, num_attention_heads=2, max_position_embeddings=9, hidden_act="gelu",
              projection_dim=18, layer_norm_eps=1e-4, eos_token_id=61)


# --- VAE ------------------------------------------------------------------------------------------------------------


def vae_case(name, config, seed, image, latent, tile, tiled, tiled_image, rename=lambda key: key):
    vae = model(AutoencoderKL, config, seed)
    zoom = 2 ** (len(config["block_out_channels"]) - 1)
    x = noise(1, 3, *image, seed=seed + 1).clamp(-1, 1)
    z = noise(2, config["latent_channels"], *latent, seed=seed + 2)
    big_z = noise(1, config["latent_channels"], *tiled, seed=seed + 3)
    big_x = noise(1, 3, *tiled_image, seed=seed + 4).clamp(-1, 1)
    with torch.no_grad():
        moments = vae.encode(x).latent_dist
        plain = vae.decode(z).sample
        vae.use_tiling, vae.tile_latent_min_size, vae.tile_sample_min_size = True, tile, tile * zoom
        blended = vae.decode(big_z).sample
        blended_moments = vae.encode(big_x).latent_dist
    inputs = {"image": nhwc(x), "latent": nhwc(z), "tiled": nhwc(big_z), "tiled_image": nhwc(big_x)}
    outputs = {"mean": nhwc(moments.mean), "logvar": nhwc(moments.logvar), "image": nhwc(plain), "tiled": nhwc(blended)}
    outputs["tiled_mean"] = nhwc(blended_moments.mean)
    weights = {rename(k): v for k, v in vae.state_dict().items()}
    save(name, weights, config_of(vae), {"tile": tile, "overlap": tile // 4}, inputs, outputs)


def old_attention(key):
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        key = key.replace(f"attentions.0.{new}", f"attentions.0.{old}")
    return key


@fixture
def vae_sdxl():
    config = dict(
        block_out_channels=(8, 12, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )
    vae_case("vae_sdxl", config, 111, (28, 20), (5, 3), 8, (13, 21), (36, 44))


@fixture
def vae_old():
    config = dict(
        block_out_channels=(6, 9), layers_per_block=2, norm_num_groups=3, latent_channels=3, shift_factor=0.2,
        use_quant_conv=False, use_post_quant_conv=False, act_fn="gelu", scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )
    vae_case("vae_old", config, 120, (8, 14), (4, 6), 4, (9, 6), (14, 8), old_attention)


@fixture
def vae_plain():
    config = dict(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latents_mean=(0.1, -0.2, 0.3, 0.4), latents_std=(1.1, 0.9, 1.3, 0.7),
    )
    vae_case("vae_plain", config, 130, (6, 8), (3, 5), 4, (7, 5), (12, 8))


if __name__ == "__main__":
    os.makedirs(FOLDER, exist_ok=True)
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or FIXTURES:
        FIXTURES[chosen]()
