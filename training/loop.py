"""The training loop's common parts: learning rate by the clock, 16-bit arithmetic on 32-bit weights, averaged weights,
several GPUs, curves."""
import json
import math
import os
import sys
import time
import torch
import torch.distributed as dist
from data import DEVICE, WORK

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def start(seed=7, together=True):
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if together and WORLD > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    torch.manual_seed(seed + RANK)


def autocast():
    return torch.autocast(DEVICE, torch.bfloat16)


def compiled(function):
    return torch.compile(function, dynamic=False, backend=os.environ.get("BACKEND", "inductor")) if (DEVICE == "cuda" or "BACKEND" in os.environ) and os.environ.get("COMPILE", "1") == "1" else function


def halve(*modules):
    """16-bit weights to compute with; `Loop` keeps 32-bit ones of its own, which begin at `master`."""
    for m in modules:
        for p in m.parameters():
            p.master = p.detach().float()
            p.data = p.data.to(torch.bfloat16)
    return modules[0] if len(modules) == 1 else modules


def fill(module, state):
    """New weights for a module that may already be in 16 bits."""
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value.to(DEVICE))
            own[name].master = value.to(DEVICE).float()


def warm(loss, *modules):
    """Compiles forward and backward on made-up inputs, so that waiting for another stage is not wasted."""
    for _ in range(2):
        loss().float().mean().backward()
    for m in modules:
        m.zero_grad(set_to_none=True)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    mark("compiled")


def mark(what):
    """Tells other processes: STAGE.what."""
    if RANK == 0:
        open(os.path.join(WORK, f"{os.environ.get('STAGE', os.path.basename(sys.argv[0]).removesuffix('.py'))}.{what}"), "w").close()


def await_file(name, seconds=3600):
    """True once the file is there."""
    until = time.time() + seconds
    while not os.path.exists(os.path.join(WORK, name)) and time.time() < until:
        time.sleep(0.2)
    return os.path.exists(os.path.join(WORK, name))


def budget(text):
    """Seconds to train: a number, or `@EPOCH` for as long as there is until then."""
    return text if text.startswith("@") else float(text)


