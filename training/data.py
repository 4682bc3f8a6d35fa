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


class Cast:
    """Pictures [n, 256, 256, 3] as bytes, keypoints [n, 5, 2] in pixels, boxes, choices, captions."""

    def __init__(self, names, device=DEVICE, images=True, limit=None, share=(0, 1)):
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
        if images:
            self.images = torch.empty(self.count, 256, 256, 3, dtype=torch.uint8, device=device)
            offset = 0
            for source in parts:
                low, high = max(begin, offset), min(begin + self.count, offset + len(source))
                for i in range(low, high, 2048):
                    n = min(2048, high - i)
                    self.images[i - begin : i - begin + n] = torch.from_numpy(source[i - offset : i - offset + n].copy()).to(device)
                offset += len(source)

    def batch(self, index):
        """-> [b, 3, 256, 256] in -1..1."""
        return self.images[index].permute(0, 3, 1, 2).float() / 127.5 - 1


# ArcFace's places of the five keypoints in a 112x112 crop (arXiv:1801.07698 and insightface's norm_crop).
TEMPLATE = torch.tensor([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


def similarity(source, target):
    """Least-squares similarity transforms source -> target ([b, 5, 2] each), as complex factors: y = a x + t."""
    s, t = torch.view_as_complex(source.float().contiguous()), torch.view_as_complex(target.float().contiguous())
    sm, tm = s.mean(-1, keepdim=True), t.mean(-1, keepdim=True)
    a = ((s - sm).conj() * (t - tm)).sum(-1, keepdim=True) / (s - sm).abs().square().sum(-1, keepdim=True).clamp_min(1e-6)
    return a, tm - a * sm


def align(images, keypoints, size=112):
    """Crops of size 112 by the five keypoints; images [b, 3, h, w]."""
    b, _, h, w = images.shape
    a, t = similarity(keypoints, TEMPLATE.to(keypoints.device).expand(b, 5, 2))
    grid = torch.arange(size, device=images.device, dtype=torch.float32)
    z = torch.complex(grid[None, :].expand(size, size), grid[:, None].expand(size, size)).reshape(1, -1)
    p = torch.view_as_real((z - t) / a).reshape(b, size, size, 2)
    scale = torch.tensor([2 / w, 2 / h], device=images.device)
    return F.grid_sample(images.float(), (p + 0.5) * scale - 1, mode="bilinear", padding_mode="zeros", align_corners=False)


COLORS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]], dtype=torch.float32)


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
