"""Random InstantID stacks, through the public pipeline and through the `sameface` binary; prints how far apart they are.

    python compare.py --instantid CLONE --clip-merges FILE --sameface ../target/release/sameface --stacks 10 --seed 0

Every stack has other widths, depths, head counts, token counts and file layouts, every case another prompt, size,
sampler and schedule. A case passes when the latents' relative error is at most 1e-3 and the pictures agree to 45 dB.
`--dry` runs the reference alone, `--keep DIR` leaves the files of failed cases there with the command that failed.
"""

import argparse
import json
import math
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import torch
from safetensors.torch import load_file, save_file

from instantid import SAMPLERS, generate, scheduler
from stack import Shape, Stack, import_instantid

PROMPTS = [
    "analog film photo of a man, 35mm",
    "portrait of a smiling woman; red hair",
    "",
    "a",
    "naïve café’s 1970s — Zürich, 東京, 🙂 emoji & 100% digits 12345",
    "  Spaces   and\ttabs, UPPER lower; it's they're we'll !!! ... (parentheses) [brackets] a:1.2",
    "old city at night " * 17,
    "<|startoftext|> odd <|endoftext|> tokens",
]
# What stabilityai/stable-diffusion-xl-base-1.0 carries; a single file runs under this one too.
PUBLISHED = dict(
    _class_name="EulerDiscreteScheduler",
    _diffusers_version="0.19.0.dev0",
    beta_end=0.012,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    clip_sample=False,
    interpolation_type="linear",
    num_train_timesteps=1000,
    prediction_type="epsilon",
    sample_max_value=1.0,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    timestep_spacing="leading",
    trained_betas=None,
    use_karras_sigmas=False,
)


