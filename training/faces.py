"""Stage 2: what sees faces. Encoder A and judge B (ArcFace's loss), the detector, and the probe of picture content."""
import json
import os
import sys
import torch
import torch.nn.functional as F
from torch import nn
import stack
from data import ATTRIBUTES, Cast, DEVICE, SMOKE, WORK, align
from loop import Loop, autocast, budget, compiled, load, save, start, warm


def blur(x, scale):
    return F.interpolate(F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True), size=x.shape[-2:], mode="bilinear")


def soften(x):
    """Brightness, contrast and sharpness change; identity does not."""
    b = x.shape[0]
    draw = lambda low, high: torch.rand(b, 1, 1, 1, device=x.device) * (high - low) + low
    soft = blur(x, float(torch.empty(1).uniform_(0.35, 0.9)))
    x = torch.where(draw(0, 1) < 0.35, soft, x)
    x = x * draw(0.85, 1.15) + draw(-0.12, 0.12)
    return (x + 0.05 * torch.randn_like(x) * (draw(0, 1) < 0.3)).clamp(-1, 1)


def crops(data, index, jitter):
    k = data.keypoints[index]
    eye = (k[:, 1] - k[:, 0]).norm(dim=-1)[:, None, None]
    return align(data.batch(index), k + jitter * eye * torch.randn_like(k))


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
    out = []
    with torch.no_grad(), autocast():
        for i in range(0, data.count, size):
            out.append(net(crops(data, torch.arange(i, min(i + size, data.count), device=DEVICE), jitter)).float())
    return torch.cat(out)


def verify(e, person):
    """Mean similarity of the same and of different people, and the share of pairs told apart right."""
    e = F.normalize(e.float())
    sim = e @ e.T
    same = person[:, None] == person[None, :]
    eye = torch.eye(len(e), dtype=torch.bool, device=e.device)
    a, b = sim[same & ~eye], sim[~same]
    pick = torch.randint(0, len(b), (200000,), device=e.device)
    auc = (a[torch.randint(0, len(a), (200000,), device=e.device)] > b[pick]).float().mean()
    q = lambda v, p: v[torch.randint(0, len(v), (100000,), device=e.device)].quantile(p).item()
    return {"same": a.mean().item(), "different": b.mean().item(), "auc": auc.item(), "same_q01": q(a, 0.01), "different_q99": q(b, 0.99)}


def prepare(name, batch):
    """An encoder, compiled before there is data."""
    torch.manual_seed({"A": 11, "B": 23}[name])
    net = {"A": stack.EncoderA, "B": stack.JudgeB}[name]().to(DEVICE).to(memory_format=torch.channels_last)
    run = compiled(net)
    warm(lambda: run(torch.randn(batch, 3, 112, 112, device=DEVICE).to(memory_format=torch.channels_last)), net)
    return net, run


def encoder(name, net, run, seconds, data, dim, scale, margin, batch=768, rate=3e-3):
    torch.manual_seed(3)
    first, last = 0, data.people
    head = ArcFace(dim, last - first, scale, margin).to(DEVICE)
    loop = Loop(name, [net, head], seconds, rate, decay=0.05, average=0.995, clip=5.0)
    p = data.pictures
    for progress in loop:
        index = torch.randint(first * p, last * p, (batch,), device=DEVICE)
        x = soften(crops(data, index, 0.03)).to(memory_format=torch.channels_last)
        with autocast():
            e = run(x)
        loop.step(head(e, data.person[index] - first, min(1.0, max(0.0, progress - 0.15) / 0.4)))
    loop.use_average()
    settle_norms(net, (crops(data, torch.randint(first * p, last * p, (batch,), device=DEVICE), 0.02) for _ in range(30)))
    test = Cast(["test"])
    report = verify(embed_all(net, test), test.person)
    print(name, json.dumps(report), flush=True)
    json.dump(report, open(os.path.join(WORK, name + ".json"), "w"))
    save(name, net)
    return net


# --- detector --------------------------------------------------------------------------------------------------

def scatter_scenes(data, batch, size):
    """Canvases with one picture at any scale, or four: [b, 3, size, size], and up to four faces each (box, keypoints, present)."""
    b = batch
    many = torch.rand(b, device=DEVICE) < 0.35
    scale = torch.exp(torch.empty(b, 4, device=DEVICE).uniform_(-1.1, 1.0)) * size / 256
    scale = torch.where(many[:, None], torch.empty(b, 4, device=DEVICE).uniform_(0.3, 0.62) * size / 256, scale)
    corner = torch.zeros(b, 4, 2, device=DEVICE)
    cell = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=DEVICE) * size / 2
    index = torch.randint(0, data.count, (b, 4), device=DEVICE)
    center = data.box[index].reshape(b, 4, 2, 2).mean(2)
    # A single picture keeps its face on the canvas, anywhere.
    wanted = torch.rand(b, 4, 2, device=DEVICE) * size * 0.7 + 0.15 * size
    corner = torch.where(many[:, None, None], cell[None].float(), wanted - center * scale[..., None])
    canvas = torch.empty(b, 3, 1, 1, device=DEVICE).uniform_(-1, 1).expand(b, 3, size, size).clone()
    line = torch.arange(size, device=DEVICE, dtype=torch.float32)
    ys, xs = torch.meshgrid(line, line, indexing="ij")
    present = torch.zeros(b, 4, dtype=torch.bool, device=DEVICE)
    for i in range(4):
        rows = torch.arange(b, device=DEVICE) if i == 0 else many.nonzero()[:, 0]
        if len(rows) == 0:
            continue
        x = (xs[None] - corner[rows, i, 0, None, None]) / scale[rows, i, None, None]
        y = (ys[None] - corner[rows, i, 1, None, None]) / scale[rows, i, None, None]
        inside = (x >= 0) & (y >= 0) & (x <= 255) & (y <= 255)
        cut = many[rows][:, None, None] & ((xs[None] >= cell[i, 0] + size / 2) | (ys[None] >= cell[i, 1] + size / 2))
        grid = torch.stack([(x + 0.5) / 128 - 1, (y + 0.5) / 128 - 1], -1)
        picture = F.grid_sample(data.batch(index[rows, i]), grid, align_corners=False)
        canvas[rows] = torch.where((inside & ~cut)[:, None], picture, canvas[rows])
        present[rows, i] = True
    box = data.box[index] * scale[..., None] + torch.cat([corner, corner], -1)
    kps = data.keypoints[index] * scale[..., None, None] + corner[:, :, None]
    return canvas, box, kps, present


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


