"""What the drawer wrote, on the GPU; and the geometry that all stages share."""
import json
import os
import time
import numpy as np
import torch
import torch.nn.functional as F

WORK = os.environ.get("WORK", os.path.join(os.path.dirname(os.path.abspath(__file__)), ".work"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMOKE = bool(int(os.environ.get("SMOKE", "0")))
ATTRIBUTES = ["style", "expression", "clothing", "tint", "headwear", "glasses", "background", "light"]


CLASSES = [8, 6, 7, 8, 8, 4, 8, 5]          # how many choices each has


def planned(names):
    """(people, pictures of each) of sets that may still be drawn: SETS="NAME=5000x8 ..." says so; else from the files."""
    sets = dict(s.split("=") for s in os.environ.get("SETS", "").split())
    if not all(n in sets for n in names):
        data = Cast(names, images=False)
        return data.people, data.pictures
    shapes = [[int(v) for v in sets[n].split("x")] for n in names]
    return sum(s[0] for s in shapes), shapes[0][1]


class Cast:
    """Pictures [n, 256, 256, 3] as bytes, keypoints [n, 5, 2] in pixels, boxes, choices, captions."""

    def __init__(self, names, device=DEVICE, images=True, limit=None, share=(0, 1), into=None):
        rows, self.captions, parts, people = [], [], [], []
        for name in names:
            folder = os.path.join(WORK, name)
            while not os.path.exists(os.path.join(folder, "truth.json")):          # the last file to be written
                time.sleep(0.5)
            info = json.load(open(os.path.join(folder, "truth.json")))
            count = info["people"] * info["pictures"]
            rows.append(np.fromfile(os.path.join(folder, "truth.f32"), "<f4").reshape(count, -1))
            self.captions += open(os.path.join(folder, "captions.txt")).read().splitlines()
            parts.append(np.memmap(os.path.join(folder, "images.u8"), np.uint8, "r", shape=(count, 256, 256, 3)))
            people.append(info["people"])
            self.info, self.pictures = info, info["pictures"]
        rows = np.concatenate(rows)
        # Of several processes each holds its share of the people.
        size = len(rows) // self.pictures // share[1] * self.pictures
        begin = size * share[0]
        self.count = size if limit is None else min(limit, size)
        rows = torch.from_numpy(rows[begin : begin + self.count].copy())
        self.captions = self.captions[begin : begin + self.count]
        self.seed = rows[:, 0].long()
        self.box = rows[:, 1:5].to(device)
        self.keypoints = rows[:, 5:15].reshape(-1, 5, 2).to(device)
        self.attributes = rows[:, 15:23].long().to(device)
        self.pose = rows[:, 23:26].to(device)
        self.person = torch.arange(self.count, device=device) // self.pictures
        self.people = int(self.person[-1]) + 1
        self.classes = [len(self.info["attributes"][a]) for a in ATTRIBUTES]
        assert self.classes == CLASSES
        self.parts, self.begin = parts, begin
        if images:
            self.images = torch.empty(self.count, 256, 256, 3, dtype=torch.uint8, device=device) if into is None else into
            assert len(self.images) == self.count, f"{len(self.images)} pictures were planned, {self.count} are there"
            for i, block in self.blocks(2048):
                self.images[i : i + len(block)] = block

    def blocks(self, size):
        """(first, pictures as bytes on the GPU) from the files, block by block."""
        offset = 0
        for source in self.parts:
            low, high = max(self.begin, offset), min(self.begin + self.count, offset + len(source))
            for i in range(low, high, size):
                n = min(size, high - i)
                yield i - self.begin, torch.from_numpy(source[i - offset : i - offset + n].copy()).to(self.keypoints.device)
            offset += len(source)

    def batch(self, index):
        """-> [b, 3, 256, 256] in -1..1."""
        return unit(self.images[index])


def room(names):
    """Space for the pictures of sets: nets compile for its size before it is filled."""
    people, pictures = planned(names)
    return torch.zeros(people * pictures, 256, 256, 3, dtype=torch.uint8, device=DEVICE), people


def unit(images):
    """Bytes [b, h, w, 3] -> [b, 3, h, w] in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


# ArcFace's places of the five keypoints in a 112x112 crop (arXiv:1801.07698 and insightface's norm_crop).
TEMPLATE = torch.tensor([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]).to(DEVICE)


def crop_grid(keypoints, size=112):
    """Where the pixels of the aligned crops lie in the pictures: [b, size, size, 2] as (x, y), by the least-squares
    similarity transforms from keypoints [b, 5, 2] to the template."""
    s, t = keypoints.float(), TEMPLATE.to(keypoints.device)
    sm, tm = s.mean(1, keepdim=True), t.mean(0)
    a, b = s - sm, t - tm
    dot, cross = (a * b).sum((1, 2)), (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(1)
    # Back from the crop: divide by the complex factor (dot + i cross) / |a|^2.
    back = a.square().sum((1, 2)) / (dot.square() + cross.square()).clamp_min(1e-6)
    c, d = (dot * back)[:, None, None], (cross * back)[:, None, None]
    line = torch.arange(size, device=s.device, dtype=torch.float32)
    x, y = line[None, None, :] - tm[0], line[None, :, None] - tm[1]
    return torch.stack([c * x + d * y + sm[..., 0, None], c * y - d * x + sm[..., 1, None]], -1)


def align(images, keypoints, size=112):
    """Crops of size 112 by the five keypoints; images [b, 3, h, w]."""
    grid = crop_grid(keypoints, size) + 0.5
    grid = torch.stack([grid[..., 0] * (2 / images.shape[-1]), grid[..., 1] * (2 / images.shape[-2])], -1) - 1
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def pick(images, index, grid):
    """Bilinear samples straight from the bytes [n, h, w, 3] at grid [b, .., 2] (x, y) of picture `index` [b] -> [b, .., 3]
    in -1..1, and 0 beyond the border, as `align` gives."""
    _, h, w, _ = images.shape
    flat = images.view(-1, 3)
    first = index.view(-1, *[1] * (grid.dim() - 2)) * (h * w)
    low = grid.floor()
    part = grid - low
    out = 0
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = low[..., 0].long() + dx, low[..., 1].long() + dy
            weight = (part[..., 0] if dx else 1 - part[..., 0]) * (part[..., 1] if dy else 1 - part[..., 1])
            inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
            value = flat[first + y.clamp(0, h - 1) * w + x.clamp(0, w - 1)].float() / 127.5 - 1
            out = out + value * (weight * inside)[..., None]
    return out


COLORS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]], dtype=torch.float32).to(DEVICE)


def keypoint_images(keypoints, size=256):
    """The picture IdentityNet sees: four ellipses to the nose at 0.6 of their colour, then five dots of radius 10. [b, 3, s, s] in 0..1."""
    b = keypoints.shape[0]
    colors = (COLORS / 255).to(keypoints.device)
    ys, xs = torch.meshgrid(*[torch.arange(size, device=keypoints.device, dtype=torch.float32)] * 2, indexing="ij")
    out = torch.zeros(b, 3, size, size, device=keypoints.device)
    k = keypoints.float()
    for i in (0, 1, 3, 4):
        p, q = k[:, i], k[:, 2]
        m = torch.trunc((p + q) / 2)
        d = p - q
        length = d.norm(dim=-1).clamp_min(1e-3)
        u = d / length[:, None]
        x, y = xs[None] - m[:, 0, None, None], ys[None] - m[:, 1, None, None]
        along = x * u[:, 0, None, None] + y * u[:, 1, None, None]
        across = -x * u[:, 1, None, None] + y * u[:, 0, None, None]
        inside = (along / torch.trunc(length / 2).clamp_min(1)[:, None, None]) ** 2 + (across / 4.3) ** 2 <= 1.0
        out = torch.where(inside[:, None], (colors[i] * 0.6)[None, :, None, None], out)
    for i in range(5):
        p = torch.trunc(k[:, i])
        inside = (xs[None] - p[:, 0, None, None]) ** 2 + (ys[None] - p[:, 1, None, None]) ** 2 <= 10.3**2
        out = torch.where(inside[:, None], colors[i][None, :, None, None], out)
    return out
