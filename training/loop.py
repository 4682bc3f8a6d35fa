"""The training loop's common parts: learning rate by the clock, averaged weights, several GPUs, curves."""
import copy
import json
import os
import sys
import time
import torch
import torch.distributed as dist
from data import DEVICE, WORK

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def start(seed=7):
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if WORLD > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    torch.manual_seed(seed + RANK)


def autocast():
    return torch.autocast(DEVICE, torch.bfloat16)


def compiled(module):
    return torch.compile(module) if DEVICE == "cuda" and os.environ.get("COMPILE", "1") == "1" else module


def share(*modules):
    """Everyone begins with the first process's weights."""
    if WORLD > 1:
        for m in modules:
            for p in m.parameters():
                dist.broadcast(p.data, 0)


def warm(loss, *modules):
    """Compiles forward and backward on made-up inputs, so that waiting for another stage is not wasted."""
    for _ in range(2):
        with autocast():
            value = loss()
        value.float().mean().backward()
    for m in modules:
        m.zero_grad(set_to_none=True)
    open(os.path.join(WORK, os.path.basename(sys.argv[0]).removesuffix(".py") + ".compiled"), "w").close()


def budget(text):
    """Seconds to train: a number, or `@EPOCH` for as long as there is until then."""
    return text if text.startswith("@") else float(text)


class Loop:
    """`for progress in loop:` runs for so many seconds after the first few steps (which compile); call `loop.step(loss)` inside."""

    def __init__(self, name, modules, seconds, rate, decay=0.01, warm=0.03, average=0.999, clip=1.0, floor=0.02):
        seconds = max(5.0, float(seconds[1:]) - time.time()) if isinstance(seconds, str) else seconds
        self.name, self.modules, self.seconds, self.rate, self.warm, self.clip, self.floor = name, modules, seconds, rate, warm, clip, floor
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, rate, betas=(0.9, 0.99), weight_decay=decay, fused=DEVICE == "cuda")
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.average, self.steps, self.curve, self.losses = average, 0, [], []
        self.born = time.time()

    def __iter__(self):
        settle = 2          # steps before the clock starts: compiling is not training
        began, self.done = None, 0.0
        while self.done < 1.0:
            if self.steps == settle:
                began = time.time()
            progress = 0.0 if began is None else min(1.0, (time.time() - began) / self.seconds)
            factor = min(1.0, progress / self.warm + 0.02) * (self.floor + (1 - self.floor) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item()))
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * factor
            self.progress = progress
            yield progress
            if WORLD == 1:
                self.done = progress
        if self.losses:
            self.flush()
        if RANK == 0:
            print(f"{self.name}: {self.steps} steps, {time.time() - self.born:.0f} s, loss {self.curve[-1][2]:.4f}", flush=True)
            os.makedirs(os.path.join(WORK, "curves"), exist_ok=True)
            json.dump({"name": self.name, "columns": ["step", "seconds", "loss"], "curve": self.curve}, open(os.path.join(WORK, "curves", self.name + ".json"), "w"))

    def step(self, loss):
        loss.backward()
        if WORLD > 1:
            grads = [p.grad for p in self.parameters if p.grad is not None]
            flat = torch.cat([g.reshape(-1) for g in grads] + [torch.tensor([self.progress], device=DEVICE)])
            dist.all_reduce(flat)
            flat /= WORLD
            at = 0
            for g in grads:
                g.copy_(flat[at : at + g.numel()].view_as(g))
                at += g.numel()
            if self.steps % 8 == 0:
                self.done = flat[-1].item()          # all stop together
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        keep = min(self.average, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, self.parameters, 1 - keep)
        self.losses.append(loss.detach())
        if len(self.losses) == 50:
            self.flush()

    def flush(self):
        value = torch.stack(self.losses).mean().item()
        self.losses = []
        self.curve.append([self.steps, round(time.time() - self.born, 1), round(value, 5)])
        if RANK == 0 and len(self.curve) % 10 == 0:
            print(f"{self.name} step {self.steps} {self.progress:.2f} loss {value:.4f}", flush=True)

    def use_average(self):
        with torch.no_grad():
            for p, s in zip(self.parameters, self.shadow):
                p.copy_(s)


def save(name, module):
    if RANK == 0:          # whole or not at all: other stages wait for the file
        path = os.path.join(WORK, name + ".pt")
        torch.save({k: v.detach().half().cpu() if v.is_floating_point() else v.cpu() for k, v in module.state_dict().items()}, path + ".part")
        os.replace(path + ".part", path)


def load(name, module, wait=0):
    path = os.path.join(WORK, name + ".pt")
    until = time.time() + wait
    while not os.path.exists(path) and time.time() < until:
        time.sleep(1)
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return module.to(DEVICE)
