"""Writes crates/weights/tests/fixtures: small files as torch.save, safetensors and diffusers write them.

    python reference/weights.py

`tensors.*` hold the same tensors in several formats, `tensors.json` their values. `sdxl.*`, `sd15.*` and `controlnet.*`
are networks in the original layout with what diffusers' own converters make of them: shape, sum and ramp-weighted sum
of each tensor. `refused/` holds files that must not be opened.
"""

import io
import json
import math
import os
import pickle
import shutil
import sys
import zipfile
from collections import OrderedDict

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from stack import original_open_clip, original_tensor, original_unet, original_vae, renamed, ATTENTION, RESNET

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "crates", "weights", "tests", "fixtures")


def at(*parts):
    path = os.path.join(FOLDER, *parts)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def write_json(name, value):
    with open(at(name), "w") as file:
        json.dump(value, file, indent=None, separators=(",", ":"), sort_keys=True)
        file.write("\n")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + math.prod(shape))).half().float()


# ---- formats ----


def typed():
    tensors = {
        f"typed.{str(dtype).removeprefix('torch.')}": random(3, 5).mul(3).to(dtype)
        for dtype in (
            torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
            torch.int64, torch.int32, torch.int16, torch.int8, torch.bool,
        )
    }
    tensors |= {
        f"typed.{str(dtype).removeprefix('torch.')}": random(3, 5).mul(3).abs().to(dtype)
        for dtype in (torch.uint64, torch.uint32, torch.uint16, torch.uint8)
    }
    return tensors | {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "wide": random(2, 3, 4, 5)}


def windows():
    """What only a pickle can hold: tensors that share storages and do not lie in order."""
    base = random(6, 8)
    return {
        "base": base,
        "row": base[2],
        "rows": base[2:5],
        "columns": base[:, 1:4],
        "steps": base[::2, ::3],
        "transposed": base.t(),
        "permuted": random(2, 3, 4).permute(2, 0, 1),
        "parameter": torch.nn.Parameter(random(4, 2)),
    }


def nested(tensors):
    tree = OrderedDict()
    for name, value in tensors.items():
        *folders, leaf = name.split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    return tree


def write_formats():
    plain = typed()
    save_file(plain, at("tensors.safetensors"), metadata={"format": "pt", "title": "types"})
    everything = plain | {f"windows.{name}": value for name, value in windows().items()}
    tree = nested(everything)
    # What training leaves beside tensors.
    tree |= {
        "step": 3, "rate": 1e-4, "big": 1 << 90, "name": "für", "none": None, "yes": True, "size": torch.Size([2]),
        "type": torch.float16, "device": torch.device("cpu"), "list": [1, torch.ones(2), {"inner": torch.zeros(1)}],
        7: {"number": torch.full((2,), 7.0)},
    }
    everything |= {"list.1": torch.ones(2), "list.2.inner": torch.zeros(1), "7.number": torch.full((2,), 7.0)}
    for protocol in (2, 3, 4, 5):
        torch.save(tree, at(f"tensors-{protocol}.bin"), pickle_protocol=protocol)
    module = torch.nn.Sequential(OrderedDict(first=torch.nn.Linear(2, 3), second=torch.nn.LayerNorm(3)))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(random(*parameter.shape))
    torch.save({"state_dict": module.state_dict(), "epoch": 1, "optimizer": {"x": torch.ones(1)}}, at("training.ckpt"))
    values = {name: [list(v.shape), v.detach().double().flatten().tolist()] for name, v in everything.items()}
    write_json("tensors.json", values)
    state = module.state_dict()
    write_json("training.json", {name: [list(v.shape), v.double().flatten().tolist()] for name, v in state.items()})


def write_adapter():
    tensors = {
        "image_proj": {"latents": random(1, 4, 8), "proj_in.weight": random(8, 6), "layers.0.0.to_q.weight": random(8, 8)},
        "ip_adapter": {"1.to_k_ip.weight": random(8, 8, seed=1), "1.to_v_ip.weight": random(8, 8, seed=2)},
    }
    torch.save(tensors, at("ip-adapter.bin"))
    flat = {f"{half}.{name}": value for half, values in tensors.items() for name, value in values.items()}
    save_file(flat, at("ip-adapter.safetensors"), metadata={"dim_head": "4", "heads": "2", "author": "nobody"})
    save_file({name: value for name, value in flat.items() if name.startswith("image_proj")}, at("half-adapter.safetensors"))