def random_shape(rng, merges, single):
    """`single` keeps to what a checkpoint in the original layout can hold: 32 groups, heads of width 64."""
    levels = rng.choice([2, 3, 3, 3, 4])
    if single:
        groups = 32
        widths = sorted(rng.choice([64, 128, 192]) for _ in range(levels))
        heads = [w // 64 for w in widths]
        text_1 = dict(width=64 * rng.choice([1, 2]), layers=rng.choice([2, 3]), inner=0, act="quick_gelu", eos=2)
        text_2 = dict(width=64 * rng.choice([1, 3]), layers=rng.choice([2, 4]), inner=0, act="gelu", eos=2)
        for t in (text_1, text_2):
            t.update(heads=t["width"] // 64, inner=4 * t["width"])
        vae = dict(widths=[32 * rng.choice([1, 2]) for _ in range(4)], layers=rng.choice([1, 2]), groups=32, scaling=0.13025)
    else:
        groups = rng.choice([2, 4, 8])
        heads = [rng.choice([1, 2, 3, 4]) for _ in range(levels)]
        widths = [math.lcm(groups, h) * rng.choice([1, 2, 3]) for h in heads]
        widths = [w * 2 if w < 8 else w for w in widths]
        widths[0] += widths[0] % 2 * widths[0]  # the time embedding is sines and cosines in halves
        texts = []
        for act in ("quick_gelu", "gelu"):
            h = rng.choice([1, 2, 3])
            w = h * 2 * rng.choice([3, 4, 7])
            texts.append(dict(width=w, layers=rng.choice([2, 3, 5]), heads=h, inner=rng.choice([2, 3, 4]) * w, act=act, eos=rng.choice([2, None])))
        text_1, text_2 = texts
        g = rng.choice([2, 4])
        vae = dict(widths=[g * rng.choice([1, 2, 3]) for _ in range(4)], layers=rng.choice([1, 2]), groups=g, scaling=rng.choice([0.13025, 0.18215, 0.5]))
        if rng.random() < 0.2:
            vae.update(mean=[rng.uniform(-1, 1) for _ in range(4)], std=[rng.uniform(0.5, 2) for _ in range(4)])
    depths = [rng.choice([0, 1, 2]) for _ in range(levels - 1)] + [rng.choice([1, 1, 2, 3] if single or rng.random() < 0.8 else [0])]
    r_heads = rng.choice([1, 2, 3])
    return Shape(
        widths=widths,
        layers=rng.choice([1, 2, 2, 3]),
        depths=depths,
        heads=heads,
        groups=groups,
        linear_projection=single or rng.random() < 0.7,
        time_ids_width=rng.choice([256, 256, 64]) if single else 2 * rng.choice([2, 4, 9]),
        text_1=text_1,
        text_2=text_2,
        pooled=rng.choice([16, 24, 40]) if not single else 64 * rng.choice([1, 2]),
        hint_depths=[max(d, 1) + rng.choice([0, 1]) for d in depths] if rng.random() < 0.2 else None,
        vae=vae,
        tokens=rng.choice([1, 4, 7, 16, 20]),
        resampler=dict(dim=rng.choice([16, 40, 96]), depth=rng.choice([1, 2, 4]), dim_head=64, heads=r_heads),
        hint=[rng.choice([2, 4, 6, 16]) for _ in range(4)],
        real_vocabulary=merges if single or rng.random() < 0.2 else None,
        force_zeros=single or rng.random() < 0.6,
    )


def random_schedule(rng, single):
    """(config for the folder, sampler for the command line or None, the reference's scheduler)."""
    sampler = rng.choice(list(SAMPLERS))
    cls = getattr(diffusers, SAMPLERS[sampler][0])
    way = "published" if single else rng.choice(["own", "own", "published", "saved"])
    if way == "own":  # the folder names this very scheduler
        settings = {}
        if rng.random() < 0.7:
            settings["timestep_spacing"] = rng.choice(["leading", "linspace", "trailing"])
            settings["steps_offset"] = rng.choice([0, 1])
        if rng.random() < 0.4:
            settings["prediction_type"] = "v_prediction"
            settings["rescale_betas_zero_snr"] = rng.random() < 0.5
        if sampler in ("euler", "unipc") and rng.random() < 0.3:
            settings["use_karras_sigmas"] = True
        if sampler == "dpmpp_2m" and rng.random() < 0.3:
            settings["final_sigmas_type"] = "sigma_min"
        made = scheduler(sampler, settings)
        return json.loads(made.to_json_string()), None, made
    config = dict(PUBLISHED)
    if way == "saved":  # as save_pretrained writes it: Euler's own keys, none of the others'
        config = json.loads(scheduler("euler", {}).to_json_string())
        config["prediction_type"] = rng.choice(["epsilon", "v_prediction"])
    folder = tempfile.mkdtemp()
    (Path(folder) / "scheduler_config.json").write_text(json.dumps(config))
    base = diffusers.EulerDiscreteScheduler.from_pretrained(folder)
    shutil.rmtree(folder)
    extra = dict(use_karras_sigmas=True) if sampler == "dpmpp_2m_karras" else {}
    return config, sampler, cls.from_config(base.config, **extra)


def random_case(rng, stack, scheduler_, side):
    # Beyond 77 tokens sameface goes on in chunks where the pipeline cuts off: another thing, not compared here.
    fits = [p for p in PROMPTS if len(stack.tokenizer(p).input_ids) <= 77]
    lcm = isinstance(scheduler_, diffusers.LCMScheduler)
    return dict(
        prompt=rng.choice(fits),
        negative=rng.choice([None, "", *fits[:2]]),
        size=[8 * rng.randint(5, side // 8), 8 * rng.randint(5, side // 8)],
        seed=rng.choice([0, 1, rng.getrandbits(31), rng.getrandbits(40), 2**53 - 1]),
        steps=rng.randint(1, 6) if lcm or rng.random() < 0.8 else rng.randint(7, 50),
        guidance=rng.choice([1.0, 1.5, 5.0, 7.5]),
        identitynet_scale=rng.choice([0.0, 0.4, 0.8, 1.5]),
        ip_adapter_scale=rng.choice([0.0, 0.5, 0.8, 1.2]),
        identitynet_start=rng.choice([0.0, 0.0, 0.25]),
        identitynet_end=rng.choice([1.0, 1.0, 0.6]),
    )


def write_layout(stack, rng, folder, single):
    """The stack's files in one of the layouts users have. Gives the flags that name them."""
    half = rng.random() < 0.5
    flags = []
    if single:
        checkpoint = folder / rng.choice(["checkpoint.safetensors", "checkpoint.safetensors", "checkpoint.ckpt"])
        stack.save_single(checkpoint, half)
        flags += ["--model", checkpoint]
    else:
        options = rng.choice([{}, {}, dict(variant="fp16"), dict(max_shard_size="60KB"), dict(safe_serialization=False), dict(variant="fp16", max_shard_size="60KB")])
        stack.save_folder(folder / "model", scheduler("euler", {}), rng.random() < 0.5 and not options, half, **options)
        if rng.random() < 0.5:  # published folders are older than tokenizer.json, or have nothing else
            for tokenizer in ("tokenizer", "tokenizer_2"):
                for name in rng.choice([["tokenizer.json"], ["vocab.json", "merges.txt"]]):
                    (folder / "model" / tokenizer / name).unlink()
        flags += ["--model", folder / "model"]
    stack.save_controlnet(folder / "ControlNetModel", half)
    adapter = folder / rng.choice(["ip-adapter.bin", "ip-adapter.safetensors"])
    stack.save_adapter(adapter, half)
    identitynet = folder / "ControlNetModel"
    if single and rng.random() < 0.3:  # the bare file, as other programs keep it: widths must tell the heads
        identitynet = (identitynet / "diffusion_pytorch_model.safetensors").rename(folder / "instantid.safetensors")
    return flags + ["--identitynet", identitynet, "--ip-adapter", adapter]


def psnr(a, b):
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def run_case(args, rng, stack, pipe, folder, flags, single):
    """One generation on both sides: (summary line, passed, command)."""
    config, sampler, pipe.scheduler = random_schedule(rng, single)
    if not single:
        (folder / "model" / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        index = json.loads((folder / "model" / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", config["_class_name"]]
        (folder / "model" / "model_index.json").write_text(json.dumps(index))
    case = random_case(rng, stack, pipe.scheduler, args.side)
    width, height = case["size"]
    embedding = torch.randn(512, generator=torch.Generator().manual_seed(rng.getrandbits(30))) * rng.uniform(0.5, 1.3)
    kps = np.array([[rng.uniform(0, width), rng.uniform(0, height)] for _ in range(5)], dtype=np.float32)
    save_file(
        dict(
            embedding=embedding,
            kps=torch.from_numpy(kps),
            bbox=torch.tensor([*kps.min(0), *kps.max(0)]),
            det_score=torch.tensor([0.9]),
        ),
        folder / "face.safetensors",
    )
    # Now and then the keypoint image has another size than the picture and is resized, or the keypoints are drawn here.
    canvas = (width, height) if rng.random() < 0.75 else (rng.randint(40, 200), rng.randint(40, 200))
    hint = stack.instantid.draw_kps(PIL.Image.new("RGB", canvas), kps)
    hint.save(folder / "hint.png")
    pose = ["--pose-map", folder / "hint.png"]
    if canvas == (width, height):
        pose = rng.choice([pose, [], ["--pose", folder / "face.safetensors"]])
    command = [
        args.sameface, "generate", case["prompt"], "--face", folder / "face.safetensors", *pose, *flags,
        "--steps", case["steps"], "--guidance", case["guidance"], "--size", f"{width}x{height}", "--seed", case["seed"],
        "--identitynet-scale", case["identitynet_scale"], "--ip-adapter-scale", case["ip_adapter_scale"],
        "--identitynet-start", case["identitynet_start"], "--identitynet-end", case["identitynet_end"],
        "--precision", "f32", "--device", "cpu", "--rng", "cpu", "--plain-prompt",
        "--save-latent", folder / "latent.safetensors", "-o", folder / "picture.png", "--json",
    ]  # fmt: skip
    if case["negative"] is not None:
        command += ["--negative", case["negative"]]
    if sampler:
        command += ["--sampler", sampler]
    command = [str(c) for c in command]
    label = f"{sampler or config['_class_name']:32.32} {width}x{height} {case['steps']} steps g {case['guidance']}"
    try:
        expected, picture = generate(pipe, case, embedding, hint)
    except Exception as error:  # the pipeline has no answer to some schedules; sameface may refuse or do better
        done = None if args.dry else subprocess.run(command, capture_output=True, text=True, timeout=600)
        told = done and (done.stderr.strip()[-200:] if done.returncode else "makes a picture")
        passed = done is None or done.returncode in (0, 2)
        return f"{label}: the reference fails with {type(error).__name__} {error}; sameface: {told}", passed, command
    if args.dry:
        finite = bool(torch.isfinite(expected).all())
        return f"{label}: latent {expected.std():.3f}, picture {picture.mean():.0f} +- {picture.std():.0f}", finite, command
    for name in ("latent.safetensors", "picture.png"):
        (folder / name).unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    save_file(dict(latent=expected.contiguous(), picture=torch.from_numpy(picture)), folder / "expected.safetensors")
    (folder / "case.json").write_text(json.dumps(dict(case=case, scheduler=config, command=command), indent=1))
    if done.returncode:
        return f"{label}: exit {done.returncode}: {done.stderr.strip()[-400:]}", False, command
    if not torch.isfinite(expected).all():
        return f"{label}: the reference itself is not finite", True, command
    latent = load_file(folder / "latent.safetensors")["latent"]
    if latent.shape != expected.shape:
        return f"{label}: latent is {list(latent.shape)}, expected {list(expected.shape)}", False, command
    error = float((latent.double() - expected.double()).norm() / expected.double().norm())
    ours = np.array(PIL.Image.open(folder / "picture.png").convert("RGB"))
    decibel = psnr(ours, picture) if ours.shape == picture.shape else -math.inf
    # The decoder on the same latent says whether a bad picture is the latent's fault.
    passed = error <= 1e-3 and decibel >= 45
    warnings = " | " + done.stderr.strip().replace("\n", " / ")[:300] if done.stderr.strip() else ""
    return f"{label}: latent {error:.2e}, picture {decibel:.1f} dB{warnings}", passed, command


def invariants(command, folder):
    """What must hold byte for byte: the same command twice, and weight 0 against no face at all."""

    def pixels(command):
        path = folder / "again.png"
        path.unlink(missing_ok=True)
        command = list(command)
        command[command.index("-o") + 1] = str(path)
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        return np.array(PIL.Image.open(path)).tobytes() if not done.returncode else done.stderr

    def without(flag, command):
        at = command.index(flag)
        return command[:at] + command[at + 2 :]

    if pixels(command) != np.array(PIL.Image.open(folder / "picture.png")).tobytes():
        yield "the same command gave another picture"
    zero = list(command)
    for flag in ("--identitynet-scale", "--ip-adapter-scale"):
        zero[zero.index(flag) + 1] = "0"
    bare = without("--face", zero)
    for flag in ("--pose-map", "--pose"):
        if flag in bare:
            bare = without(flag, bare)
    a, b = pixels(zero), pixels(bare)
    if a != b:
        yield f"weight 0 is not the picture without a face{': ' + b[-300:] if isinstance(b, str) else ''}"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--instantid", required=True, type=Path, help="clone of InstantID/InstantID at 2145b67")
    arguments.add_argument("--clip-merges", required=True, type=Path, help="bpe_simple_vocab_16e6.txt of openai/CLIP")
    arguments.add_argument("--sameface", type=Path, help="the binary")
    arguments.add_argument("--stacks", type=int, default=5)
    arguments.add_argument("--cases", type=int, default=3, help="generations per stack")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--side", type=int, default=112, help="longest side of a picture in pixels")
    arguments.add_argument("--keep", type=Path, help="copy the files of failed cases here")
    arguments.add_argument("--dry", action="store_true", help="run the reference only")
    args = arguments.parse_args()
    torch.set_grad_enabled(False)
    instantid = import_instantid(args.instantid)
    failed = total = 0
    for number in range(args.seed, args.seed + args.stacks):
        rng = random.Random(number)
        single = rng.random() < 0.3
        shape = random_shape(rng, args.clip_merges, single)
        stack = Stack.random(shape, instantid, number, rng.choice([torch.float16, torch.bfloat16]))
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            flags = write_layout(stack, rng, folder, single)
            pipe = stack.pipeline(scheduler("euler", {}))
            print(f"stack {number}{' (single file)' if single else ''}: {shape.widths} x {shape.layers}, depths {shape.depths}, heads {shape.heads}, tokens {shape.tokens}")
            for index in range(args.cases):
                case_rng = random.Random(f"{number}/{index}")
                line, passed, command = run_case(args, case_rng, stack, pipe, folder, flags, single)
                total += 1
                failed += not passed
                print(f"  {'ok  ' if passed else 'FAIL'} {index} {line}", flush=True)
                if not args.dry and passed and index == 0:
                    for complaint in invariants(command, folder):
                        failed += 1
                        print(f"  FAIL {index} {complaint}")
                if not passed and args.keep:
                    kept = args.keep / f"{number}-{index}"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(folder, kept)
                    moved = [c.replace(str(folder), str(kept)) for c in command]
                    (kept / "command.sh").write_text(shlex.join(moved) + "\n")
    print(f"{total - failed} of {total} agree")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
