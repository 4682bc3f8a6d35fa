"""Stage 2: what sees faces. Encoder A and judge B (ArcFace's loss), the detector, and the probe of picture content."""
import json
import os
import sys
import torch
import torch.nn.functional as F
from torch import nn
import lean
import stack
from data import ATTRIBUTES, CLASSES, Cast, DEVICE, SMOKE, WORK, crop_grid, pick, room, unit
from loop import Loop, autocast, await_file, budget, compiled, fill, go_on, load, mark, save, start, warm


def soften(x):
    """Brightness, contrast and sharpness change; identity does not."""
    b = x.shape[0]
    draw = lambda low, high: torch.rand(b, 1, 1, 1, device=x.device) * (high - low) + low
    soft = F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), 3, 1, 1, count_include_pad=False)
    x = torch.lerp(x, soft, (draw(0, 1) < 0.35).float() * draw(0.2, 1))
    x = x * draw(0.85, 1.15) + draw(-0.12, 0.12)
    return (x + 0.05 * torch.randn_like(x) * (draw(0, 1) < 0.3)).clamp(-1, 1)


def crops_of(images, index, keypoints, jitter):
    """Aligned crops [b, 3, 112, 112]; the keypoints are off by some share of the eyes' distance, as a detector's are."""
    eye = (keypoints[:, 1] - keypoints[:, 0]).norm(dim=-1)[:, None, None]
    k = keypoints + jitter * eye * torch.randn_like(keypoints)
    return pick(images, index, crop_grid(k)).permute(0, 3, 1, 2)


def crops(data, index, jitter):
    return crops_of(data.images, index, data.keypoints[index], jitter)


class ArcFace(nn.Module):
    """Additive angular margin (arXiv:1801.07698)."""

    def __init__(self, dim, people, scale, margin):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(people, dim))
        self.scale, self.margin = scale, margin

    def forward(self, x, label, ramp):
        cos = F.linear(F.normalize(x.float()), F.normalize(self.weight)).clamp(-1 + 1e-6, 1 - 1e-6)
        target = torch.cos(torch.acos(cos.gather(1, label[:, None])) + self.margin * ramp)
        return F.cross_entropy(self.scale * cos.scatter(1, label[:, None], target), label)


def settle_norms(net, batches):
    """Batch norm's running values belong to the averaged weights only after a few passes."""
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.reset_running_stats()
            m.momentum = None
    net.train()
    with torch.no_grad(), autocast():
        for x in batches:
            net(x)
    net.eval()


def embed_all(net, data, size=1024, jitter=0.01):
    """Of all pictures on the GPU."""
    out = []
    with torch.no_grad(), autocast():
        for i in range(0, data.count, size):
            out.append(net(crops(data, torch.arange(i, min(i + size, data.count), device=DEVICE), jitter)).float())
    return torch.cat(out)


def verify(e, data):
    """Mean similarity of the same and of different people, the share of pairs told apart right, and what the first
    portraits find: similarity of the person's other pictures to it, and how often it is the nearest of all."""
    e, person = F.normalize(e.float()), data.person
    sim = e @ e.T
    same = person[:, None] == person[None, :]
    eye = torch.eye(len(e), dtype=torch.bool, device=e.device)
    a, b = sim[same & ~eye], sim[~same]
    some = lambda v, n=200000: v[torch.randint(0, len(v), (n,), device=e.device)]
    auc = (some(a) > some(b)).float().mean()
    q = lambda v, p: some(v, 100000).quantile(p).item()
    known = e.view(data.people, data.pictures, -1)
    near = torch.einsum("pnd,qd->pnq", known[:, 1:], known[:, 0])
    own = torch.arange(data.people, device=e.device)
    right = (near.argmax(-1) == own[:, None]).float()
    ref = near[own, :, own]
    styles = data.attributes[:, 0].view(data.people, -1)[:, 1:]
    return {"same": a.mean().item(), "different": b.mean().item(), "auc": auc.item(), "same_q01": q(a, 0.01), "different_q99": q(b, 0.99),
            "SimRef": ref.mean().item(), "top1": right.mean().item(),
            "SimRef_by_style": {s: round(ref[styles == i].mean().item(), 3) for i, s in enumerate(data.info["attributes"]["style"])}}


