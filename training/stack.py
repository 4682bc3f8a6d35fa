"""The networks of the miniature stack, in the layouts of the real ones.

Sizes are chosen so that everything together stays under 50 MB in 16 bits.
"""
import math
import torch
import torch.nn.functional as F
from torch import nn

TEXT1, TEXT2 = 96, 128            # widths of the two text encoders
CONTEXT = TEXT1 + TEXT2           # what cross-attention sees
TOKENS = 16                       # identity tokens
EMBEDDING = 512


def text_encoders(vocabulary):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    common = dict(vocab_size=vocabulary, num_hidden_layers=3, max_position_embeddings=77,
                  bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1)
    one = CLIPTextConfig(hidden_size=TEXT1, intermediate_size=4 * TEXT1, num_attention_heads=3, projection_dim=TEXT1,
                         hidden_act="quick_gelu", pad_token_id=vocabulary - 1, **common)
    two = CLIPTextConfig(hidden_size=TEXT2, intermediate_size=4 * TEXT2, num_attention_heads=4, projection_dim=TEXT2,
                         hidden_act="gelu", pad_token_id=0, **common)
    return CLIPTextModel(one), CLIPTextModelWithProjection(two)


def encode_text(one, two, ids1, ids2):
    """Hidden states before the last layer of both encoders, side by side, and the second's projection: as SDXL."""
    a = one(ids1, output_hidden_states=True)
    b = two(ids2, output_hidden_states=True)
    return torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1), b.text_embeds


def vae():
    from diffusers import AutoencoderKL
    return AutoencoderKL(in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4,
                         up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(32, 64, 80, 96), layers_per_block=1,
                         latent_channels=4, norm_num_groups=8, sample_size=256, scaling_factor=1.0)


def unet():
    from diffusers import UNet2DConditionModel
    return UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(64, 96, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1), attention_head_dim=(2, 3, 5), cross_attention_dim=CONTEXT,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=TEXT2 + 6 * 32)


def identity_net(base):
    from diffusers import ControlNetModel
    return ControlNetModel.from_unet(base, conditioning_embedding_out_channels=(16, 32, 48, 64))


class PerceiverAttention(nn.Module):
    def __init__(self, dim, dim_head=64, heads=3):
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x, latents):
        x, latents = self.norm1(x), self.norm2(latents)
        b, n, _ = latents.shape
        q = self.to_q(latents)
        k, v = self.to_kv(torch.cat([x, latents], 1)).chunk(2, -1)
        q, k, v = (t.reshape(b, t.shape[1], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).reshape(b, n, -1))


class Resampler(nn.Module):
    """512 numbers of a face -> 16 tokens (IP-Adapter's Resampler: names and shapes as in its checkpoints)."""

    def __init__(self, dim=160, depth=2, heads=3, output=CONTEXT, ff_mult=4):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, TOKENS, dim) / dim**0.5)
        self.proj_in = nn.Linear(EMBEDDING, dim)
        self.proj_out = nn.Linear(dim, output)
        self.norm_out = nn.LayerNorm(output)
        feed = lambda: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim * ff_mult, bias=False), nn.GELU(),
                                     nn.Linear(dim * ff_mult, dim, bias=False))
        self.layers = nn.ModuleList([nn.ModuleList([PerceiverAttention(dim, 64, heads), feed()]) for _ in range(depth)])

    def forward(self, x):
        latents = self.latents.expand(x.shape[0], -1, -1)
        x = self.proj_in(x)
        for attention, feed in self.layers:
            latents = attention(x, latents) + latents
            latents = feed(latents) + latents
        return self.norm_out(self.proj_out(latents))


class PlainProcessor(nn.Module):
    def forward(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        return finish(attn, attend(attn, attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)))


