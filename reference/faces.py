"""Writes crates/faces/tests/fixtures: what OpenCV, Pillow and insightface make of pictures and faces.

Public libraries only; the networks are tiny and random, with the inputs and outputs of the real SCRFD
and ArcFace files. The photograph is NASA's portrait of Eileen Collins (public domain), as scikit-image
ships it.

    python reference/faces.py
"""

import hashlib
import io
import json
import math
import pathlib
import sys
import tempfile
import warnings

import cv2
import numpy as np
import onnx
import simplejpeg
import skimage.data
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageOps
from torch import nn

warnings.filterwarnings("ignore")
OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/faces/tests/fixtures"
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def dump(name, value):
    (OUT / name).write_text(json.dumps(value, separators=(",", ":")) + "\n")


def numbers(array):
    """Floats so that they read back as the same float32."""
    return [float(v) for v in np.asarray(array, np.float32).ravel()]


def texture(width, height, seed):
    """A picture that the Rust tests make too: smooth waves with noise."""
    state = seed
    out = np.zeros((height, width, 3), np.uint8)
    flat = out.reshape(-1)
    for i in range(flat.size):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        x, y = (i // 3) % width, (i // 3) // width
        flat[i] = ((x * 3 + y * 2 + (i % 3) * 50) // 2 + (state >> 27)) & 255
    return out


# --- keypoint images -------------------------------------------------------------------------------


def draw_keypoints(width, height, kps):
    """The drawing rules of InstantID's conditioning image, with OpenCV's primitives."""
    canvas = np.zeros((height, width, 3))
    for start, color in zip((0, 1, 3, 4), (COLORS[0], COLORS[1], COLORS[3], COLORS[4])):
        ends = kps[[start, 2]]
        (x0, x1), (y0, y1) = ends[:, 0], ends[:, 1]
        length = ((x0 - x1) ** 2 + (y0 - y1) ** 2) ** 0.5
        angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
        middle = int(np.mean(ends[:, 0])), int(np.mean(ends[:, 1]))
        outline = cv2.ellipse2Poly(middle, (int(length / 2), 4), int(angle), 0, 360, 1)
        canvas = cv2.fillConvexPoly(canvas.copy(), outline, color)
    canvas = (canvas * 0.6).astype(np.uint8)
    for (x, y), color in zip(kps, COLORS):
        canvas = cv2.circle(canvas.copy(), (int(x), int(y)), 10, color, -1)
    return canvas.astype(np.uint8)


def keypoint_rows():
    rng = np.random.default_rng(7)
    face = np.array([[0.34, 0.46], [0.66, 0.46], [0.5, 0.64], [0.37, 0.82], [0.63, 0.82]])
    rows = []
    for i in range(600):
        width, height = (int(v) for v in rng.integers(8, 400, 2))
        if i % 10 == 0:
            width, height = [(1024, 1024), (1280, 960), (640, 832)][i // 10 % 3]
        side = max(width, height)
        if i % 3 == 0:  # a turned and scaled face
            turn, scale = rng.uniform(-3.2, 3.2), rng.uniform(0.02, 1.6) * side
            spin = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
            kps = (face - 0.5) @ spin * scale + rng.uniform(-0.2, 1.2, 2) * (width, height)
        elif i % 3 == 1:  # any five points, also outside
            kps = rng.uniform(-0.6, 1.6, (5, 2)) * (width, height)
        else:  # degenerate: whole numbers, coinciding points, points far away
            kps = rng.integers(-60, side + 60, (5, 2)).astype(float)
            kps[rng.integers(0, 5)] = kps[2]
            if i % 4 == 0:
                kps[rng.integers(0, 5)] *= rng.choice([-30, 25, 0])
        kps = kps.astype(np.float32)
        rows.append({"size": [width, height], "kps": numbers(kps), "sha": digest(draw_keypoints(width, height, kps))})
    return rows


# --- resizing and warping --------------------------------------------------------------------------


def resample_rows():
    rows = {"resize": [], "warp": [], "pillow": [], "lanczos": []}
    sizes = [(64, 48, 80, 60), (97, 61, 40, 33), (50, 80, 400, 640), (128, 128, 64, 64), (33, 200, 105, 640),
             (200, 120, 1, 1), (1, 7, 20, 30), (31, 31, 31, 90), (210, 140, 640, 426), (300, 40, 192, 25),
             # Pillow 13 takes the rows first in the first three of these
             (43, 192, 48, 80), (26, 64, 18, 45), (50, 40, 63, 10), (60, 47, 39, 24), (9, 11, 51, 27)]
    for i, (w, h, tw, th) in enumerate(sizes):
        picture = texture(w, h, i + 1)
        row = {"from": [w, h], "to": [tw, th], "seed": i + 1}
        rows["resize"].append(row | {"sha": digest(cv2.resize(picture, (tw, th)))})
        pil = Image.fromarray(picture)
        rows["pillow"].append(row | {"sha": digest(pil.resize((tw, th), Image.BILINEAR))})
        rows["lanczos"].append(row | {"sha": digest(pil.resize((tw, th), Image.LANCZOS))})
    from insightface.utils import face_align

    rng = np.random.default_rng(3)
    face = face_align.arcface_dst
    for i in range(24):
        w, h = (int(v) for v in rng.integers(60, 260, 2))
        turn, scale = rng.uniform(-3.2, 3.2), rng.uniform(0.2, 3.0)
        spin = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        kps = ((face - 56) @ spin * scale + rng.uniform(0.1, 0.9, 2) * (w, h) + rng.normal(0, 2, (5, 2))).astype(np.float32)
        side = [112, 128, 224, 256][i % 4]
        picture = texture(w, h, 100 + i)
        matrix = face_align.estimate_norm(kps, side)
        rows["warp"].append({
            "from": [w, h], "seed": 100 + i, "side": side, "kps": numbers(kps),
            "matrix": [float(v) for v in matrix.ravel()],
            "sha": digest(cv2.warpAffine(picture, matrix, (side, side), borderValue=0.0)),
            "aligned": digest(face_align.norm_crop(picture, kps, side)),
        })
    return rows


def working_size_rows():
    """InstantID's two-step resize: shorter side to 1024, longer to 1280, both to multiples of 64."""
    rows = []
    for i, (w, h) in enumerate([(100, 100), (123, 77), (60, 91), (300, 200), (45, 33), (90, 200)]):
        picture = Image.fromarray(texture(w, h, 50 + i))
        a = 256 / min(w, h)
        w1, h1 = round(a * w), round(a * h)
        b = 320 / max(w1, h1)
        fit = round(b * w1), round(b * h1)
        whole = fit[0] // 16 * 16, fit[1] // 16 * 16
        picture = picture.resize(fit, Image.BILINEAR).resize(whole, Image.BILINEAR)
        rows.append({"from": [w, h], "seed": 50 + i, "to": whole, "sha": digest(picture)})
    return rows


# --- photos ----------------------------------------------------------------------------------------


def photo_rows():
    """One small picture in many forms, with the pixels Pillow reads from each."""
    folder = OUT / "photos"
    folder.mkdir(exist_ok=True)
    base = Image.fromarray(skimage.data.astronaut()).crop((170, 60, 290, 220)).resize((60, 80), Image.LANCZOS)
    alpha = base.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(base.size))
    sixteen = np.asarray(base).astype(np.uint16) * 257
    sixteen[::2] -= np.minimum(sixteen[::2], 90)
    files = {}

    def save(name, picture, **options):
        buffer = io.BytesIO()
        picture.save(buffer, **options)
        files[name] = buffer.getvalue()

    save("rgb.png", base, format="PNG")
    save("alpha.png", alpha, format="PNG")
    save("grey.png", base.convert("L"), format="PNG")
    save("grey_alpha.png", alpha.convert("LA"), format="PNG")
    save("palette.png", base.quantize(32), format="PNG")
    save("bits.png", base.convert("1"), format="PNG")
    save("rgb.webp", base, format="WEBP", lossless=True)
    save("lossy.webp", base, format="WEBP", quality=80)
    save("rgb.bmp", base, format="BMP")
    save("palette.gif", base.quantize(32), format="GIF")
    save("rgb.jpg", base, format="JPEG", quality=92)
    save("progressive.jpg", base, format="JPEG", quality=92, progressive=True)
    save("grey.jpg", base.convert("L"), format="JPEG", quality=92)
    save("cmyk.jpg", base.convert("CMYK"), format="JPEG", quality=95)
    files["cmyk_unmarked.jpg"] = files["cmyk.jpg"].replace(b"Adobe", b"Other")
    # Inks as Photoshop writes them, luma and chroma beside black, which Pillow reads and does not write.
    inks = np.ascontiguousarray(255 - np.asarray(base.crop((0, 0, 53, 77)).convert("CMYK")))
    for subsampling in ("444", "422", "420"):
        files[f"ycck{subsampling}.jpg"] = simplejpeg.encode_jpeg(inks, 85, "CMYK", subsampling)
    for subsampling in (0, 1, 2):
        save(f"chroma{subsampling}.jpg", base.crop((0, 0, 53, 77)), format="JPEG", quality=85, subsampling=subsampling)
    odd = np.ascontiguousarray(np.asarray(base.crop((0, 0, 53, 77))))
    for subsampling in ("440", "411"):
        files[f"chroma{subsampling}.jpg"] = simplejpeg.encode_jpeg(odd, 85, "RGB", subsampling)
    save("kept_rgb.jpg", base, format="JPEG", quality=92, keep_rgb=True)
    save("restarts.jpg", base, format="JPEG", quality=92, restart_marker_blocks=3, optimize=True)
    save("animated.gif", base.quantize(16), format="GIF", save_all=True, append_images=[ImageOps.invert(base).quantize(16)])
    save("animated.webp", base, format="WEBP", save_all=True, append_images=[ImageOps.invert(base)], lossless=True)
    save("animated.png", base, format="PNG", save_all=True, append_images=[ImageOps.invert(base)])
    ok, encoded = cv2.imencode(".png", cv2.cvtColor(sixteen, cv2.COLOR_RGB2BGR))
    files["sixteen.png"] = encoded.tobytes()
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        exif.get_ifd(0x8825)[1] = "N"
        save(f"turn{turn}.jpg", base, format="JPEG", quality=92, exif=exif)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("turn6.png", base, format="PNG", exif=exif)
    rows = []
    for name, data in files.items():
        (folder / name).write_bytes(data)
        pixels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        rows.append({"file": name, "size": [pixels.shape[1], pixels.shape[0]], "sha": digest(pixels)})
    dump("photos.json", rows)


# --- networks --------------------------------------------------------------------------------------


class Detector(nn.Module):
    """A few convolutions with SCRFD's heads: scores, distances, keypoint offsets a stride."""

    def __init__(self, width, levels, anchors, keypoints, batched, upsample):
        super().__init__()
        self.levels, self.anchors, self.keypoints, self.batched, self.upsample = levels, anchors, keypoints, batched, upsample
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1, groups=width), nn.PReLU(width), nn.MaxPool2d(3, 2, 1))
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()) for _ in range(levels - 1))
        self.heads = nn.ModuleList(nn.Conv2d(width, anchors * (15 if keypoints else 5), 3, 1, 1) for _ in range(levels))

    def forward(self, x):
        x = self.stem(x)
        features = [x]
        for layer in self.down:
            features.append(layer(features[-1]))
        if self.upsample:
            for i in range(len(features) - 1, 0, -1):
                # By factor, or by the other's size, which exports as a chain of Shape, Gather and Concat.
                how = {"scale_factor": 2.0} if self.upsample == "factor" else {"size": features[i - 1].shape[2:]}
                features[i - 1] = features[i - 1] + nn.functional.interpolate(features[i], mode="nearest", **how)
        groups = [[], [], []]
        a = self.anchors
        for feature, head in zip(features, self.heads):
            y = head(feature)
            parts = [(y[:, :a], 1), (y[:, a:5 * a], 4)] + ([(y[:, 5 * a:], 10)] if self.keypoints else [])
            for group, (part, each) in zip(groups, parts):
                part = part.permute(0, 2, 3, 1)
                part = part.reshape(x.shape[0], -1, each) if self.batched else part.reshape(-1, each)
                group.append(part.sigmoid() if each == 1 else part)
        return tuple(groups[0] + groups[1] + groups[2])