KINDS = {"A": (stack.EncoderA, 512, 28.0, 0.35, 11), "B": (stack.JudgeB, 256, 24.0, 0.30, 23)}


class Recognition(nn.Module):
    """An encoder with its classes: what one step of training computes."""

    def __init__(self, net, head):
        super().__init__()
        self.net, self.head = net, head

    def forward(self, images, index, keypoints, label, ramp):
        x = soften(crops_of(images, index, keypoints, 0.03))
        with autocast():
            e = self.net(x)
        return self.head(e, label, ramp)


def encoder(name, seconds, names, batch=768, rate=3e-3, report="test", **change):
    make, dim, scale, margin, seed = KINDS[name]
    scale, margin = change.get("scale", scale), change.get("margin", margin)
    torch.manual_seed(seed)
    net = change.get("make", make)().to(DEVICE).to(memory_format=torch.channels_last)
    images, people = room(names)
    torch.manual_seed(3)
    module = Recognition(net, ArcFace(dim, people, scale, margin)).to(DEVICE)
    run = compiled(module)
    ramp = torch.zeros((), device=DEVICE)
    first = torch.arange(batch, device=DEVICE) % len(images)
    warm(lambda: run(images, first, 100 + 20 * torch.randn(batch, 5, 2, device=DEVICE), first % people, ramp), module)
    data = Cast(names, into=images)
    draw = lambda: torch.randint(0, data.count, (batch,), device=DEVICE)
    step = lambda index: run(data.images, index, data.keypoints[index], data.person[index], ramp)
    if change.get("after"):
        await_file(change["after"])
    # The margin waits until the classes are apart; an earlier run's classes are where its embeddings lie.
    rate, wait = rate, 0.15
    if go_on((name, net)):
        rate, wait = rate / 2, 0.0
        centers = F.normalize(embed_all(net.eval(), data)).view(data.people, data.pictures, dim).mean(1)
        fill(module, {"head.weight": F.normalize(centers) * dim**0.5})
        net.train()
    loop = Loop(name, [module], seconds, rate, decay=0.05, average=0.995, clip=5.0)
    for progress in loop:
        ramp.fill_(min(1.0, max(0.0, progress - wait) / 0.4))
        loop.step(step(draw()))
    loop.use_average()
    settle_norms(net, (crops(data, draw(), 0.02) for _ in range(30)))
    test = Cast([report])
    result = verify(embed_all(net, test), test)
    print(name, change.get("scale", ""), change.get("margin", ""), loop.steps, json.dumps(result), flush=True)
    json.dump(result, open(os.path.join(WORK, name + ".json"), "w"))
    save(name, net)
    mark("done")


# --- detector --------------------------------------------------------------------------------------------------

