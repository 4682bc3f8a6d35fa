"""Writes models/mini from the checkpoints in WORK: the real layouts, 16-bit weights.

`python export.py OUT`
"""
import json
import os
import sys
import numpy as np
import torch
from torch import nn
import base
import stack
import words
from data import ATTRIBUTES, WORK

torch.set_num_threads(1)


def state(name):
    return torch.load(os.path.join(WORK, name + ".pt"), map_location="cpu", weights_only=True)


def half_onnx(path):
    """Stores large weights in 16 bits, with a Cast to 32 before their use: plain operators, half the file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    model = onnx.load(path)
    graph = model.graph
    casts = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < 256:
            continue
        values = numpy_helper.to_array(tensor).astype(np.float16)
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(values, tensor.name + "_half"))
        casts.append(helper.make_node("Cast", [tensor.name + "_half"], [tensor.name], to=TensorProto.FLOAT, name="cast_" + tensor.name))
    # Behind the first nodes in file order would break the order of use; insightface looks only for Sub and Mul there.
    nodes = casts + list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    # Names of steps in between are long, and nobody reads them.
    kept = {t.name for t in [*graph.input, *graph.output]}
    short = {}
    name = lambda n: n if not n or n in kept else short.setdefault(n, f"t{len(short)}")
    for tensor in graph.initializer:
        tensor.name = name(tensor.name)
    for node in graph.node:
        node.name, node.doc_string = "", ""
        node.input[:] = [name(n) for n in node.input]
        node.output[:] = [name(n) for n in node.output]
    del graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, path)


class ScrfdGraph(nn.Module):
    """Nine outputs in SCRFD's order: scores, boxes and keypoints of strides 8, 16 and 32, without a batch dimension."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        scores, boxes, points = self.net(x)
        return tuple(v.reshape(-1, n) for group, n in ((scores, 1), (boxes, 4), (points, 10)) for v in group)


def export_onnx(module, example, path, inputs, outputs, dynamic):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    torch.onnx.export(module.eval(), (example,), path, input_names=inputs, output_names=outputs, dynamic_axes=dynamic, opset_version=17, dynamo=False)
    half_onnx(path)


def save_half(module, name, folder):
    module.load_state_dict(state(name))
    module.half().save_pretrained(folder, safe_serialization=True)


def main(out):
    dump = lambda path, value: json.dump(value, open(os.path.join(out, path), "w"), indent=2)
    os.makedirs(out, exist_ok=True)
    _, saved = base.vocabulary([])
    words.save(out, saved["vocabulary"], [tuple(m) for m in saved["merges"]])
    factor = json.load(open(os.path.join(WORK, "vae.json")))["scaling_factor"]
    vae = stack.vae()
    vae.register_to_config(scaling_factor=factor, force_upcast=False)
    save_half(vae, "vae", os.path.join(out, "vae"))
    unet = stack.unet()
    save_half(unet, "unet", os.path.join(out, "unet"))
    for module, name, folder in zip(stack.text_encoders(len(saved["vocabulary"])), ("text1", "text2"), ("text_encoder", "text_encoder_2")):
        save_half(module, name, os.path.join(out, folder))
    save_half(stack.identity_net(stack.unet()), "identitynet", os.path.join(out, "ControlNetModel"))
    torch.save({"image_proj": state("resampler"), "ip_adapter": state("adapter")}, os.path.join(out, "ip-adapter.bin"))
    os.makedirs(os.path.join(out, "scheduler"), exist_ok=True)
    dump("scheduler/scheduler_config.json", {
        "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.30.0", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "prediction_type": "v_prediction", "interpolation_type": "linear", "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "timestep_spacing": "leading", "use_karras_sigmas": False})
    dump("model_index.json", {
        "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.30.0", "force_zeros_for_empty_prompt": True, "add_watermarker": None,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"], "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]})

    def loaded(module, name):
        module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state(name).items()})
        return module.eval()

    detector = loaded(stack.Detector(), "detector")
    with torch.no_grad():
        # In 45 of 180 portraits of 60 people kept for such choices, stride 16 found a second face inside the one that
        # stride 32 had found, with a certainty of at most .875; true faces had at least .992. So it must be surer.
        detector.score[1].bias -= 2
    export_onnx(ScrfdGraph(detector), torch.zeros(1, 3, 320, 320), os.path.join(out, "faces", "scrfd.onnx"), ["input.1"],
                [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in (8, 16, 32)], {"input.1": {2: "height", 3: "width"}})
    export_onnx(loaded(stack.EncoderA(), "A"), torch.zeros(1, 3, 112, 112), os.path.join(out, "faces", "arcface.onnx"), ["input.1"], ["embedding"], {"input.1": {0: "batch"}, "embedding": {0: "batch"}})
    export_onnx(loaded(stack.JudgeB(), "B"), torch.zeros(1, 3, 112, 112), os.path.join(out, "judge", "identity.onnx"), ["input"], ["embedding"], {"input": {0: "batch"}, "embedding": {0: "batch"}})
    info = json.load(open(os.path.join(WORK, "test", "truth.json")))["attributes"]
    classes = [len(info[a]) for a in ATTRIBUTES]
    export_onnx(loaded(stack.Probe(classes), "probe"), torch.zeros(1, 3, 256, 256), os.path.join(out, "judge", "content.onnx"), ["input"], ["keypoints", "attributes"],
                {"input": {0: "batch"}, "keypoints": {0: "batch"}, "attributes": {0: "batch"}})
    dump("judge/judge.json", {"identity": {"crop": 112, "dim": 256, "range": [-1, 1], "order": "RGB"},
                              "content": {"size": 256, "range": [-1, 1], "order": "RGB", "keypoints": "5 x (x, y), as shares of the side", "attributes": {a: info[a] for a in ATTRIBUTES}}})
    for d, _, files in os.walk(out):
        for f in files:
            os.chmod(os.path.join(d, f), 0o644)
    total = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(out) for f in files)
    print(f"{out}: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main(sys.argv[1])
