"""Tiny InstantID stacks: the networks, their weights, and every file layout users have them in.

A `Shape` says how large the networks are; `Stack.random` makes them with weights that leave nothing trivial (zero
convolutions, norms and biases included) and that f16 holds exactly, so files are half as large and both sides compute
in f32 on the same values. `Stack.ruled` takes the weights from integer hashes of their names instead, so that a test
can write the same file without any of it being kept.
"""

import io
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import clip_vocabulary


@dataclass
class Shape:
    """Sizes of one stack. `heads` counts heads per level, as `attention_head_dim` of a diffusers config does."""

    widths: list = field(default_factory=lambda: [8, 16, 16])
    layers: int = 1
    depths: list = field(default_factory=lambda: [0, 1, 1])  # transformer layers per level; 0 is a level without
    heads: list = field(default_factory=lambda: [2, 2, 4])
    groups: int = 4
    linear_projection: bool = True
    time_ids_width: int = 8
    text_1: dict = field(default_factory=lambda: dict(width=12, layers=2, heads=2, inner=24, act="quick_gelu", eos=None))
    text_2: dict = field(default_factory=lambda: dict(width=20, layers=3, heads=4, inner=40, act="gelu", eos=2))
    pooled: int = 16
    vae: dict = field(default_factory=lambda: dict(widths=[8, 8, 8, 16], layers=1, groups=4, scaling=0.13025))
    tokens: int = 4
    resampler: dict = field(default_factory=lambda: dict(dim=24, depth=2, dim_head=64, heads=1))
    hint: list = field(default_factory=lambda: [4, 8, 8, 12])
    hint_depths: list | None = None  # transformer layers of the IdentityNet, where they differ from the UNet's
    real_vocabulary: str | None = None  # path of CLIP's merges list; None is the tiny vocabulary
    force_zeros: bool = True

    @property
    def context(self):
        return self.text_1["width"] + self.text_2["width"]


def import_instantid(clone):
    """The public pipeline's module out of a clone of InstantID/InstantID, against today's diffusers."""
    # diffusers moved this module in 0.33; the pipeline still imports it by its old name.
    import diffusers.models.controlnets.multicontrolnet as moved

    sys.modules.setdefault("diffusers.pipelines.controlnet.multicontrolnet", moved)
    sys.path.insert(0, str(clone))
    import pipeline_stable_diffusion_xl_instantid as module

    return module


def text_encoder(shape, spec, vocabulary, projection):
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=spec["width"],
        intermediate_size=spec["inner"],
        num_hidden_layers=spec["layers"],
        num_attention_heads=spec["heads"],
        hidden_act=spec["act"],
        max_position_embeddings=77,
        projection_dim=projection or spec["width"],
        bos_token_id=vocabulary - 2,
        # Published configs say 2 and mean "the highest id"; newer ones name the token.
        eos_token_id=vocabulary - 1 if spec["eos"] is None else spec["eos"],
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