class IdentityProcessor(nn.Module):
    """Text cross-attention with a second branch for the identity tokens, which come last in the context."""

    def __init__(self, hidden, context=CONTEXT, scale=1.0):
        super().__init__()
        self.scale = scale
        self.to_k_ip = nn.Linear(context, hidden, bias=False)
        self.to_v_ip = nn.Linear(context, hidden, bias=False)

    def forward(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
        text, face = encoder_hidden_states[:, :-TOKENS], encoder_hidden_states[:, -TOKENS:]
        q = attn.to_q(hidden_states)
        out = attend(attn, q, attn.to_k(text), attn.to_v(text))
        if self.scale != 0:
            out = out + self.scale * attend(attn, q, self.to_k_ip(face), self.to_v_ip(face))
        return finish(attn, out)


def attend(attn, q, k, v):
    b, n, c = q.shape
    q, k, v = (t.reshape(b, t.shape[1], attn.heads, c // attn.heads).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)


def finish(attn, x):
    return attn.to_out[1](attn.to_out[0](x))


def add_identity(net):
    """Gives every text cross-attention its identity branch; returns the module list whose keys IP-Adapter files use."""
    processors = {}
    for name in net.attn_processors:
        cross = name.endswith("attn2.processor")
        module = net.get_submodule(name.removesuffix(".processor"))
        if cross:
            p = IdentityProcessor(module.to_q.out_features)
            with torch.no_grad():      # starts from the text branch, as IP-Adapter does
                p.to_k_ip.weight.copy_(module.to_k.weight)
                p.to_v_ip.weight.copy_(module.to_v.weight)
            processors[name] = p
        else:
            processors[name] = PlainProcessor()
    net.set_attn_processor(processors)
    return nn.ModuleList(net.attn_processors.values())


def plain_attention(net):
    net.set_attn_processor({name: PlainProcessor() for name in net.attn_processors})


def set_adapter_scale(net, scale):
    for p in net.attn_processors.values():
        if isinstance(p, IdentityProcessor):
            p.scale = scale


# --- faces -----------------------------------------------------------------------------------------------------

class Residual(nn.Module):
    """IR block of ArcFace's networks: BN, conv, BN, PReLU, conv, BN."""

    def __init__(self, a, b, stride):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(a), nn.Conv2d(a, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b), nn.PReLU(b),
                                  nn.Conv2d(b, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b))
        self.skip = nn.Identity() if a == b and stride == 1 else nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x):
        return self.body(x) + self.skip(x)


class EncoderA(nn.Module):
    """Face encoder that conditions: IR-ResNet, [b, 3, 112, 112] in -1..1 -> [b, 512]."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.PReLU(24),          # 56
            Residual(24, 48, 2), Residual(48, 48, 1),                                         # 28
            Residual(48, 80, 2), Residual(80, 80, 1), Residual(80, 80, 1),                    # 14
            Residual(80, 128, 2), Residual(128, 128, 1),                                      # 7
            nn.Conv2d(128, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Flatten(), nn.Dropout(0.1),
            nn.Linear(16 * 49, EMBEDDING), nn.BatchNorm1d(EMBEDDING, affine=False))

    def forward(self, x):
        return self.net(x)


def conv(a, b, stride=1, k=3):
    return nn.Sequential(nn.Conv2d(a, b, k, stride, k // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU())


class Step(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.b = conv(c, c), nn.Sequential(nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c))

    def forward(self, x):
        return torch.relu(x + self.b(self.a(x)))


class JudgeB(nn.Module):
    """Independent judge of identity: another architecture than A (plain residual net with ReLU after the sum, smaller
    embedding), trained on other people, never used for conditioning."""

    def __init__(self, dim=256):
        super().__init__()
        self.net = nn.Sequential(conv(3, 32, 2, 5), Step(32), conv(32, 56, 2), Step(56), Step(56), conv(56, 88, 2), Step(88), Step(88), conv(88, 112, 2), Step(112),
                                 nn.Conv2d(112, 10, 1, bias=False), nn.BatchNorm2d(10), nn.Flatten(), nn.Linear(10 * 49, dim), nn.BatchNorm1d(dim, affine=False))

    def forward(self, x):
        return self.net(x)


class Detector(nn.Module):
    """SCRFD's form: strides 8, 16 and 32, two anchors a cell; score, box distances and five keypoints each."""

    def __init__(self):
        super().__init__()
        self.s8 = nn.Sequential(conv(3, 16, 2), conv(16, 24, 2), Step(24), conv(24, 40, 2), Step(40))
        self.s16 = nn.Sequential(conv(40, 64, 2), Step(64))
        self.s32 = nn.Sequential(conv(64, 56, 2), Step(56), Step(56), Step(56))
        self.l8, self.l16, self.l32 = nn.Conv2d(40, 40, 1), nn.Conv2d(64, 40, 1), nn.Conv2d(56, 40, 1)
        self.heads = nn.ModuleList([nn.Sequential(conv(40, 40), conv(40, 40)) for _ in range(3)])
        self.score = nn.ModuleList([nn.Conv2d(40, 2, 3, 1, 1) for _ in range(3)])
        self.bbox = nn.ModuleList([nn.Conv2d(40, 8, 3, 1, 1) for _ in range(3)])
        self.kps = nn.ModuleList([nn.Conv2d(40, 20, 3, 1, 1) for _ in range(3)])
        for s in self.score:
            nn.init.constant_(s.bias, -4.5)

    def forward(self, x):
        """-> three lists over strides: scores [b, h*w*2, 1] (after the sigmoid), boxes [.., 4], keypoints [.., 10], in strides."""
        a = self.s8(x)
        b = self.s16(a)
        c = self.s32(b)
        c1 = self.l32(c)
        b1 = self.l16(b) + F.interpolate(c1, scale_factor=2.0, mode="nearest")
        a1 = self.l8(a) + F.interpolate(b1, scale_factor=2.0, mode="nearest")
        outputs = [[], [], []]
        for i, level in enumerate((a1, b1, c1)):
            h = self.heads[i](level)
            for k, (head, width) in enumerate(((self.score, 1), (self.bbox, 4), (self.kps, 10))):
                out = head[i](h).permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)
                outputs[k].append(torch.sigmoid(out) if k == 0 else out)
        return outputs