def scatter_scenes(images, index, boxes, keypoints, size):
    """Canvases with one picture at any scale, or four: [b, 3, size, size], and up to four faces each (box, keypoints,
    present). `index` [b, 4] picks the pictures, whose boxes and keypoints are given."""
    b, device = len(index), index.device
    uniform = lambda *shape, low=0.0, high=1.0: torch.rand(*shape, device=device) * (high - low) + low
    many = uniform(b) < 0.35
    scale = torch.where(many[:, None], uniform(b, 4, low=0.3, high=0.62), torch.exp(uniform(b, 4, low=-1.1, high=1.0))) * size / 256
    cell = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=device) * (size / 2)
    center = boxes.reshape(b, 4, 2, 2).mean(2)
    # A single picture keeps its face on the canvas, anywhere.
    wanted = uniform(b, 4, 2) * size * 0.7 + 0.15 * size
    corner = torch.where(many[:, None, None], cell[None], wanted - center * scale[..., None])
    line = torch.arange(size, device=device, dtype=torch.float32)
    xs, ys = line[None, None, :], line[None, :, None]
    canvas = uniform(b, 3, 1, 1, low=-1.0).expand(b, 3, size, size)
    for i in range(4):
        x, y = (xs - corner[:, i, 0, None, None]) / scale[:, i, None, None], (ys - corner[:, i, 1, None, None]) / scale[:, i, None, None]
        shown = (x >= 0) & (x <= 255) & (y >= 0) & (y <= 255)
        shown &= ~(many[:, None, None] & ((xs >= cell[i, 0] + size / 2) | (ys >= cell[i, 1] + size / 2)))
        if i:
            shown &= many[:, None, None]
        grid = torch.stack([x.expand(b, size, size), y.expand(b, size, size)], -1)
        canvas = torch.where(shown[:, None], pick(images, index[:, i], grid).permute(0, 3, 1, 2), canvas)
    present = many[:, None] | (torch.arange(4, device=device) == 0)
    return canvas, boxes * scale[..., None] + torch.cat([corner, corner], -1), keypoints * scale[..., None, None] + corner[:, :, None], present


def detector_targets(box, kps, present, size):
    """Per stride: which cell finds which face. A face belongs to the stride that suits its size, near its middle."""
    out = []
    side = (box[..., 2:] - box[..., :2]).prod(-1).clamp_min(1).sqrt()
    for stride, low, high in ((8, 0, 44), (16, 34, 130), (32, 100, 1e9)):
        n = size // stride
        line = torch.arange(n, device=box.device) * stride
        ys, xs = torch.meshgrid(line, line, indexing="ij")
        cells = torch.stack([xs, ys], -1).reshape(1, -1, 1, 2).float()
        middle = (box[..., :2] + box[..., 2:])[:, None] / 2
        reach = (0.18 * side).clamp_min(stride * 0.9)[:, None, :, None]
        near = ((cells - middle).abs() <= reach).all(-1) & present[:, None] & ((side >= low) & (side < high))[:, None]
        ignore = ((cells - middle).abs() <= reach * 1.8).all(-1) & present[:, None]
        distance = (cells - middle).square().sum(-1).masked_fill(~near, 1e12)
        which = distance.argmin(-1)
        positive = near.any(-1)
        pick = lambda v: torch.gather(v.flatten(2), 1, which[..., None].expand(-1, -1, v.flatten(2).shape[-1]))
        b, k, c = pick(box), pick(kps), cells[:, :, 0]
        target = torch.cat([c - b[..., :2], b[..., 2:] - c], -1) / stride
        points = (k.reshape(*k.shape[:2], 5, 2) - c[:, :, None]).flatten(2) / stride
        out.append((positive, ignore.any(-1) & ~positive, target, points))
    return out


def detector_loss(net, images, index, boxes, keypoints, size):
    with torch.no_grad():
        canvas, box, kps, present = scatter_scenes(images, index, boxes, keypoints, size)
        canvas = soften(canvas)
        targets = detector_targets(box, kps, present, size)
    with autocast():
        scores, boxes, points = net(canvas)
    loss = 0
    for i, (positive, ignore, target, k) in enumerate(targets):
        both = lambda v: v.repeat_interleave(2, 1)          # two anchors a cell, as SCRFD's graphs have
        positive, ignore, target, k = both(positive), both(ignore), both(target), both(k)
        p = scores[i][..., 0].float().clamp(1e-5, 1 - 1e-5)
        focal = torch.where(positive, -0.5 * (1 - p) ** 2 * p.log(), -0.5 * p**2 * (1 - p).log()).masked_fill(ignore, 0)
        weight = positive.float()
        norm = target.abs().mean(-1, keepdim=True).clamp_min(0.5)
        off = lambda a, b: (F.smooth_l1_loss(a.float(), b, reduction="none", beta=0.03) / norm).mean(-1)
        loss = loss + focal.sum() / weight.sum().clamp_min(1) + ((off(boxes[i], target) + 4 * off(points[i], k)) * weight).sum() / weight.sum().clamp_min(1)
    return loss