class Stack:
    def __init__(self, shape, instantid):
        self.shape = s = shape
        self.dtype = torch.float16
        torch.manual_seed(0)
        vocab, merges = (
            clip_vocabulary.published(s.real_vocabulary) if s.real_vocabulary else clip_vocabulary.tiny()
        )
        self.vocab, self.merges = vocab, merges
        common = dict(model_max_length=77)
        self.tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, **common)
        # SDXL's second tokenizer pads with "!", whose id is 0.
        self.tokenizer_2 = CLIPTokenizer(vocab=vocab, merges=merges, pad_token="!", **common)
        self.text_encoder = text_encoder(s, s.text_1, len(vocab), None)
        self.text_encoder_2 = text_encoder(s, s.text_2, len(vocab), s.pooled)
        levels = len(s.widths)
        shared = dict(
            in_channels=4,
            down_block_types=tuple("CrossAttnDownBlock2D" if d else "DownBlock2D" for d in s.depths),
            block_out_channels=tuple(s.widths),
            layers_per_block=s.layers,
            norm_num_groups=s.groups,
            cross_attention_dim=s.context,
            attention_head_dim=s.heads[0] if len(set(s.heads)) == 1 else tuple(s.heads),
            use_linear_projection=s.linear_projection,
            addition_embed_type="text_time",
            addition_time_embed_dim=s.time_ids_width,
            projection_class_embeddings_input_dim=s.pooled + 6 * s.time_ids_width,
        )
        depths = tuple(max(d, 1) for d in s.depths)
        self.unet = UNet2DConditionModel(
            sample_size=16,
            up_block_types=tuple("CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(s.depths)),
            transformer_layers_per_block=depths,
            **shared,
        )
        self.controlnet = ControlNetModel(
            conditioning_embedding_out_channels=tuple(s.hint),
            transformer_layers_per_block=tuple(s.hint_depths or depths),
            **shared,
        )
        v = s.vae
        blocks = len(v["widths"])
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=tuple(v["widths"]),
            layers_per_block=v["layers"],
            norm_num_groups=v["groups"],
            sample_size=64,
            scaling_factor=v["scaling"],
            latents_mean=v.get("mean"),
            latents_std=v.get("std"),
        )
        self.instantid = instantid
        self.resampler = instantid.Resampler(
            num_queries=s.tokens, embedding_dim=512, output_dim=s.context, ff_mult=4, **s.resampler
        )
        self.identity = {}  # the decoupled attention's weights, by the numbers of their processors
        names = list(self.unet.attn_processors)
        widths_of = {
            "down": lambda n: s.widths[int(n.split(".")[1])],
            "up": lambda n: s.widths[levels - 1 - int(n.split(".")[1])],
            "mid": lambda n: s.widths[-1],
        }
        for i, name in enumerate(names):
            if name.endswith("attn2.processor"):
                width = widths_of[name.split("_")[0]](name)
                for leaf in ("to_k_ip", "to_v_ip"):
                    self.identity[f"{i}.{leaf}.weight"] = torch.empty(width, s.context)
        for module in self.modules().values():
            module.eval().requires_grad_(False)

    def modules(self):
        return dict(
            unet=self.unet,
            controlnet=self.controlnet,
            vae=self.vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            image_proj=self.resampler,
        )

    @classmethod
    def random(cls, shape, instantid, seed, dtype=torch.float16):
        """Weights from a generator, rounded to f16, and to bf16 too if that is `dtype`."""
        stack = cls(shape, instantid)
        stack.dtype = dtype
        generator = torch.Generator().manual_seed(seed)
        for module in stack.modules().values():
            for name, parameter in module.named_parameters():
                parameter.copy_(random_weight(name, parameter.shape, generator).to(dtype))
        for name in stack.identity:
            stack.identity[name] = random_weight(name, stack.identity[name].shape, generator).to(dtype).float()
        return stack

    @classmethod
    def ruled(cls, shape, instantid):
        """Weights from `ruled_weight`, over the names of the single-file layout where a network has one."""
        stack = cls(shape, instantid)
        stack.rules = {"checkpoint": {}, "ControlNetModel": {}, "ip-adapter": {}}
        rules = stack.rules["checkpoint"]
        for name, parts, how in stack.original_names():
            shape_ = list(original_tensor(parts, how).shape)
            rules[name] = rule(name, shape_)
            scatter(ruled_weight(name, rules[name]), parts, how)
        for name, parameter in stack.controlnet.named_parameters():
            stack.rules["ControlNetModel"][name] = r = rule(name, list(parameter.shape))
            parameter.copy_(ruled_weight(name, r))
        adapter = stack.rules["ip-adapter"]
        for name, parameter in stack.resampler.named_parameters():
            adapter["image_proj." + name] = r = rule(name, list(parameter.shape))
            parameter.copy_(ruled_weight("image_proj." + name, r))
        for name, tensor in stack.identity.items():
            adapter["ip_adapter." + name] = r = rule(name, list(tensor.shape))
            stack.identity[name] = ruled_weight("ip_adapter." + name, r)
        return stack

    def base_parts(self, scheduler):
        """What a pipeline of SDXL is made of."""
        return dict(
            vae=self.vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            unet=self.unet,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=self.shape.force_zeros,
            add_watermarker=False,
        )

    def pipeline(self, scheduler):
        """The public pipeline over these networks. Its own loader fixes the Resampler at width 1280, hence by hand."""
        parts = self.base_parts(scheduler)
        pipe = self.instantid.StableDiffusionXLInstantIDPipeline(controlnet=self.controlnet, **parts)
        pipe.image_proj_model = self.resampler
        pipe.image_proj_model_in_features = 512
        file = io.BytesIO()
        torch.save({"ip_adapter": self.identity}, file)
        file.seek(0)
        pipe.set_ip_adapter(file, num_tokens=self.shape.tokens, scale=0.5)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    # ---- layouts ----

    def save_folder(self, folder, scheduler, published_text_keys=False, half=True, **options):
        """The diffusers folder of the base model. `published_text_keys` writes `text_model.` before the first
        encoder's keys, as published files do and transformers 5 no longer does."""
        folder = Path(folder)
        pipe = StableDiffusionXLPipeline(**self.base_parts(scheduler))
        with stored_as(self.modules().values(), self.dtype if half else torch.float32):
            pipe.save_pretrained(folder, **options)
        for name in ("tokenizer", "tokenizer_2"):
            # transformers 5 writes tokenizer.json alone; published folders have these two, which every reader knows.
            (folder / name / "vocab.json").write_text(json.dumps(self.vocab, ensure_ascii=False, separators=(",", ":")))
            lines = ["#version: 0.2"] + [" ".join(pair) for pair in self.merges]
            (folder / name / "merges.txt").write_text("\n".join(lines) + "\n")
        if published_text_keys:
            path = folder / "text_encoder" / "model.safetensors"
            state = {"text_model." + k: v for k, v in self.dtyped(self.text_encoder.state_dict(), half).items()}
            save_file(state, path, metadata={"format": "pt"})

    def save_controlnet(self, folder, half=True):
        with stored_as([self.controlnet], self.dtype if half else torch.float32):
            self.controlnet.save_pretrained(folder)

    def dtyped(self, state, half):
        return {k: v.to(self.dtype) if half and v.is_floating_point() else v for k, v in state.items()}

    def adapter_state(self, half=True):
        return dict(
            image_proj=self.dtyped(self.resampler.state_dict(), half),
            ip_adapter=self.dtyped(self.identity, half),
        )

    def save_adapter(self, path, half=True):
        """`.bin` is the nested pickle that InstantID publishes, `.safetensors` the flat form other programs take."""
        state = self.adapter_state(half)
        if Path(path).suffix == ".bin":
            torch.save(state, path)
        else:
            flat = {f"{part}.{name}": t.contiguous() for part, tensors in state.items() for name, t in tensors.items()}
            save_file(flat, path)

    def save_single(self, path, half=True):
        """One SDXL checkpoint in the original layout, with the bookkeeping tensors that published ones carry."""
        state = {name: original_tensor(parts, how).contiguous() for name, parts, how in self.original_names()}
        state = self.dtyped(state, half)
        state["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        state["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
        if Path(path).suffix == ".ckpt":
            torch.save({"state_dict": state, "global_step": 7}, path)
            return
        save_file(state, path, metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base"})

    def original_names(self):
        """(name in the original layout, the parameters it holds, how they are put together)."""
        return [
            *original_unet(self.unet, "model.diffusion_model."),
            *original_vae(self.vae, "first_stage_model."),
            *[
                ("conditioner.embedders.0.transformer.text_model." + name, [parameter], "same")
                for name, parameter in self.text_encoder.named_parameters()
            ],
            *original_open_clip(self.text_encoder_2, "conditioner.embedders.1.model."),
        ]


# ---- weights ----


def kind(name, shape):
    """How large a weight should be for signals to keep their size through the network."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("latents", "position_embedding", "positional_embedding") or "embedding.weight" in name and len(shape) == 2 and shape[0] >= 77:
        return "table"
    if len(shape) == 1:
        return "gain" if leaf == "weight" else "bias"
    return "matrix"


def gain(name):
    # SiLU halves what passes, and the keypoint image passes eight of them: without this it would hardly be seen.
    return 2.0 if name.startswith("controlnet_cond_embedding") else 0.9


def random_weight(name, shape, generator):
    x = torch.randn(tuple(shape), generator=generator)
    match kind(name, shape):
        case "table":
            x = x * 0.5
        case "gain":
            x = 1 + 0.2 * x
        case "bias":
            x = 0.1 * x
        case "matrix":
            x = x * (gain(name) / math.sqrt(math.prod(shape[1:])))
    return x.half().float()


def rule(name, shape):
    """`offset + k * 2^-exponent`, k in -128..127: exact in f16 and bf16, and 0.58 * 2^(7 - exponent) in deviation."""
    match kind(name, shape):
        case "table":
            return dict(shape=shape, exponent=7, offset=0)
        case "gain":
            return dict(shape=shape, exponent=9, offset=1)
        case "bias":
            return dict(shape=shape, exponent=9, offset=0)
        case "matrix":
            fan_in = math.prod(shape[1:]) if not name.endswith("text_projection") else shape[0]
            return dict(shape=shape, exponent=7 + round(math.log2(math.sqrt(fan_in) * 0.6 / gain(name))), offset=0)


def ruled_weight(name, rule):
    """Byte i of the tensor is the top byte of splitmix64(FNV-1a(name) + i * golden ratio), read as an i8."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.arange(1, math.prod(rule["shape"]) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    k = (z >> np.uint64(56)).astype(np.uint8).view(np.int8).astype(np.float32)
    x = rule["offset"] + k * np.float32(2.0 ** -rule["exponent"])
    return torch.from_numpy(x.reshape(rule["shape"]))


class stored_as:
    """Another dtype while saving, f32 again after; exact both ways since the weights are rounded to it."""

    def __init__(self, modules, dtype):
        self.modules, self.dtype = list(modules), dtype

    def __enter__(self):
        for module in self.modules:
            module.to(self.dtype)

    def __exit__(self, *_):
        for module in self.modules:
            module.float()


# ---- the original layout ----


def original_tensor(parts, how):
    match how:
        case "same":
            return parts[0].detach()
        case "transposed":
            return parts[0].detach().T
        case "convolution":
            return parts[0].detach()[:, :, None, None]
        case "stacked":
            return torch.cat([p.detach() for p in parts])


def scatter(tensor, parts, how):
    """Inverse of `original_tensor`: writes the tensor into the parameters."""
    match how:
        case "same":
            parts[0].copy_(tensor)
        case "transposed":
            parts[0].copy_(tensor.T)
        case "convolution":
            parts[0].copy_(tensor[:, :, 0, 0])
        case "stacked":
            for part, piece in zip(parts, tensor.chunk(len(parts))):
                part.copy_(piece)


def renamed(module, prefix, table, how=lambda name: "same"):
    """Every parameter of `module`, its first component(s) renamed by `table`."""
    rows = []
    for name, parameter in module.named_parameters():
        head = max((h for h in table if name == h or name.startswith(h + ".")), key=len)
        rows.append((prefix + table[head] + name[len(head) :], [parameter], how(name)))
    return rows


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {n: n for n in ("norm", "proj_in", "transformer_blocks", "proj_out")}


def original_unet(unet, prefix):
    rows = []
    for module, name in (
        (unet.time_embedding.linear_1, "time_embed.0"),
        (unet.time_embedding.linear_2, "time_embed.2"),
        (unet.add_embedding.linear_1, "label_emb.0.0"),
        (unet.add_embedding.linear_2, "label_emb.0.2"),
        (unet.conv_in, "input_blocks.0.0"),
        (unet.conv_norm_out, "out.0"),
        (unet.conv_out, "out.2"),
    ):
        rows += renamed(module, prefix, {"weight": f"{name}.weight", "bias": f"{name}.bias"})
    n = 1
    for block in unet.down_blocks:
        for j, resnet in enumerate(block.resnets):
            rows += renamed(resnet, f"{prefix}input_blocks.{n}.0.", RESNET)
            if hasattr(block, "attentions"):
                rows += renamed(block.attentions[j], f"{prefix}input_blocks.{n}.1.", ATTENTION)
            n += 1
        if block.downsamplers:
            rows += renamed(block.downsamplers[0], f"{prefix}input_blocks.{n}.0.", {"conv": "op"})
            n += 1
    rows += renamed(unet.mid_block.resnets[0], prefix + "middle_block.0.", RESNET)
    rows += renamed(unet.mid_block.attentions[0], prefix + "middle_block.1.", ATTENTION)
    rows += renamed(unet.mid_block.resnets[1], prefix + "middle_block.2.", RESNET)
    n = 0
    for block in unet.up_blocks:
        for j, resnet in enumerate(block.resnets):
            rows += renamed(resnet, f"{prefix}output_blocks.{n}.0.", RESNET)
            place = 1
            if hasattr(block, "attentions"):
                rows += renamed(block.attentions[j], f"{prefix}output_blocks.{n}.1.", ATTENTION)
                place = 2
            if j + 1 == len(block.resnets) and block.upsamplers:
                rows += renamed(block.upsamplers[0], f"{prefix}output_blocks.{n}.{place}.", {"conv": "conv"})
            n += 1
    return rows


VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_vae(vae, prefix):
    rows = []
    as_convolution = lambda name: "convolution" if name.endswith("weight") and "norm" not in name else "same"
    for side in ("encoder", "decoder"):
        net = getattr(vae, side)
        at = f"{prefix}{side}."
        for ours, theirs in (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")):
            rows += renamed(getattr(net, ours), at, {l: f"{theirs}.{l}" for l in ("weight", "bias")})
        rows += renamed(net.mid_block.resnets[0], at + "mid.block_1.", VAE_RESNET)
        rows += renamed(net.mid_block.attentions[0], at + "mid.attn_1.", VAE_ATTENTION, as_convolution)
        rows += renamed(net.mid_block.resnets[1], at + "mid.block_2.", VAE_RESNET)
        if side == "encoder":
            for i, block in enumerate(net.down_blocks):
                for j, resnet in enumerate(block.resnets):
                    rows += renamed(resnet, f"{at}down.{i}.block.{j}.", VAE_RESNET)
                if block.downsamplers:
                    rows += renamed(block.downsamplers[0], f"{at}down.{i}.downsample.", {"conv": "conv"})
        else:
            last = len(net.up_blocks) - 1
            for i, block in enumerate(net.up_blocks):
                for j, resnet in enumerate(block.resnets):
                    rows += renamed(resnet, f"{at}up.{last - i}.block.{j}.", VAE_RESNET)
                if block.upsamplers:
                    rows += renamed(block.upsamplers[0], f"{at}up.{last - i}.upsample.", {"conv": "conv"})
    for name in ("quant_conv", "post_quant_conv"):
        rows += renamed(getattr(vae, name), prefix, {l: f"{name}.{l}" for l in ("weight", "bias")})
    return rows


def original_open_clip(encoder, prefix):
    text = encoder.text_model
    rows = [
        (prefix + "token_embedding.weight", [text.embeddings.token_embedding.weight], "same"),
        (prefix + "positional_embedding", [text.embeddings.position_embedding.weight], "same"),
        (prefix + "text_projection", [encoder.text_projection.weight], "transposed"),
        (prefix + "ln_final.weight", [text.final_layer_norm.weight], "same"),
        (prefix + "ln_final.bias", [text.final_layer_norm.bias], "same"),
    ]
    table = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for i, layer in enumerate(text.encoder.layers):
        at = f"{prefix}transformer.resblocks.{i}."
        attn = layer.self_attn
        for leaf in ("weight", "bias"):
            parts = [getattr(p, leaf) for p in (attn.q_proj, attn.k_proj, attn.v_proj)]
            rows.append((f"{at}attn.in_proj_{leaf}", parts, "stacked"))
        for ours, theirs in table.items():
            module = layer.get_submodule(ours)
            rows += renamed(module, at, {l: f"{theirs}.{l}" for l in ("weight", "bias")})
    return rows