class Probe(nn.Module):
    """Reads what a picture shows: keypoints and the scene's choices. [b, 3, 256, 256] in -1..1.

    The keypoints are the means of five maps of 64x64 that say how likely each place is, as shares of the side."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.s4 = nn.Sequential(conv(3, 24, 2, 5), conv(24, 40, 2), Step(40))
        self.s8 = nn.Sequential(conv(40, 64, 2), Step(64))
        self.s16 = nn.Sequential(conv(64, 88, 2), Step(88))
        self.s32 = nn.Sequential(conv(88, 96, 2), nn.Conv2d(96, 20, 1))
        self.l4, self.l8, self.l16 = nn.Conv2d(40, 32, 1), nn.Conv2d(64, 32, 1), nn.Conv2d(88, 32, 1)
        self.maps = nn.Sequential(conv(32, 32), nn.Conv2d(32, 5, 3, 1, 1))
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(20 * 64, 160), nn.ReLU())
        self.attributes = nn.Linear(160, sum(classes))
        line = (torch.arange(64) + 0.5) / 64
        self.register_buffer("line", torch.stack([line, torch.ones(64)], 1), persistent=False)

    def forward(self, x):
        a = self.s4(x)
        b = self.s8(a)
        c = self.s16(b)
        up = lambda v: F.interpolate(v, scale_factor=2.0, mode="nearest")
        m = self.maps(self.l4(a) + up(self.l8(b) + up(self.l16(c)))).float().reshape(-1, 64 * 64)
        with torch.autocast(x.device.type, enabled=False):
            # Mean place and share of each row, then over the rows: x from the places, y from the shares.
            rows = (torch.softmax(m, 1).reshape(-1, 64) @ self.line).reshape(-1, 64, 2)
            x, y = rows[..., 0] @ self.line[:, 1:], rows[..., 1] @ self.line[:, :1]
            k = torch.cat([x, y], 1)
        return k.reshape(-1, 10), self.attributes(self.hidden(self.s32(c)))


def count(module):
    return sum(p.numel() for p in module.parameters())


if __name__ == "__main__":
    base = unet()
    rows = [("unet", base), ("identity branches", add_identity(unet())), ("identity net", identity_net(base)), ("resampler", Resampler()),
            ("vae", vae()), *zip(("text 1", "text 2"), text_encoders(1300)), ("A", EncoderA()), ("B", JudgeB()), ("detector", Detector()),
            ("probe", Probe([8, 6, 7, 8, 8, 4, 8]))]
    for name, m in rows:
        print(f"{name:20} {count(m) / 1e6:7.3f} M")
    print(f"{'sum':20} {sum(count(m) for _, m in rows) / 1e6:7.3f} M, {sum(count(m) for _, m in rows) / 5e5:.1f} MB in f16")
