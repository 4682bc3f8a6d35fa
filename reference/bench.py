#!/usr/bin/env python3
"""The peer of `sameface bench`: the same work in PyTorch with diffusers and transformers, on random weights.

  python reference/bench.py step --size 512 --dtype bf16
  python reference/bench.py vae --size 512 --dtype f32
  python reference/bench.py text --dtype f32

`step` is IdentityNet and SDXL's UNet with 16 identity tokens and guidance, `vae` a decode, `text` a prompt and a
negative one through both encoders. Prints one JSON line: the median in milliseconds, and TFLOP/s where they are counted.
Run it right after the project's own benchmark, on the same cores, and quote the ratio.
"""
import argparse
import json
import time

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

TOKENS = 16


class DecoupledAttention(torch.nn.Module):
    """Cross-attention over the text, plus, weighted, over the identity tokens at its end (arXiv:2308.06721)."""

    def __init__(self, width, context):
        super().__init__()
        self.k = torch.nn.Linear(context, width, bias=False)
        self.v = torch.nn.Linear(context, width, bias=False)

    def __call__(self, attn, x, encoder_hidden_states=None, attention_mask=None, temb=None):
        text, face = encoder_hidden_states[:, :-TOKENS], encoder_hidden_states[:, -TOKENS:]
        b, n, _ = x.shape
        heads = lambda y: y.view(b, -1, attn.heads, y.shape[-1] // attn.heads).transpose(1, 2)
        q = heads(attn.to_q(x))
        out = F.scaled_dot_product_attention(q, heads(attn.to_k(text)), heads(attn.to_v(text)))
        out = out + 0.8 * F.scaled_dot_product_attention(q, heads(self.k(face)), heads(self.v(face)))
        return attn.to_out[0](out.transpose(1, 2).reshape(b, n, -1))


def step(size):
    unet = UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2, cross_attention_dim=2048,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816).eval()
    net = ControlNetModel.from_unet(unet).to(torch.get_default_dtype()).eval()
    processors = {}
    for name in unet.attn_processors:
        module = unet.get_submodule(name.rsplit(".", 1)[0])
        is_self = name.endswith("attn1.processor")
        processors[name] = AttnProcessor2_0() if is_self else DecoupledAttention(module.inner_dim, 2048)
    unet.set_attn_processor(processors)
    latent, hint = torch.randn(2, 4, size // 8, size // 8), torch.rand(2, 3, size, size)
    text, face = torch.randn(2, 77, 2048) * 0.5, torch.randn(2, TOKENS, 2048) * 0.5
    sizes = torch.tensor([[size, size, 0, 0, size, size]] * 2, dtype=torch.get_default_dtype())
    added, t = {"text_embeds": torch.randn(2, 1280), "time_ids": sizes}, torch.tensor(500)

    def run():
        down, mid = net(latent, t, encoder_hidden_states=face, controlnet_cond=hint, conditioning_scale=0.8,
                        added_cond_kwargs=added, return_dict=False)
        unet(latent, t, encoder_hidden_states=torch.cat([text, face], 1), added_cond_kwargs=added, return_dict=False,
             down_block_additional_residuals=down, mid_block_additional_residual=mid)

    return run


def vae(size):
    net = AutoencoderKL(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2).eval()
    latent = torch.randn(1, 4, size // 8, size // 8)
    return lambda: net.decode(latent)


def text(_):
    first = CLIPTextModel(CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)).eval()
    second = CLIPTextModelWithProjection(CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
        projection_dim=1280)).eval()
    ids = torch.arange(2 * 77).view(2, 77)
    return lambda: (first(ids, output_hidden_states=True), second(ids, output_hidden_states=True))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["step", "vae", "text"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bf16", choices=["f32", "bf16", "f16"])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.set_default_dtype({"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[args.dtype])
    sync = torch.cuda.synchronize if args.device.startswith("cuda") else (lambda: None)
    with torch.device(args.device), torch.inference_mode():
        run = {"step": step, "vae": vae, "text": text}[args.what](args.size)
        with FlopCounterMode(display=False) as counter:
            run()
        times = []
        for _ in range(args.runs):
            sync()
            begin = time.perf_counter()
            run()
            sync()
            times.append(time.perf_counter() - begin)
    ms, tflop = sorted(times)[len(times) // 2] * 1e3, counter.get_total_flops() / 1e12
    print(json.dumps({"what": args.what, "torch": torch.__version__, "device": args.device, "dtype": args.dtype,
                      "size": args.size, "ms": ms, "tflop": tflop, "tflop_per_s": tflop / ms * 1e3}))


if __name__ == "__main__":
    main()