def detector(seconds, data, batch=64, size=320):
    torch.manual_seed(31)
    net = stack.Detector().to(DEVICE).to(memory_format=torch.channels_last)
    run = net
    loop = Loop("detector", [net], seconds, 3e-3, average=0.995, clip=5.0)
    for _ in loop:
        canvas, box, kps, present = scatter_scenes(data, batch, size)
        if torch.rand(1) < 0.3:
            canvas = blur(canvas, 0.5)
        with autocast():
            scores, boxes, points = run(canvas.to(memory_format=torch.channels_last))
        loss = 0
        count = present.sum()
        for i, (positive, ignore, target, k) in enumerate(detector_targets(box, kps, present, size)):
            both = lambda v: v.repeat_interleave(2, 1)          # two anchors a cell, as SCRFD's graphs have
            positive, ignore, target, k = both(positive), both(ignore), both(target), both(k)
            p = scores[i][..., 0].float().clamp(1e-5, 1 - 1e-5)
            focal = torch.where(positive, -0.5 * (1 - p) ** 2 * p.log(), -0.5 * p**2 * (1 - p).log()).masked_fill(ignore, 0)
            stride = (8, 16, 32)[i]
            weight = positive.float()[..., None]
            norm = target.abs().mean(-1, keepdim=True).clamp_min(0.5)
            near = (F.smooth_l1_loss(boxes[i].float(), target, reduction="none", beta=0.1) / norm).mean(-1) + 2 * (F.smooth_l1_loss(points[i].float(), k, reduction="none", beta=0.1) / norm).mean(-1)
            loss = loss + focal.sum() / positive.sum().clamp_min(1) + (near * weight[..., 0]).sum() / weight.sum().clamp_min(1)
        loop.step(loss)
    loop.use_average()
    settle_norms(net, (scatter_scenes(data, batch, size)[0] for _ in range(30)))
    save("detector", net)
    test = Cast(["test"], limit=1920)
    for side in (256, 640):
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

def probe(seconds, data, batch=256):
    torch.manual_seed(41)
    net = stack.Probe(data.classes).to(DEVICE).to(memory_format=torch.channels_last)
    run = net
    vae = load("vae", stack.vae(), wait=900).eval()
    loop = Loop("probe", [net], seconds, 3e-3, decay=0.05, average=0.995, clip=5.0)
    for _ in loop:
        index = torch.randint(0, data.count, (batch,), device=DEVICE)
        x = data.batch(index)
        if loop.steps % 4 == 0:          # it will be shown pictures that went through the autoencoder
            with torch.no_grad(), autocast():
                x = vae(x, sample_posterior=False).sample.float().clamp(-1, 1)
        x = soften(x).to(memory_format=torch.channels_last)
        with autocast():
            k, logits = run(x)
        loss = 20 * F.smooth_l1_loss(k.float(), data.keypoints[index].flatten(1) / 256, beta=0.02)
        for part, a in zip(logits.float().split(net.classes, 1), range(len(net.classes))):
            loss = loss + F.cross_entropy(part, data.attributes[index, a], label_smoothing=0.02)
        loop.step(loss)
    loop.use_average()
    settle_norms(net, (data.batch(torch.randint(0, data.count, (batch,), device=DEVICE)) for _ in range(30)))
    save("probe", net)
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
    start()
    seconds, names = [budget(s) for s in sys.argv[1].split(",")], sys.argv[2].split(",")
    ready = {n: prepare(n, 32 if SMOKE else 768) for n in sys.argv[3].split(",") if n in "AB"}
    data = Cast(names)
    small = {"batch": 32} if SMOKE else {}
    for name, s in zip(sys.argv[3].split(","), seconds):
        if name == "A":
            encoder("A", *ready["A"], s, data, 512, 28.0, 0.35, **small)
        elif name == "B":          # on people of its own
            encoder("B", *ready["B"], s, data, 256, 24.0, 0.30, **small)
        elif name == "detector":
            detector(s, data, **({"batch": 8} if SMOKE else {}))
        else:
            probe(s, data, **small)