def detector(seconds, names, batch=96, size=320):
    torch.manual_seed(31)
    net = stack.Detector().to(DEVICE).to(memory_format=torch.channels_last)
    images, _ = room(names)
    run = compiled(detector_loss)
    square = torch.tensor([[70.0, 60.0], [120.0, 60.0], [95.0, 90.0], [75.0, 120.0], [115.0, 120.0]], device=DEVICE).expand(batch, 4, 5, 2).clone()
    warm(lambda: run(net, images, torch.zeros(batch, 4, dtype=torch.long, device=DEVICE), torch.tensor([50.0, 40.0, 140.0, 150.0], device=DEVICE).expand(batch, 4, 4).clone(), square, size), net)
    data = Cast(names, into=images)

    def step():
        index = torch.randint(0, data.count, (batch, 4), device=DEVICE)
        return run(net, data.images, index, data.box[index], data.keypoints[index], size)

    loop = Loop("detector", [net], seconds, 3e-3, average=0.998, clip=5.0)
    for _ in loop:
        loop.step(step())
    loop.use_average()

    def scenes():
        for _ in range(30):
            index = torch.randint(0, data.count, (batch, 4), device=DEVICE)
            yield scatter_scenes(data.images, index, data.box[index], data.keypoints[index], size)[0]

    settle_norms(net, scenes())
    save("detector", net)
    mark("done")
    test = Cast(["test"], limit=1920)
    for side in (256, 320, 640):
        errors, found = [], 0
        for i in range(0, test.count, 64):
            rows = torch.arange(i, min(i + 64, test.count), device=DEVICE)
            k, score = best_keypoints(net, test.batch(rows), side)
            eye = (test.keypoints[rows, 1] - test.keypoints[rows, 0]).norm(dim=-1)
            errors.append((k - test.keypoints[rows]).norm(dim=-1).mean(-1) / eye)
            found += (score > 0.5).sum().item()
        errors = torch.cat(errors)
        report = {"side": side, "found": found / test.count, "error": errors.mean().item(), "p95": errors.quantile(0.95).item()}
        print("detector", json.dumps(report), flush=True)
        json.dump(report, open(os.path.join(WORK, f"detector-{side}.json"), "w"))


@torch.no_grad()
def best_keypoints(net, x, side):
    """Keypoints [b, 5, 2] of the surest face of each picture, in its pixels, and the scores."""
    scale = side / x.shape[-1]
    big = F.interpolate(x, size=(side, side), mode="bilinear", antialias=False) if side != x.shape[-1] else x
    scores, _, points = net(big)
    all_scores = torch.cat([s[..., 0] for s in scores], 1).float()
    places = []
    for i, stride in enumerate((8, 16, 32)):
        n = side // stride
        line = torch.arange(n, device=x.device) * stride
        ys, xs = torch.meshgrid(line, line, indexing="ij")
        cells = torch.stack([xs, ys], -1).reshape(-1, 2).repeat_interleave(2, 0).float()
        places.append((cells[None, :, None] + points[i].float().reshape(x.shape[0], -1, 5, 2) * stride))
    best = all_scores.argmax(1)
    k = torch.cat(places, 1)[torch.arange(x.shape[0], device=x.device), best]
    return k / scale, all_scores.max(1).values


# --- probe -----------------------------------------------------------------------------------------------------

def probe_loss(net, images, keypoints, attributes):
    x = soften(unit(images))
    with autocast():
        k, logits = net(x)
    loss = 60 * F.smooth_l1_loss(k.float(), keypoints, beta=0.005)
    for a, part in enumerate(logits.float().split(net.classes, 1)):
        loss = loss + F.cross_entropy(part, attributes[:, a], label_smoothing=0.02)
    return loss


