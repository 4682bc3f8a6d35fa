"""Whole generations of the public InstantID pipeline on tiny stacks, as fixtures for crates/engine.

    python instantid.py --instantid CLONE --clip-merges bpe_simple_vocab_16e6.txt [--out ../crates/engine/tests/fixtures]

CLONE is a clone of github.com/InstantID/InstantID at 2145b67, the merges list is openai/CLIP's.

Writes two stacks:
- `folder/`: real files of a tiny stack (diffusers folder, ControlNetModel, the adapter as pickle and as safetensors),
  and `cases.json` with a row for each generation;
- `single/`: a single-file SDXL checkpoint, too large to keep: `weights.json` gives each tensor's name, shape and the rule
  for its values (see `ruled_weight` in stack.py), from which the test writes the same file.
A case's `NAME.safetensors` holds `latent` [1, 4, h, w] (after the last step, before the VAE's scaling) and `picture`
[H, W, 3] as the pipeline rounds it.
"""

import argparse
import inspect
import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import torch
from safetensors.torch import save_file

from stack import Shape, Stack, import_instantid

SDXL = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    timestep_spacing="leading",
    steps_offset=1,
    prediction_type="epsilon",
)
# name on our command line -> the reference's class and what sets it apart
SAMPLERS = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", dict(clip_sample=False, set_alpha_to_one=False)),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", dict(use_karras_sigmas=True)),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}

PEOPLE = {
    # name: (seed of the embedding, keypoints in pixels)
    "ada": (11, [[20, 25], [44, 24], [32, 35], [23, 45], [42, 46]]),
    "ben": (12, [[30.5, 18.2], [52.7, 22.9], [38.1, 33.3], [27.6, 41.8], [45.0, 46.4]]),
}

CASES = [
    # name, settings other than these
    ("euler", {}),
    ("euler_wide", dict(size=[96, 64], seed=3, prompt="", negative="bad, ugly")),
    ("euler_odd", dict(size=[72, 104], seed=2**32 + 5, prompt="portrait of a smiling woman!", face="ben")),
    ("no_negative", dict(negative=None)),
    ("empty_negative", dict(negative="")),
    ("no_guidance", dict(guidance=1.0)),
    ("window", dict(identitynet_start=0.2, identitynet_end=0.7, steps=5)),
    ("weights", dict(identitynet_scale=1.3, ip_adapter_scale=0.35, guidance=7.5)),
    ("no_identity", dict(identitynet_scale=0.0, ip_adapter_scale=0.0)),
    ("euler_karras", dict(scheduler=dict(use_karras_sigmas=True))),
    ("euler_v_trailing", dict(scheduler=dict(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True))),
    ("euler_a", dict(sampler="euler_a", steps=4)),
    ("ddim", dict(sampler="ddim", steps=4, face="ben")),
    ("ddim_v_zero_snr", dict(sampler="ddim", steps=4, scheduler=dict(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True))),
    ("dpmpp_2m", dict(sampler="dpmpp_2m", steps=5)),
    ("dpmpp_2m_karras", dict(sampler="dpmpp_2m_karras", steps=6)),
    ("unipc", dict(sampler="unipc", steps=5)),
    ("lcm", dict(sampler="lcm", steps=3, guidance=1.5)),
]
DEFAULTS = dict(
    prompt="analog photo of the man, red hair at night in an old city; 35mm film",
    negative="watercolour painting",
    face="ada",
    size=[64, 64],
    seed=42,
    steps=3,
    guidance=5.0,
    sampler="euler",
    scheduler={},
    identitynet_scale=0.8,
    ip_adapter_scale=0.8,
    identitynet_start=0.0,
    identitynet_end=1.0,
)
SINGLE_CASES = [
    ("euler", dict(prompt="Analog film photo of a man in Kyoto, 35mm photo, grainy, vignette; naïve café's 1970s!")),
    ("dpmpp_2m_karras", dict(sampler="dpmpp_2m_karras", steps=4, size=[96, 64], face="ben", seed=9)),
]


def scheduler(sampler, settings):
    name, own = SAMPLERS[sampler]
    known = {**SDXL, **own, **settings}
    if sampler == "lcm":
        known["original_inference_steps"] = 50
    cls = getattr(diffusers, name)
    accepted = inspect.signature(cls.__init__).parameters
    return cls(**{k: v for k, v in known.items() if k in accepted})


def person(name):
    seed, kps = PEOPLE[name]
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(512, generator=generator) * 0.95
    kps = torch.tensor(kps, dtype=torch.float32)
    corners = torch.stack([kps.min(0).values - 12, kps.max(0).values + 12]).flatten()
    return dict(embedding=embedding, kps=kps, bbox=corners, det_score=torch.tensor([0.9]))