def write_refused():
    shutil.rmtree(at("refused", "x")[:-2], ignore_errors=True)
    torch.save({"a": torch.ones(2)}, at("refused", "legacy.bin"), _use_new_zipfile_serialization=False)
    with open(at("refused", "bare.pkl"), "wb") as file:
        pickle.dump({"a": 1}, file, protocol=4)
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), at("refused", "scripted.pt"))

    class Runs:
        def __init__(self, call, *args):
            self.what = (call, args)

        def __reduce__(self):
            return self.what

    torch.save({"a": torch.ones(1), "b": Runs(os.system, "echo executed")}, at("refused", "system.bin"))
    torch.save({"a": torch.ones(1), "b": Runs(eval, "1")}, at("refused", "eval.bin"))
    torch.save({"a": torch.complex(torch.ones(1), torch.ones(1))}, at("refused", "complex.bin"))
    torch.save({"a": torch.ones(2).to_sparse()}, at("refused", "sparse.bin"))
    torch.save(Object(), at("refused", "object.bin"))

    good = io.BytesIO()
    torch.save({"a": torch.ones(64)}, good)
    records = [(i.filename, zipfile.ZipFile(good).read(i)) for i in zipfile.ZipFile(good).infolist()]

    def zipped(name, records, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(at("refused", name), "w", compression) as file:
            for record, data in records:
                file.writestr(zipfile.ZipInfo(record), data, compress_type=compression)

    zipped("deflated.bin", records, zipfile.ZIP_DEFLATED)
    zipped("duplicate.bin", records + [records[0]])
    zipped("no-storage.bin", [record for record in records if "/data/" not in record[0]])
    zipped("short-storage.bin", [(n, data[:100] if "/data/" in n else data) for n, data in records])
    zipped("no-pickle.bin", [record for record in records if "pkl" not in record[0]])
    zipped("two-pickles.bin", records + [("other/data.pkl", b"")])
    zipped("big-endian.bin", [(n, b"big" if n.endswith("byteorder") else data) for n, data in records])
    damaged = bytearray(good.getvalue())
    damaged[damaged.find(torch.ones(64).numpy().tobytes()) + 5] ^= 1
    with open(at("refused", "bad-crc.bin"), "wb") as file:
        file.write(damaged)
    with open(at("refused", "truncated.bin"), "wb") as file:
        file.write(good.getvalue()[:-300])
    # No warning on purpose: `duplicate.bin` is what this is about.


class Object:
    pass


# ---- the original layout ----


def randomised(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).half().float())
    return module.eval()


def write_original(name, state, expected, metadata=None):
    save_file({key: value.half().contiguous() for key, value in state.items()}, at(f"{name}.safetensors"), metadata=metadata)

    def summary(tensor):
        flat = tensor.detach().double().flatten()
        ramp = torch.arange(len(flat)).remainder(7).add(1).double()
        return [list(tensor.shape), flat.sum().item(), (flat * ramp).sum().item()]

    parts = {part: {key: summary(value) for key, value in tensors.items()} for part, tensors in expected.items()}
    write_json(f"{name}.json", parts)


def check(converted, module):
    """The public converter undoes what `stack.py` did, so both say the same of the layout."""
    truth = module.state_dict()
    missing = set(truth) ^ set(converted)
    assert not missing, sorted(missing)
    for key, value in truth.items():
        assert torch.equal(converted[key].reshape(value.shape), value), key
    return truth


def original_state(rows):
    return {name: original_tensor(parts, how).clone() for name, parts, how in rows}


def tiny_unet(layers, channels, attends, depths, sdxl, seed):
    down = [("CrossAttnDownBlock2D" if a else "DownBlock2D") for a in attends]
    up = [("CrossAttnUpBlock2D" if a else "UpBlock2D") for a in reversed(attends)]
    config = dict(
        sample_size=8, layers_per_block=layers, block_out_channels=channels, down_block_types=down, up_block_types=up,
        cross_attention_dim=6, attention_head_dim=2, norm_num_groups=2, transformer_layers_per_block=depths,
        use_linear_projection=sdxl,
    )
    if sdxl:
        config |= dict(addition_embed_type="text_time", addition_time_embed_dim=2, projection_class_embeddings_input_dim=16)
    return randomised(UNet2DConditionModel(**config), seed)


def tiny_vae(channels, layers, seed):
    n = len(channels)
    config = dict(
        block_out_channels=channels, layers_per_block=layers, norm_num_groups=2, latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * n, up_block_types=["UpDecoderBlock2D"] * n,
    )
    return randomised(AutoencoderKL(**config), seed)


def tiny_clip(cls, layers, seed):
    config = CLIPTextConfig(
        vocab_size=12, hidden_size=6, intermediate_size=8, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=5, projection_dim=4,
    )
    return randomised(cls(config), seed)


def text_names(state):
    """`text_model.` in front, as in published files; transformers 5 leaves it out."""
    own = ("text_model.", "text_projection.")
    return {(key if key.startswith(own) else f"text_model.{key}"): value for key, value in state.items()}


def with_vae_and_schedule(state, vae):
    state |= original_state(original_vae(vae, "first_stage_model."))
    state["alphas_cumprod"] = random(4)
    state["model_ema.decay"] = random(1)
    return check(single_file_utils.convert_ldm_vae_checkpoint(dict(state), vae.config), vae)