class Recogniser(nn.Module):
    def __init__(self, width, side, size, norm):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width),
            nn.Conv2d(width, width, 3, 2, 1), nn.PReLU(width), nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.BatchNorm2d(2 * width), nn.PReLU(2 * width), nn.Conv2d(2 * width, 2 * width, 3, 2, 1), nn.Conv2d(2 * width, 3, 3, 2, 1))
        self.flat = nn.Flatten()
        self.fc = nn.Linear(3 * 4 ** 2, size)
        self.norm = nn.BatchNorm1d(size) if norm else nn.Identity()

    def forward(self, x):
        return self.norm(self.fc(self.flat(self.body(x))))


def randomise(module, seed):
    torch.manual_seed(seed)
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)):
            nn.init.normal_(m.weight, 1, 0.1), nn.init.normal_(m.bias, 0, 0.2)
            nn.init.normal_(m.running_mean, 0, 0.2), nn.init.uniform_(m.running_var, 0.6, 1.4)
        elif isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(m.weight)
    return module.eval()


def export(module, path, side, names, dynamic, opset):
    axes = {"input.1": {2: "?", 3: "?"}} if dynamic else None
    torch.onnx.export(module, torch.zeros(1, 3, side, side), str(path), input_names=["input.1"], output_names=names,
                      opset_version=opset, dynamic_axes=axes, dynamo=False, do_constant_folding=True)


