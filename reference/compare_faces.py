"""Random SCRFD and ArcFace graphs, through insightface with onnxruntime and through `sameface faces`.

    python compare_faces.py --sameface ../target/release/sameface --graphs 5 --seed 0 PHOTO...

Prints, for each photo and pair of graphs, how many faces both find, the largest distance of boxes and keypoints in
pixels, and the smallest cosine of the embeddings. A photo passes when all faces pair up within 0.5 px and 0.9999.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
from insightface.app import FaceAnalysis
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """A network under construction: nodes and initialisers, random but seeded."""

    def __init__(self, rng):
        self.rng, self.nodes, self.weights, self.count = rng, [], [], 0

    def constant(self, array, name="w"):
        self.count += 1
        self.weights.append(numpy_helper.from_array(np.asarray(array), f"{name}{self.count}"))
        return self.weights[-1].name

    def node(self, kind, inputs, output=None, **attributes):
        self.count += 1
        output = output or f"{kind.lower()}{self.count}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}_{self.count}", **attributes))
        return output

    def conv(self, x, into, out, size=3, stride=1, gain=1.4, bias=0.0, groups=1):
        fan_in = into // groups * size * size
        w = self.rng.standard_normal((out, into // groups, size, size)) * gain / np.sqrt(fan_in)
        b = np.broadcast_to(bias, out) + 0.05 * self.rng.standard_normal(out)
        inputs = [x, self.constant(w.astype(np.float32)), self.constant(b.astype(np.float32))]
        pads = [size // 2] * 4
        return self.node("Conv", inputs, kernel_shape=[size] * 2, strides=[stride] * 2, pads=pads, group=groups)

    def norm(self, x, channels):
        values = [1 + 0.2 * self.rng.standard_normal(channels), 0.1 * self.rng.standard_normal(channels)]
        values += [0.1 * self.rng.standard_normal(channels), self.rng.uniform(0.5, 1.5, channels)]
        return self.node("BatchNormalization", [x, *(self.constant(v.astype(np.float32)) for v in values)], epsilon=1e-5)

    def prelu(self, x, channels):
        slope = self.rng.uniform(0.0, 0.4, (channels, 1, 1)).astype(np.float32)
        return self.node("PRelu", [x, self.constant(slope)])

    def save(self, path, input_shape, outputs, opset):
        inputs = [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, input_shape)]
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs]
        graph = helper.make_graph(self.nodes, "graph", inputs, infos, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def detector(path, seed, photo):
    """An SCRFD with keypoints: strides 8, 16, 32 with two anchors each, as in antelopev2. Its threshold is set so
    that about 0.1 % of the anchors fire on the photo."""
    blob = cv2.dnn.blobFromImage(cv2.imread(str(photo)), 1 / 128, (640, 640), (127.5,) * 3, swapRB=True)
    build_detector(path, seed, 0.0)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores = np.concatenate([s.ravel() for s in session.run(["score_8", "score_16", "score_32"], {"input.1": blob})])
    quantile = float(np.quantile(scores, 0.999))
    build_detector(path, seed, -math.log(quantile / (1 - quantile)))


def build_detector(path, seed, bias):
    rng = np.random.default_rng(seed)
    g = Graph(rng)
    width = int(rng.choice([4, 8, 12]))
    levels, channels = [], 3
    x = "input.1"
    for level in range(5):
        x = g.conv(x, channels, width, stride=2)
        x = g.norm(x, width) if rng.random() < 0.5 else x
        x = g.node("Relu", [x])
        channels = width
        if level >= 2:
            levels.append(x)
    if rng.random() < 0.5:  # a top-down path with resampling, as the real ones have
        up = g.node("Resize", [levels[2], g.constant(np.float32([])), g.constant(np.float32([1, 1, 2, 2]))], mode="nearest",
                    coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
        levels[1] = g.node("Add", [levels[1], up])
    scores, boxes, points = [], [], []
    spread = rng.uniform(0.3, 1.5)
    batched = rng.random() < 0.3  # some exports keep the batch: [1, n, k] instead of [n, k]
    for i, (stride, feature) in enumerate(zip((8, 16, 32), levels)):
        for kind, width_, list_ in (("score", 1, scores), ("bbox", 4, boxes), ("kps", 10, points)):
            if kind == "score":
                y = g.conv(feature, width, 2, gain=1.0)
                y = g.node("Sigmoid", [g.node("Add", [y, g.constant(np.float32(bias))])])
            elif kind == "bbox":
                y = g.conv(feature, width, 8, gain=0.5, bias=rng.uniform(1.5, 4.0, 8))
                y = g.node("Mul", [y, g.constant(np.float32(spread))])
            else:
                eyes = np.array([-1, -1, 1, -1, 0, 0, -0.8, 1, 0.8, 1]) * rng.uniform(1, 2.5)
                y = g.conv(feature, width, 20, gain=0.5, bias=np.tile(eyes, 2))
            y = g.node("Transpose", [y], perm=[0, 2, 3, 1])
            name = f"{kind}_{stride}"
            shape = [1, -1, width_] if batched else [-1, width_]
            g.node("Reshape", [y, g.constant(np.int64(shape))], output=name)
            list_.append((name, ["n" + name if n < 0 else n for n in shape]))
    g.save(path, [1, 3, "h", "w"], scores + boxes + points, opset=int(rng.choice([11, 13, 17])))


def recogniser(path, seed):
    """An ArcFace: 112x112 -> 512, convolutions with PRelu, batch norm, a matrix product at the end."""
    rng = np.random.default_rng(seed)
    g = Graph(rng)
    x, channels, size = "input.1", 3, 112
    own_scale = rng.random() < 0.3
    if own_scale:  # graphs from MXNet scale inside; insightface tells them by these names
        x = g.node("Sub", [x, g.constant(np.float32(127.5))])
        x = g.node("Mul", [x, g.constant(np.float32(1 / 128))])
    for _ in range(4):
        width = int(rng.choice([8, 12, 16]))
        y = g.conv(x, channels, width, stride=2)
        y = g.prelu(g.norm(y, width), width)
        z = g.conv(y, width, width, groups=int(rng.choice([1, width])))
        x = g.node("Add", [y, z])
        channels, size = width, size // 2
    x = g.norm(x, channels)
    x = g.node("Flatten", [x], axis=1)
    inner = channels * size * size
    w = (rng.standard_normal((512, inner)) * 2 / np.sqrt(inner)).astype(np.float32)
    b = (0.1 * rng.standard_normal(512)).astype(np.float32)
    x = g.node("Gemm", [x, g.constant(w), g.constant(b)], transB=1)
    if rng.random() < 0.5:
        values = [np.ones(512), np.zeros(512), 0.1 * rng.standard_normal(512), np.ones(512)]
        g.node("BatchNormalization", [x, *(g.constant(v.astype(np.float32)) for v in values)], output="embedding")
    else:
        g.node("Identity", [x], output="embedding")
    g.save(path, ["batch", 3, 112, 112], [("embedding", ["batch", 512])], opset=int(rng.choice([11, 13, 17])))


def compare(ours, theirs):
    """Pairs the faces by their boxes: (missing, extra, box px, keypoint px, cosine, score)."""
    left = list(ours)
    missing, box, points, cosine, score = 0, 0.0, 0.0, 1.0, 0.0
    for face in theirs:
        distance = lambda f: float(np.abs(np.array(f["bbox"]) - face.bbox).max())
        best = min(left, key=distance, default=None)
        if best is None or distance(best) > 5:
            missing += 1
            continue
        left.remove(best)
        box = max(box, distance(best))
        points = max(points, float(np.abs(np.array(best["kps"]) - face.kps).max()))
        a, b = np.array(best["embedding"]), face.embedding
        cosine = min(cosine, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        score = max(score, abs(best["det_score"] - float(face.det_score)))
    return missing, len(left), box, points, cosine, score


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("photos", nargs="+", type=Path)
    arguments.add_argument("--sameface", type=Path, help="the binary; without it the reference runs alone")
    arguments.add_argument("--graphs", type=int, default=3)
    arguments.add_argument("--seed", type=int, default=0)
    args = arguments.parse_args()
    failed = 0
    for seed in range(args.seed, args.seed + args.graphs):
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root) / "models" / "antelopev2"
            folder.mkdir(parents=True)
            detector(folder / "scrfd_10g_bnkps.onnx", seed, args.photos[0])
            recogniser(folder / "glintr100.onnx", seed + 10_000)
            app = FaceAnalysis(name="antelopev2", root=root, providers=["CPUExecutionProvider"])
            app.prepare(ctx_id=-1, det_size=(640, 640))
            given = folder
            if rng.random() < 0.3:  # the published archive unpacks to a folder within the folder
                inner = Path(root) / "nested" / "antelopev2"
                inner.parent.mkdir()
                shutil.copytree(folder, inner)
                given = inner.parent
            for photo in args.photos:
                theirs = app.get(cv2.imread(str(photo)))
                line = f"graphs {seed}, {photo.name}: {len(theirs)} faces"
                if args.sameface:
                    command = [args.sameface, "faces", photo, "--face-models", given, "--json"]
                    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
                    if done.returncode and theirs:
                        print(f"FAIL {line}; exit {done.returncode}: {done.stderr.strip()[-300:]}")
                        failed += 1
                        continue
                    ours = json.loads(done.stdout)["faces"] if not done.returncode else []
                    missing, extra, box, points, cosine, score = compare(ours, theirs)
                    # With no face at 640 smaller detection sizes are tried, which insightface does not do.
                    extra = 0 if not theirs else extra
                    passed = not missing and not extra and box <= 0.5 and points <= 0.5 and cosine >= 0.9999
                    failed += not passed
                    line = (
                        f"{'ok  ' if passed else 'FAIL'} {line}; missing {missing}, extra {extra}, box {box:.4f} px, "
                        f"keypoints {points:.4f} px, cosine {cosine:.7f}, score {score:.1e}"
                    )
                print(line, flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