def generate(pipe, case, embedding, hint):
    """One row through the public pipeline: latent after the last step, and the picture."""
    latent = {}

    def keep(_pipe, _step, _time, tensors):
        latent["last"] = tensors["latents"].clone()
        return {}

    picture = pipe(
        prompt=case["prompt"],
        negative_prompt=case["negative"],
        image_embeds=embedding.numpy(),
        image=hint,
        width=case["size"][0],
        height=case["size"][1],
        num_inference_steps=case["steps"],
        guidance_scale=case["guidance"],
        controlnet_conditioning_scale=case["identitynet_scale"],
        ip_adapter_scale=case["ip_adapter_scale"],
        control_guidance_start=case["identitynet_start"],
        control_guidance_end=case["identitynet_end"],
        generator=torch.Generator("cpu").manual_seed(case["seed"]),
        callback_on_step_end=keep,
    ).images[0]
    return latent["last"], np.array(picture)


def write_cases(stack, out, rows):
    pipe = stack.pipeline(scheduler("euler", {}))
    written = []
    for name, settings in rows:
        case = {**DEFAULTS, **settings}
        pipe.scheduler = scheduler(case["sampler"], case["scheduler"])
        who = person(case["face"])
        hint = stack.instantid.draw_kps(PIL.Image.new("RGB", tuple(case["size"])), who["kps"].numpy())
        latent, picture = generate(pipe, case, who["embedding"], hint)
        save_file(dict(latent=latent.contiguous(), picture=torch.from_numpy(picture)), out / f"{name}.safetensors")
        # The scheduler_config.json under which the row runs; the test puts it into the folder.
        config = json.loads(pipe.scheduler.to_json_string())
        written.append(dict(name=name, **{**case, "scheduler": config}))
        print(f"{name:20} latent {latent.std():.3f}  picture {picture.mean():.1f} +- {picture.std():.1f}")
    (out / "cases.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    for name in PEOPLE:
        who = person(name)
        save_file(who, out / f"{name}.safetensors")
        canvas = PIL.Image.new("RGB", tuple(DEFAULTS["size"]))
        stack.instantid.draw_kps(canvas, who["kps"].numpy()).save(out / f"{name}.png")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--instantid", required=True, type=Path, help="clone of InstantID/InstantID at 2145b67")
    arguments.add_argument("--clip-merges", required=True, type=Path, help="bpe_simple_vocab_16e6.txt of openai/CLIP")
    here = Path(__file__).resolve().parent
    arguments.add_argument("--out", type=Path, default=here.parent / "crates" / "engine" / "tests" / "fixtures" / "instantid")
    args = arguments.parse_args()
    torch.set_grad_enabled(False)
    instantid = import_instantid(args.instantid)

    out = args.out / "folder"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    stack = Stack.random(Shape(), instantid, seed=1)
    stack.save_folder(out / "model", scheduler("euler", {}), published_text_keys=True)
    stack.save_controlnet(out / "ControlNetModel")
    stack.save_adapter(out / "ip-adapter.bin")
    stack.save_adapter(out / "ip-adapter.safetensors")
    write_cases(stack, out, CASES)

    out = args.out / "single"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shape = Shape(
        widths=[32, 64, 128],
        layers=1,
        depths=[0, 1, 2],
        heads=[1, 1, 2],  # width / 64: a checkpoint's shapes cannot tell the heads
        groups=32,
        time_ids_width=256,
        text_1=dict(width=64, layers=2, heads=1, inner=128, act="quick_gelu", eos=2),
        text_2=dict(width=128, layers=2, heads=2, inner=256, act="gelu", eos=2),
        pooled=128,
        vae=dict(widths=[32, 32, 64, 64], layers=2, groups=32, scaling=0.13025),
        tokens=16,
        resampler=dict(dim=128, depth=2, dim_head=64, heads=2),
        real_vocabulary=args.clip_merges,
    )
    stack = Stack.ruled(shape, instantid)
    (out / "ControlNetModel").mkdir()
    stack.controlnet.save_config(out / "ControlNetModel")
    lines = {
        file: "{\n" + ",\n".join(f"  {json.dumps(n)}: {json.dumps(r)}" for n, r in rules.items()) + "\n }"
        for file, rules in stack.rules.items()
    }
    text = "{\n" + ",\n".join(f" {json.dumps(file)}: {body}" for file, body in lines.items()) + "\n}\n"
    json.loads(text)
    (out / "weights.json").write_text(text)
    write_cases(stack, out, SINGLE_CASES)


if __name__ == "__main__":
    main()