def tune(detector, blob, wanted):
    """Shifts each head's score so that a few anchors pass, and gives faces of sensible size."""
    a = detector.anchors
    with torch.no_grad():
        for i, head in enumerate(detector.heads):
            head.weight[:a] *= 3
            head.weight[a:] *= 0.25
            for anchor in range(a):
                s = head.bias[a + anchor * 4: a + anchor * 4 + 4]
                s[:] = 2.5 + anchor
            if detector.keypoints:
                head.weight[5 * a:] *= 0.3
                points = torch.tensor([[-1, -1.2], [1, -1.2], [0, 0], [-0.8, 1], [0.8, 1]]).ravel() * 1.2
                head.bias[5 * a:] = points.repeat(a)
        outputs = detector(blob)
        for i, head in enumerate(detector.heads):
            scores = torch.logit(outputs[i].reshape(-1).double().clamp(1e-9, 1 - 1e-9)).sort(descending=True).values
            # Halfway in the widest gap between neighbours, so that no score lies at the threshold.
            gaps = scores[1:2 * wanted] - scores[2:2 * wanted + 1]
            at = int(gaps.argmax()) + 1
            head.bias[:a] -= float(scores[at] + scores[at + 1]) / 2


def detect_blob(picture, side):
    h, w = picture.shape[:2]
    scale = side / max(h, w)
    canvas = np.zeros((side, side, 3), np.uint8)
    small = cv2.resize(picture, (int(w * scale), int(h * scale)))
    canvas[: small.shape[0], : small.shape[1]] = small
    return torch.from_numpy(((canvas.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None].copy())


def networks():
    from insightface.app import FaceAnalysis

    photo = Image.fromarray(skimage.data.astronaut())
    photo.save(OUT / "astronaut.jpg", quality=88)
    small = photo.crop((130, 0, 330, 240))
    small.save(OUT / "face.png", optimize=True)
    pictures = {"face.png": np.asarray(small), "astronaut.jpg": np.asarray(Image.open(OUT / "astronaut.jpg"))}
    variants = {
        # name: detector (width, levels, anchors, keypoints, batched, upsample), fixed side, opset; recogniser
        "plain": ((6, 3, 2, True, False, "factor"), None, 11, (6, 112, 512, True), None),
        "batched": ((4, 3, 2, True, True, "size"), None, 17, (4, 128, 512, False), None),
        "five": ((4, 5, 1, True, False, None), None, 12, (4, 112, 256, False), None),
        "fixed": ((6, 3, 2, True, False, "size"), 320, 13, (4, 112, 512, False), "mxnet"),
    }
    rows = []
    for i, (name, (shape, fixed, opset, recogniser, style)) in enumerate(variants.items()):
        folder = OUT / "nets" / name
        if name == "batched":  # as the archive unpacks
            folder = folder / "antelopev2"
        folder.mkdir(parents=True, exist_ok=True)
        detector = randomise(Detector(*shape), 10 + i)
        side = fixed or 640
        tune(detector, detect_blob(pictures["face.png"], side), 6)
        outputs = [f"out{440 + n}" for n in range(shape[1] * (3 if shape[3] else 2))]
        export(detector, folder / ("scrfd_10g_bnkps.onnx" if name != "five" else "a_detector.onnx"), side, outputs, fixed is None, opset)
        if name == "plain":
            declare_outputs(folder / "scrfd_10g_bnkps.onnx", 640)
        width, aligned, size, norm = recogniser
        target = folder / ("glintr100.onnx" if name != "five" else "w600k.onnx")
        export(randomise(Recogniser(width, aligned, size, norm), 30 + i), target, aligned, ["out683"], False, opset)
        if style == "mxnet":
            like_mxnet(target)
        app = FaceAnalysis(name=str(folder), providers=["CPUExecutionProvider"])
        app.prepare(ctx_id=-1, det_size=(640, 640))
        for file, picture in pictures.items():
            faces = app.get(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            assert 3 <= len(faces) < 200, (name, file, len(faces))
            rows.append({"net": name, "photo": file, "faces": [
                {"bbox": numbers(f.bbox), "kps": numbers(f.kps), "det_score": float(f.det_score),
                 "embedding": numbers(f.embedding) if k < 3 else None,
                 "sha": None} for k, f in enumerate(faces)]})
            print(name, file, len(faces), [round(float(f.det_score), 3) for f in faces[:4]], file=sys.stderr)
        if name == "plain":
            rows.append(smaller_side(app, pictures["face.png"]))
    # Without keypoints, only boxes can be compared.
    folder = OUT / "nets" / "boxes"
    folder.mkdir(parents=True, exist_ok=True)
    detector = randomise(Detector(4, 3, 2, False, False, None), 20)
    tune(detector, detect_blob(pictures["face.png"], 640), 6)
    export(detector, folder / "det.onnx", 640, [f"out{n}" for n in range(6)], True, 11)
    from insightface.model_zoo.scrfd import SCRFD

    model = SCRFD(str(folder / "det.onnx"))
    model.prepare(-1, input_size=(640, 640), det_thresh=0.5)
    boxes, _ = model.detect(cv2.cvtColor(pictures["face.png"], cv2.COLOR_RGB2BGR), input_size=(640, 640))
    rows.append({"net": "boxes", "photo": "face.png", "faces": [{"bbox": numbers(b[:4]), "kps": None, "det_score": float(b[4]), "embedding": None} for b in boxes]})
    dump("faces.json", rows)


def declare_outputs(path, side):
    """Fixed output shapes beside a free input size, as the published detector declares them."""
    model = onnx.load(path)
    for i, output in enumerate(model.graph.output):
        stride = (8, 16, 32)[i % 3]
        shape = ((side // stride) ** 2 * 2, (1, 4, 10)[i // 3])
        for dim, value in zip(output.type.tensor_type.shape.dim, shape):
            dim.ClearField("dim_param")
            dim.dim_value = value
    onnx.save(model, path)


def smaller_side(app, picture):
    """A faded picture in which nothing is found at 640 pixels, but at a smaller size."""
    rng = np.random.default_rng(1)
    for _ in range(3000):
        width, height = (int(v) for v in rng.integers(40, 200, 2))
        x, y = int(rng.integers(0, picture.shape[1] - width + 1)), int(rng.integers(0, picture.shape[0] - height + 1))
        divisor, base = int(rng.integers(1, 6)), int(rng.integers(0, 200))
        faded = np.minimum(picture[y:y + height, x:x + width].astype(int) // divisor + base, 255).astype(np.uint8)
        bgr = cv2.cvtColor(faded, cv2.COLOR_RGB2BGR)
        for side in range(640, 128, -64):
            boxes, kps = app.det_model.detect(bgr, input_size=(side, side))
            if len(boxes):
                break
        if len(boxes) and side < 640:
            return {"net": "plain", "photo": "face.png", "crop": [x, y, width, height], "fade": [divisor, base], "side": side, "faces": [
                {"bbox": numbers(b[:4]), "kps": numbers(k), "det_score": float(b[4])} for b, k in zip(boxes, kps)]}
    raise SystemExit("no faded picture is found at a smaller size only")


def hostile_networks():
    """Files that pass for a recogniser and must be refused, each with a word of the refusal."""
    folder = OUT / "hostile"
    folder.mkdir(exist_ok=True)
    rows = {}

    def save(name, word, nodes, initializers=(), opset=13, domains=()):
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 112, 112])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], list(initializers))
        imports = [helper.make_opsetid("", opset)] + [helper.make_opsetid(d, 1) for d in domains]
        (folder / f"{name}.onnx").write_bytes(helper.make_model(graph, opset_imports=imports).SerializeToString())
        rows[f"{name}.onnx"] = word

    def array(name, values, kind=np.int64):
        return numpy_helper.from_array(np.array(values, kind), name)

    def external(location):
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in {"location": location, "offset": "0", "length": "16"}.items():
            tensor.external_data.add(key=key, value=value)
        return tensor

    add = helper.make_node("Add", ["x", "w"], ["y"])
    save("outside", "another file", [add], [external("../../../../etc/passwd")])
    save("beside", "another file", [add], [external("weights.data")])
    hidden = helper.make_node("Constant", [], ["w"], value=external("weights.data"))
    save("hidden", "another file", [hidden, add])
    save("custom", "custom operator", [helper.make_node("Run", ["x"], ["y"], domain="evil")], domains=["evil"])
    save("unknown", "Loop", [helper.make_node("Loop", ["x"], ["y"])])

    def field(number, payload):
        size, head = len(payload), bytes([number << 3 | 2])
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return head + bytes([size]) + payload

    # Messages in messages, deeper than any stack: graph > node > attribute > graph, and a type of types.
    graph, kind = b"", b""
    for _ in range(2000):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
        kind = field(4, field(1, kind))
    x = field(11, helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 112, 112]).SerializeToString())
    y = field(12, helper.make_tensor_value_info("y", TensorProto.FLOAT, None).SerializeToString())
    for name, word, body in (("nested", "nests a graph", graph + x + y), ("deep_type", "not tensors", x + y + field(13, field(1, b"v") + field(2, kind)))):
        (folder / f"{name}.onnx").write_bytes(field(7, body))
        rows[f"{name}.onnx"] = word
    save("resize", "larger than any", [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest")], [array("s", [1, 1, 1e5, 1e5], np.float32)])
    save("resize_sizes", "larger than any", [helper.make_node("Resize", ["x", "", "", "s"], ["y"], mode="nearest")], [array("s", [1, 3, 10**6, 10**6])])
    save("upsample", "larger than any", [helper.make_node("Upsample", ["x", "s"], ["y"])], [array("s", [1, 1, 1e5, 1e5], np.float32)], opset=9)
    save("pad", "larger than any", [helper.make_node("Pad", ["x", "p"], ["y"])], [array("p", [0, 0, 0, 0, 0, 0, 10**6, 10**6])])
    save("conv_pad", "larger than any", [helper.make_node("Conv", ["x", "w"], ["y"], pads=[10**6] * 4)], [array("w", np.ones((1, 3, 1, 1)), np.float32)])
    save("fill", "larger than any", [helper.make_node("ConstantOfShape", ["s"], ["y"])], [array("s", [10**6, 10**6])])
    save("expand", "larger than any", [helper.make_node("Expand", ["x", "s"], ["y"])], [array("s", [10**6, 3, 112, 112])])
    save("outer", "larger than any", [
        helper.make_node("Reshape", ["x", "a"], ["row"]), helper.make_node("Reshape", ["x", "b"], ["column"]),
        helper.make_node("Add", ["row", "column"], ["y"])], [array("a", [1, -1]), array("b", [-1, 1])])
    save("slow", "multiplications", [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[50] * 4), helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("Conv", ["a", "big"], ["y"], pads=[100] * 4)],
        [array("w", np.ones((8, 3, 1, 1)), np.float32), array("s", [1000, 8, 100, 100])])
    save("tile", "none that face networks use", [helper.make_node("Tile", ["x", "s"], ["y"])], [array("s", [1, 1, 10**5, 10**5])])
    save("missing_weight", "", [helper.make_node("Conv", ["x", "w"], ["y"])])
    save("zero", "is zero", [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Slice", ["f", "a", "b", "c"], ["g"]),
                             helper.make_node("Mul", ["g", "z"], ["y"])],
         [array("a", [0]), array("b", [512]), array("c", [1]), array("z", 0, np.float32)])
    save("nan", "not finite", [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Slice", ["f", "a", "b", "c"], ["g"]),
                               helper.make_node("Mul", ["g", "z"], ["y"])],
         [array("a", [0]), array("b", [512]), array("c", [1]), array("z", np.nan, np.float32)])
    dump("hostile.json", rows)


def like_mxnet(path):
    """Puts the subtraction and the multiplication in front that insightface knows MXNet exports by."""
    model = onnx.load(path)
    graph = model.graph
    first = graph.node[0]
    graph.initializer.append(numpy_helper.from_array(np.array(127.5, np.float32), "mean"))
    graph.initializer.append(numpy_helper.from_array(np.array(1 / 128, np.float32), "factor"))
    name = first.input[0]
    first.input[0] = "scaled"
    graph.node.insert(0, helper.make_node("Sub", [name, "mean"], ["centred"], name="_minusscalar0"))
    graph.node.insert(1, helper.make_node("Mul", ["centred", "factor"], ["scaled"], name="_mulscalar0"))
    onnx.save(model, path)


def identities():
    """An identity as ReActor writes it."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(5)
    save_file({
        "bbox": np.array([10, 20, 110, 150], np.float32), "kps": rng.uniform(20, 100, (5, 2)).astype(np.float32),
        "det_score": np.array(0.83, np.float32), "landmark_3d_68": np.zeros((68, 3), np.float32),
        "pose": np.zeros(3, np.float32), "landmark_2d_106": np.zeros((106, 2), np.float32),
        "embedding": rng.normal(0, 1, 512).astype(np.float32), "gender": np.array(0, np.int64), "age": np.array(31, np.int64),
    }, str(OUT / "reactor.safetensors"))


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    dump("keypoints.json", keypoint_rows())
    dump("resample.json", resample_rows() | {"working": working_size_rows()})
    photo_rows()
    identities()
    hostile_networks()
    networks()


if __name__ == "__main__":
    main()