def write_sdxl():
    unet = tiny_unet(2, (4, 8, 8), (False, True, True), (1, 1, 2), True, 1)
    vae = tiny_vae((4, 8, 4), 1, 2)
    first = tiny_clip(CLIPTextModel, 1, 3)
    second = tiny_clip(CLIPTextModelWithProjection, 2, 4)
    state = original_state(original_unet(unet, "model.diffusion_model."))
    expected = {"unet": check(single_file_utils.convert_ldm_unet_checkpoint(dict(state), dict(unet.config)), unet)}
    expected["vae"] = with_vae_and_schedule(state, vae)
    expected["text_encoder"] = text_names(first.state_dict())
    for key, value in expected["text_encoder"].items():
        state[f"conditioner.embedders.0.transformer.{key}"] = value
    state["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(5)[None]
    state |= original_state(original_open_clip(second, "conditioner.embedders.1.model."))
    state["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    state |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0), "denoiser.sigmas": random(3)}
    expected["text_encoder_2"] = text_names(second.state_dict())
    write_original("sdxl", state, expected, {"modelspec.title": "tiny"})
    save_file({key: value.half() for key, value in list(state.items())[:4]}, at("only-unet.safetensors"))


def write_sd15():
    unet = tiny_unet(1, (4, 4, 8), (True, False, True), 1, False, 5)
    vae = tiny_vae((4, 8), 2, 6)
    text = tiny_clip(CLIPTextModel, 1, 7)
    state = original_state(original_unet_15(unet))
    expected = {"unet": check(single_file_utils.convert_ldm_unet_checkpoint(dict(state), dict(unet.config)), unet)}
    expected["vae"] = with_vae_and_schedule(state, vae)
    expected["text_encoder"] = text_names(text.state_dict())
    for key, value in expected["text_encoder"].items():
        state[f"cond_stage_model.transformer.{key}"] = value
    write_original("sd15", state, expected)


def original_unet_15(unet):
    """`stack.py` writes SDXL's second embedding too, which 1.5 lacks."""
    unet.add_embedding = torch.nn.Module()
    unet.add_embedding.linear_1 = unet.add_embedding.linear_2 = torch.nn.Module()
    rows = original_unet(unet, "model.diffusion_model.")
    del unet.add_embedding
    return rows


def write_controlnet():
    net = randomised(
        ControlNetModel(
            layers_per_block=1, block_out_channels=(4, 8), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            cross_attention_dim=6, attention_head_dim=2, norm_num_groups=2,
            conditioning_embedding_out_channels=(2, 3, 4, 5),
        ),
        8,
    )
    both = ("weight", "bias")
    rows = []

    def linear(module, name):
        rows.extend(renamed(module, "control_model.", {leaf: f"{name}.{leaf}" for leaf in both}))

    linear(net.time_embedding.linear_1, "time_embed.0")
    linear(net.time_embedding.linear_2, "time_embed.2")
    linear(net.conv_in, "input_blocks.0.0")
    linear(net.controlnet_mid_block, "middle_block_out.0")
    for i, module in enumerate(net.controlnet_down_blocks):
        linear(module, f"zero_convs.{i}.0")
    hint = net.controlnet_cond_embedding
    for i, module in enumerate([hint.conv_in, *hint.blocks, hint.conv_out]):
        linear(module, f"input_hint_block.{2 * i}")
    n = 1
    for block in net.down_blocks:
        for j, resnet in enumerate(block.resnets):
            rows.extend(renamed(resnet, f"control_model.input_blocks.{n}.0.", RESNET))
            if hasattr(block, "attentions"):
                rows.extend(renamed(block.attentions[j], f"control_model.input_blocks.{n}.1.", ATTENTION))
            n += 1
        if block.downsamplers:
            rows.extend(renamed(block.downsamplers[0], f"control_model.input_blocks.{n}.0.", {"conv": "op"}))
            n += 1
    rows.extend(renamed(net.mid_block.resnets[0], "control_model.middle_block.0.", RESNET))
    rows.extend(renamed(net.mid_block.attentions[0], "control_model.middle_block.1.", ATTENTION))
    rows.extend(renamed(net.mid_block.resnets[1], "control_model.middle_block.2.", RESNET))
    state = original_state(rows)
    converted = single_file_utils.convert_controlnet_checkpoint(dict(state), dict(net.config))
    write_original("controlnet", state, {"controlnet": check(converted, net)})


def write_folder():
    """A pipeline folder as `save_pretrained` lays it out: shards, a variant, a pickle."""
    shutil.rmtree(at("folder", "x")[:-2], ignore_errors=True)
    vae = tiny_vae((2, 4), 1, 9)
    vae.save_pretrained(at("folder", "vae"), max_shard_size=2000)
    tiny_clip(CLIPTextModel, 1, 10).half().save_pretrained(at("folder", "text_encoder"), variant="fp16")
    torch.save({"conv_in.weight": random(2, 2)}, at("folder", "unet", "diffusion_pytorch_model.bin"))
    write_json("folder/unet/config.json", {"_class_name": "UNet2DConditionModel"})
    write_json("folder/scheduler/scheduler_config.json", {"_class_name": "EulerDiscreteScheduler"})
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json("folder/model_index.json", index)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_formats()
    write_adapter()
    write_refused()
    write_sdxl()
    write_sd15()
    write_controlnet()
    write_folder()
    total = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(FOLDER) for f in files)
    print(f"{total // 1024} KiB in {os.path.relpath(FOLDER)}", file=sys.stderr)