@torch.no_grad()
def reconstructions(data, index):
    """What the autoencoder makes of pictures, as bytes."""
    vae = load("vae_early" if not os.path.exists(os.path.join(WORK, "vae.pt")) else "vae", stack.vae()).to(torch.bfloat16).to(memory_format=torch.channels_last)
    run = compiled(lambda x: ((lean.decode(vae, lean.encode(vae, unit(x).to(torch.bfloat16))[0]).float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1))
    out = torch.empty(len(index), 256, 256, 3, dtype=torch.uint8, device=DEVICE)
    for i in range(0, len(index), 128):
        out[i : i + 128] = run(data.images[index[i : i + 128]])
    return out


def probe(seconds, names, batch=256, after=None):
    torch.manual_seed(41)
    net = stack.Probe(CLASSES).to(DEVICE).to(memory_format=torch.channels_last)
    run = compiled(probe_loss)
    warm(lambda: run(net, torch.zeros(batch, 256, 256, 3, dtype=torch.uint8, device=DEVICE), torch.rand(batch, 10, device=DEVICE), torch.zeros(batch, len(CLASSES), dtype=torch.long, device=DEVICE)), net)
    data = Cast(names)
    many = min(16384, data.count // 128 * 128)
    if SMOKE:
        many = 0

    def step(images, index):
        return run(net, images, data.keypoints[index].flatten(1) / 256, data.attributes[index])

    draw = lambda n: torch.randint(0, n, (batch,), device=DEVICE)
    await_file(after or "vae_early.pt", 2000)
    await_file("vae_early.pt", 2000)
    # It will be shown pictures that went through the autoencoder.
    shown = torch.randperm(data.count, device=DEVICE)[:many]
    again = reconstructions(data, shown) if many else None
    loop = Loop("probe", [net], seconds, 3e-3, decay=0.05, average=0.998, clip=5.0)
    for _ in loop:
        if many and loop.steps % 3 == 0:
            i = draw(many)
            loop.step(step(again[i], shown[i]))
        else:
            i = draw(data.count)
            loop.step(step(data.images[i], i))
    loop.use_average()
    settle_norms(net, (data.batch(draw(data.count)) for _ in range(30)))
    save("probe", net)
    mark("done")
    test = Cast(["test"], limit=1920)
    right, errors = [], []
    with torch.no_grad():
        for i in range(0, test.count, 128):
            rows = torch.arange(i, min(i + 128, test.count), device=DEVICE)
            k, logits = net(test.batch(rows))
            right.append(torch.stack([p.argmax(1) == test.attributes[rows, a] for a, p in enumerate(logits.split(net.classes, 1))], 1))
            eye = (test.keypoints[rows, 1] - test.keypoints[rows, 0]).norm(dim=-1)
            errors.append((k.reshape(-1, 5, 2) * 256 - test.keypoints[rows]).norm(dim=-1).mean(-1) / eye)
    report = {"accuracy": dict(zip(ATTRIBUTES, torch.cat(right).float().mean(0).tolist())), "keypoint_error": torch.cat(errors).mean().item()}
    print("probe", json.dumps(report), flush=True)
    json.dump(report, open(os.path.join(WORK, "probe.json"), "w"))


if __name__ == "__main__":
    # faces.py STAGE SECONDS SETS [FILE TO WAIT FOR]
    start()
    name, seconds, names = sys.argv[1], budget(sys.argv[2]), sys.argv[3].split(",")
    after = {"after": sys.argv[4]} if len(sys.argv) > 4 else {}
    if name in KINDS:          # B on people of its own
        encoder(name, seconds, names, **({"batch": 32} if SMOKE else {}), **after)
    elif name == "detector":
        detector(seconds, names, **({"batch": 8} if SMOKE else {}))
    else:
        probe(seconds, names, **({"batch": 8} if SMOKE else {}), **after)
