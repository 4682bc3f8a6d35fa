"""Writes crates/engine/tests/fixtures/samplers.json: trajectories of diffusers' schedulers with a made-up network.

    python reference/samplers.py

Each row: sampler name, settings, steps, eta, timesteps (first, last, sum), first and last sigma, first deviation, and six
values of the result (null where diffusers ends in what is not finite). The made-up network gives
0.8 * input + 0.2 * cos(3 * place + 0.01 * timestep); latents have 24 values, noise is torch's with seed 5.

With zero terminal signal the Euler classes start at sigma 4096 and lose what they compute in f32 to rounding: subtracting
latents of that size leaves errors of 2e-4. Those rows are run with the same code and tables in f64 instead.
"""

import itertools
import json
import logging
import sys
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
TARGET = Path(__file__).parent.parent / "crates/engine/tests/fixtures/samplers.json"
CLASSES = {
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "ddim": diffusers.DDIMScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
}
SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Double:
    """Stands in for the module `torch` inside a scheduler's file, where it turns the cast to f32 into one to f64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


PLACES = torch.arange(24, dtype=torch.float64).reshape(1, 2, 3, 4)


def network(x, t):
    return 0.8 * x + (0.2 * torch.cos(3 * PLACES + 0.01 * float(t))).to(x.dtype)


def run(name, settings, steps, eta):
    settings = {**settings, "use_karras_sigmas": True} if name.endswith("_karras") else settings
    kind = name.removesuffix("_karras")
    settings = {**settings, "algorithm_type": "sde-dpmsolver++"} if kind.endswith("_sde") else settings
    kind = kind.removesuffix("_sde")
    module = sys.modules[CLASSES[kind].__module__]
    module.torch, module.randn_tensor = torch, randn_tensor
    scheduler = CLASSES[kind].from_config(settings)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else two first timesteps that round to one make diffusers start at the second and fail
    generator = torch.Generator().manual_seed(5)
    first = float(scheduler.init_noise_sigma)
    x = torch.randn(1, 2, 3, 4, generator=generator) * scheduler.init_noise_sigma
    extra = {"eta": eta} if eta else {}
    doubled = kind.startswith("euler") and settings.get("rescale_betas_zero_snr", False)
    if doubled:
        module.torch = Double()
        x, scheduler.sigmas = x.double(), scheduler.sigmas.double()
        module.randn_tensor = lambda shape, generator, **_: torch.randn(shape, generator=generator).double()
    if kind in ("euler_a", "ddim", "lcm") or settings.get("algorithm_type", "").startswith("sde"):
        extra["generator"] = generator
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **extra).prev_sample
    return scheduler, first, x


def number(value):
    return float(f"{float(value):.8g}")


def row(name, settings, steps, eta=0.0):
    scheduler, first, x = run(name, settings, steps, eta)
    t = scheduler.timesteps.double().numpy()
    sigmas = getattr(scheduler, "sigmas", None)
    ends = [] if sigmas is None else [number(sigmas[0]), number(sigmas[len(t) - 1]), number(sigmas[len(t)])]
    values = x.flatten()[::4]
    result = [number(v) for v in values] if bool(torch.isfinite(x).all()) else None
    return [name, settings, steps, eta, [number(t[0]), number(t[-1]), number(t.sum())], ends, number(first), result]


def rows():
    for name, spacing, prediction, zero, steps in itertools.product(
        CLASSES, ("leading", "linspace", "trailing"), ("epsilon", "v_prediction", "sample"), (False, True), (1, 2, 3, 5, 20)
    ):
        if name == "euler_a" and prediction == "sample" or name == "lcm" and spacing != "leading" or prediction != "epsilon" and steps in (1, 3, 5):
            continue
        settings = {**SDXL, "timestep_spacing": spacing, "prediction_type": prediction, "clip_sample": False}
        yield name, {**settings, "rescale_betas_zero_snr": zero, "steps_offset": 1 if spacing == "leading" and not zero else 0}, steps
    for name, steps in itertools.product(("euler_karras", "dpmpp_2m_karras", "unipc_karras"), (1, 2, 3, 5, 20, 40)):
        yield name, {**SDXL, "timestep_spacing": "leading", "steps_offset": 1}, steps
        yield name, {**SDXL, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, steps
    for name, steps in itertools.product(CLASSES, (4, 17)):
        yield name, {}, steps
        yield name, {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False}, steps
        yield name, {**SDXL, "num_train_timesteps": 500, "set_alpha_to_one": False, "clip_sample": False}, steps
        yield name, {"num_train_timesteps": 60, "trained_betas": [number(b) for b in np.linspace(0.001, 0.3, 60)], "clip_sample": False}, steps
        yield name, {**SDXL, "final_sigmas_type": "sigma_min", "clip_sample": True, "clip_sample_range": 0.5}, steps
    for extra in ({"use_exponential_sigmas": True}, {"interpolation_type": "log_linear"}, {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 10.0},
                  {"timestep_type": "continuous", "prediction_type": "v_prediction"}):
        yield "euler", {**SDXL, **extra}, 6
    yield "euler_karras", {**SDXL, "final_sigmas_type": "sigma_min"}, 6
    multistep = (
        {"solver_order": 1}, {"solver_order": 3}, {"lower_order_final": False}, {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"use_exponential_sigmas": True}, {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
        {"solver_order": 3, "use_karras_sigmas": True, "prediction_type": "v_prediction"}, {"solver_order": 3, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
    )
    for extra, steps in itertools.product(multistep, (3, 7, 21)):
        yield "dpmpp_2m", {**SDXL, **extra}, steps
        yield "unipc", {**SDXL, **extra}, steps
    for extra, steps in itertools.product(
        ({"solver_type": "heun"}, {"euler_at_final": True}, {"use_lu_lambdas": True}, {"algorithm_type": "sde-dpmsolver++"},
         {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
         {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
         {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}, {"solver_type": "bh2"}), (3, 16)):
        yield "dpmpp_2m", {**SDXL, **extra}, steps
    for extra, steps in itertools.product(({"solver_type": "bh1"}, {"disable_corrector": [0, 2]}, {"solver_order": 3, "solver_type": "bh1"}), (3, 16)):
        yield "unipc", {**SDXL, **extra}, steps
    for name, steps in itertools.product(("euler", "dpmpp_2m", "unipc"), (1, 2, 3, 7, 21)):
        for extra in ({"timestep_spacing": "leading", "steps_offset": 1}, {"final_sigmas_type": "sigma_min"}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}):
            yield name, {**SDXL, "use_beta_sigmas": True, **extra}, steps
    for name, steps in itertools.product(("dpmpp_2m_sde", "dpmpp_2m_sde_karras"), (1, 2, 5, 20)):
        yield name, {**SDXL, "timestep_spacing": "leading", "steps_offset": 1}, steps
    yield "euler", {**SDXL, "use_beta_sigmas": True, "sigma_min": 0.05, "sigma_max": 10.0}, 6
    for eta in (0.3, 1.0):
        yield "ddim", {**SDXL, "clip_sample": False, "steps_offset": 1}, 5, eta
    yield "lcm", {**SDXL, "original_inference_steps": 100, "timestep_scaling": 8.0}, 7


def line(case):
    return json.dumps(row(*case), separators=(",", ":"))


TARGET.write_text("[\n" + ",\n".join(line(case) for case in rows()) + "\n]\n")