class Loop:
    """`for progress in loop:` runs for so many seconds after the first few steps (which settle); call `loop.step(loss)`
    inside. All weights are kept as one long vector in 32 bits, so that a step of the optimiser is a few kernels."""

    def __init__(self, name, modules, seconds, rate, decay=0.01, warm=0.03, average=0.999, clip=1.0, floor=0.02, marks=()):
        self.name, self.modules, self.rate, self.warm, self.clip, self.floor = name, modules, rate, warm, clip, floor
        self.seconds = seconds
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.ordered = [p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) for p in self.parameters]
        self.zero = torch.zeros(1, device=DEVICE)
        self.flat = self.join([getattr(p, "master", p).detach() for p in self.parameters])
        if WORLD > 1:          # everyone begins with the first process's weights
            dist.broadcast(self.flat, 0)
        # The modules' weights are windows into one vector of their own type.
        self.used = self.flat.to(self.parameters[0].dtype)
        for p, window in zip(self.parameters, self.split(self.used)):
            p.data = window
        self.optimizer = torch.optim.AdamW([self.flat], rate, betas=(0.9, 0.99), weight_decay=decay, fused=DEVICE == "cuda")
        self.shadow = self.flat.clone()
        self.average, self.steps, self.curve, self.losses, self.marks = average, 0, [], [], sorted(marks)
        # PROFILE=1: where four steps spend their time.
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) if os.environ.get("PROFILE") and RANK == 0 else None
        self.born = time.time()
        self.graph = None          # or, once recorded: (CUDA graph, its inputs, its loss, its gradients)

    def join(self, tensors):
        """One vector, in the order in which memory holds the weights, each beginning at a multiple of 64."""
        parts = []
        for t, p, last in zip(tensors, self.parameters, self.ordered):
            n = p.numel()
            parts.append(self.zero.to(p.dtype).expand(n) if t is None else (t.permute(0, 2, 3, 1) if last else t).reshape(-1))
            if n % 64:
                parts.append(self.zero.to(parts[-1].dtype).expand(64 - n % 64))
        return torch.cat(parts).float()

    def split(self, flat):
        out, at = [], 0
        for p, last in zip(self.parameters, self.ordered):
            shape = [p.shape[i] for i in (0, 2, 3, 1)] if last else p.shape
            part = flat[at : at + p.numel()].view(shape)
            out.append(part.permute(0, 3, 1, 2) if last else part)
            at += (p.numel() + 63) // 64 * 64
        return out

    def __iter__(self):
        settle = 2          # steps before the clock starts: compiling is not training
        began, self.done = None, 0.0
        while self.done < 1.0:
            if self.steps == settle:
                began = time.time()
                if isinstance(self.seconds, str):          # until a moment
                    self.seconds = max(5.0, float(self.seconds[1:]) - began)
            progress = 0.0 if began is None else min(1.0, (time.time() - began) / self.seconds)
            factor = min(1.0, progress / self.warm + 0.02) * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress)))
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * factor
            self.progress = progress
            if self.marks and progress >= self.marks[0][0]:
                self.marks.pop(0)[1](self)
            if self.profiler and self.steps == 20:
                self.profiler.__enter__()
            yield progress
            if self.profiler and self.steps == 24:
                torch.cuda.synchronize()
                self.profiler.__exit__(None, None, None)
                print(self.profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=60), flush=True)
            if WORLD == 1:
                self.done = progress
        if self.losses:
            self.flush()
        if RANK == 0:
            print(f"{self.name}: {self.steps} steps, {time.time() - self.born:.0f} s, loss {self.curve[-1][2]:.4f}", flush=True)
            os.makedirs(os.path.join(WORK, "curves"), exist_ok=True)
            json.dump({"name": self.name, "columns": ["step", "seconds", "loss"], "curve": self.curve}, open(os.path.join(WORK, "curves", self.name + ".json"), "w"))

    @torch.no_grad()
    def update(self, grads):
        grad = self.join(grads)
        if WORLD > 1:
            grad = torch.cat([grad, self.zero + self.progress])
            dist.all_reduce(grad)
            grad /= WORLD
            if self.steps % 8 == 0:
                self.done = grad[-1].item()          # all stop together
            grad = grad[:-1]
        length = grad.norm()
        # A step that is not finite is left out.
        self.flat.grad = torch.where(length.isfinite(), grad * (self.clip / (length + 1e-6)).clamp_max(1), 0)
        self.optimizer.step()
        if self.used is not self.flat:
            self.used.copy_(self.flat)
        self.steps += 1
        self.shadow.lerp_(self.flat, 1 - min(self.average, (1 + self.steps) / (10 + self.steps)))

    def forget(self):
        """-> the gradients, which the parameters let go of."""
        grads = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        return grads

    def step(self, loss):
        loss.backward()
        self.advance(loss, self.forget())

    def run(self, function, *inputs):
        """A step on the loss `function(*inputs)`. On a GPU forward and backward are soon recorded as a CUDA graph, because
        launching some thousand small kernels one by one takes longer than computing them."""
        if self.steps == 5 and DEVICE == "cuda" and os.environ.get("GRAPHS", "1") == "1":
            self.record(function, inputs)
        if self.graph is None:
            return self.step(function(*inputs))
        graph, own, loss, grads = self.graph
        for a, b in zip(own, inputs):
            a.copy_(b)
        graph.replay()
        self.advance(loss.clone(), grads)

    def record(self, function, inputs):
        """A graph is used only if it gives the gradients that the same inputs give without one."""
        try:
            own = [v.clone() for v in inputs]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    loss = function(*own)
                    loss.backward()
                    expected = self.join(self.forget())
            torch.cuda.current_stream().wait_stream(side)
            expected_loss = loss.item()
            del loss
            graph = torch.cuda.CUDAGraph()
            # Other threads (NCCL's watchdog) may talk to the device meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                loss = function(*own)
                loss.backward()
            grads = self.forget()
            for v in own:          # what follows must come from new inputs, not from what recording left
                v.zero_()
            graph.replay()
            for a, b in zip(own, inputs):
                a.copy_(b)
            graph.replay()
            off = ((self.join(grads) - expected).norm() / expected.norm()).item()
            good = off < 0.02 and abs(loss.item() - expected_loss) < 0.01 * abs(expected_loss)
            print(f"{self.name}: graph recorded, gradients {off:.1e} from those without, loss {loss.item():.5f} and {expected_loss:.5f}{'' if good else ': not used'}", flush=True)
            if good:
                self.graph = graph, own, loss.detach(), grads
        except RuntimeError as e:
            self.forget()
            print(f"{self.name}: no graph: {e}", flush=True)

    def advance(self, loss, grads):
        self.update(grads)
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
        """The averaged weights, in 32 bits, from here on."""
        with torch.no_grad():
            for m in self.modules:
                m.float()
            for p, v in zip(self.parameters, self.split(self.shadow)):
                p.data = v.clone()

    def save(self, name, module):
        """The averaged weights of a module while training goes on."""
        own = {id(p): v for p, v in zip(self.parameters, self.split(self.shadow))}
        write(name, {k: own.get(id(v), v) for k, v in module.state_dict(keep_vars=True).items()})


def write(name, state):
    if RANK == 0:          # whole or not at all: other stages wait for the file
        path = os.path.join(WORK, name + ".pt")
        torch.save({k: v.detach().half().cpu().contiguous() if v.is_floating_point() else v.cpu() for k, v in state.items()}, path + ".part")
        os.replace(path + ".part", path)


def go_on(*modules):
    """With BEFORE=FOLDER, modules (name, module) begin as an earlier run's checkpoints that lie there; -> whether."""
    before = os.environ.get("BEFORE")
    for name, module in modules if before else ():
        state = torch.load(os.path.join(before, name + ".pt"), map_location="cpu", weights_only=True)
        fill(module, {k: v for k, v in state.items() if k in dict(module.named_parameters())})
        own = dict(module.named_buffers())
        for k, v in state.items():
            if k in own:
                own[k].copy_(v)
    return bool(before)


def save(name, module):
    write(name, module.state_dict())


def state(name, wait=0):
    await_file(name + ".pt", wait)
    return torch.load(os.path.join(WORK, name + ".pt"), map_location="cpu", weights_only=True)


def load(name, module, wait=0):
    module.load_state_dict(state(name, wait))
    return module.to(DEVICE)
