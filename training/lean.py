"""Forward passes of the stack's networks over the modules of diffusers and transformers that hold their weights.

The same arithmetic as theirs (`python lean.py` compares them), written for the compiler: one graph, activations kept in
channels-last order throughout, and group norm as sums per channel, which read memory in order where sums per group do not.
"""
import torch
import torch.nn.functional as F


def norm(x, m, act=True):
    """Group norm and SiLU of [b, c, h, w]."""
    b, c = x.shape[:2]
    v = x.float()
    first, second = (s.view(b, m.num_groups, -1).mean(-1, keepdim=True) for s in (v.mean((2, 3)), (v * v).mean((2, 3))))
    scale = ((second - first * first).clamp_min(0) + m.eps).rsqrt() * m.weight.float().view(1, m.num_groups, -1)
    shift = m.bias.float().view(1, m.num_groups, -1) - first * scale
    y = v * scale.reshape(b, c, 1, 1) + shift.reshape(b, c, 1, 1)
    return (F.silu(y) if act else y).to(x.dtype)


def conv(x, m):
    return F.conv2d(x, m.weight, m.bias, m.stride, m.padding)


def resnet(x, m, emb=None):
    h = conv(norm(x, m.norm1), m.conv1)
    if emb is not None:
        h = h + m.time_emb_proj(F.silu(emb))[:, :, None, None]
    h = conv(norm(h, m.norm2), m.conv2)
    return h + (x if m.conv_shortcut is None else conv(x, m.conv_shortcut))


def upsample(x, m):
    """Each value four times: as a view, whose gradient is a sum, where interpolation's is scattered by atomics."""
    b, c, h, w = x.shape
    y = x.permute(0, 2, 3, 1)[:, :, None, :, None].expand(b, h, 2, w, 2, c).reshape(b, 2 * h, 2 * w, c)
    return conv(y.permute(0, 3, 1, 2), m.conv)


def heads(q, k, v, n, causal=False):
    b, t, c = q.shape
    q, k, v = (y.view(b, y.shape[1], n, c // n).transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(b, t, c)


def tokens_of(x):
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])


def picture_of(x, like):
    return x.view(like.shape[0], like.shape[2], like.shape[3], -1).permute(0, 3, 1, 2)


def transformer(x, m, text, face=None, scale=1.0):
    h = m.proj_in(tokens_of(norm(x, m.norm, act=False)))
    for block in m.transformer_blocks:
        a, y = block.attn1, block.norm1(h)
        h = h + a.to_out[0](heads(a.to_q(y), a.to_k(y), a.to_v(y), a.heads))
        a, y = block.attn2, block.norm2(h)
        q = a.to_q(y)
        y = heads(q, a.to_k(text), a.to_v(text), a.heads)
        if face is not None:
            p = a.processor
            y = y + scale * heads(q, p.to_k_ip(face), p.to_v_ip(face), a.heads)
        h = h + a.to_out[0](y)
        y, gate = block.ff.net[0].proj(block.norm3(h)).chunk(2, -1)
        h = h + block.ff.net[2](y * F.gelu(gate))
    return picture_of(m.proj_out(h), x) + x


def embed_time(m, t, pooled, ids, dtype):
    emb = m.time_embedding(m.time_proj(t.expand(pooled.shape[0])).to(dtype))
    times = m.add_time_proj(ids.flatten()).view(pooled.shape[0], -1)
    return emb + m.add_embedding(torch.cat([pooled.to(dtype), times.to(dtype)], -1))


def halves(m, x, emb, text, face, scale):
    """The down and middle parts, which UNet and IdentityNet share."""
    skips = [x]
    for block in m.down_blocks:
        for i, r in enumerate(block.resnets):
            x = resnet(x, r, emb)
            if getattr(block, "attentions", None):
                x = transformer(x, block.attentions[i], text, face, scale)
            skips.append(x)
        if block.downsamplers:
            x = conv(x, block.downsamplers[0].conv)
            skips.append(x)
    x = resnet(x, m.mid_block.resnets[0], emb)
    for a, r in zip(m.mid_block.attentions, m.mid_block.resnets[1:]):
        x = resnet(transformer(x, a, text, face, scale), r, emb)
    return skips, x


def unet(m, x, t, text, pooled, ids, face=None, scale=1.0, residuals=None):
    """`face`: tokens for the identity branches; `residuals`: what IdentityNet adds, (down, middle)."""
    emb = embed_time(m, t, pooled, ids, x.dtype)
    skips, x = halves(m, conv(x, m.conv_in), emb, text, face, scale)
    if residuals is not None:
        skips = [s + r for s, r in zip(skips, residuals[0])]
        x = x + residuals[1]
    for block in m.up_blocks:
        for i, r in enumerate(block.resnets):
            x = resnet(torch.cat([x, skips.pop()], 1), r, emb)
            if getattr(block, "attentions", None):
                x = transformer(x, block.attentions[i], text, face, scale)
        if block.upsamplers:
            x = upsample(x, block.upsamplers[0])
    return conv(norm(x, m.conv_norm_out), m.conv_out)


def hint(m, picture):
    """What IdentityNet makes of the keypoint picture; the same in every step of sampling."""
    c = m.controlnet_cond_embedding
    h = F.silu(conv(picture, c.conv_in))
    for block in c.blocks:
        h = F.silu(conv(h, block))
    return conv(h, c.conv_out)


def identity_net(m, x, t, tokens, pooled, ids, hinted):
    emb = embed_time(m, t, pooled, ids, x.dtype)
    skips, x = halves(m, conv(x, m.conv_in) + hinted, emb, tokens, None, 1.0)
    return [conv(s, z) for s, z in zip(skips, m.controlnet_down_blocks)], conv(x, m.controlnet_mid_block)


def vae_middle(x, m):
    x = resnet(x, m.resnets[0])
    a = m.attentions[0]
    y = tokens_of(norm(x, a.group_norm, act=False))
    x = x + picture_of(a.to_out[0](heads(a.to_q(y), a.to_k(y), a.to_v(y), a.heads)), x)
    return resnet(x, m.resnets[1])


def encode(vae, x):
    """-> mean and log variance."""
    m = vae.encoder
    x = conv(x, m.conv_in)
    for block in m.down_blocks:
        for r in block.resnets:
            x = resnet(x, r)
        if block.downsamplers:
            x = conv(F.pad(x, (0, 1, 0, 1)), block.downsamplers[0].conv)
    x = conv(norm(vae_middle(x, m.mid_block), m.conv_norm_out), m.conv_out)
    return conv(x, vae.quant_conv).chunk(2, 1)


def decode(vae, z):
    m = vae.decoder
    x = vae_middle(conv(conv(z, vae.post_quant_conv), m.conv_in), m.mid_block)
    for block in m.up_blocks:
        for r in block.resnets:
            x = resnet(x, r)
        if block.upsamplers:
            x = upsample(x, block.upsamplers[0])
    return conv(norm(x, m.conv_norm_out), m.conv_out)


def clip(m, ids, act, last):
    """Hidden states before the last layer; with `last` also the projected state of the first end token."""
    m2 = getattr(m, "text_model", m)
    x = m2.embeddings.token_embedding(ids) + m2.embeddings.position_embedding.weight[: ids.shape[1]]
    before = x
    for layer in m2.encoder.layers if last else m2.encoder.layers[:-1]:
        before, a = x, layer.self_attn
        y = layer.layer_norm1(x)
        x = x + a.out_proj(heads(a.q_proj(y), a.k_proj(y), a.v_proj(y), a.num_heads, causal=True))
        x = x + layer.mlp.fc2(act(layer.mlp.fc1(layer.layer_norm2(x))))
    if not last:
        return x, None
    end = (ids == m.config.eos_token_id).int().argmax(-1)
    return before, m.text_projection(m2.final_layer_norm(x[torch.arange(len(x), device=x.device), end]))


def encode_text(one, two, ids1, ids2):
    """Hidden states before the last layer of both encoders, side by side, and the second's projection: as SDXL."""
    a, _ = clip(one, ids1, lambda x: x * torch.sigmoid(1.702 * x), False)
    b, pooled = clip(two, ids2, F.gelu, True)
    return torch.cat([a, b], -1), pooled


if __name__ == "__main__":
    import stack
    torch.manual_seed(1)
    far = lambda a, b: f"{((a - b).norm() / b.norm()).item():.1e}"
    with torch.no_grad():
        base = stack.unet().eval()
        net = stack.identity_net(base).eval()
        for p in net.parameters():          # not zero, else nothing would be compared
            p.add_(0.02 * torch.randn_like(p))
        adapter = stack.add_identity(base)
        stack.plain_attention(net)
        for p in adapter.parameters():
            p.add_(0.05 * torch.randn_like(p))
        x, text, tokens = torch.randn(2, 4, 32, 32), torch.randn(2, 77, stack.CONTEXT), torch.randn(2, 16, stack.CONTEXT)
        pooled, ids, t, picture = torch.randn(2, stack.TEXT2), torch.rand(2, 6) * 256, torch.tensor([3, 700]), torch.rand(2, 3, 256, 256)
        added = {"text_embeds": pooled, "time_ids": ids}
        down, mid = net(x, t, tokens, picture, added_cond_kwargs=added, return_dict=False)
        down2, mid2 = identity_net(net, x, t, tokens, pooled, ids, hint(net, picture))
        print("IdentityNet", *[far(a, b) for a, b in zip(down2, down)], far(mid2, mid))
        out = base(x, t, torch.cat([text, tokens], 1), added_cond_kwargs=added, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
        print("UNet", far(unet(base, x, t, text, pooled, ids, tokens, 1.0, (down, mid)), out))
        v = stack.vae().eval()
        z = v.encode(picture).latent_dist
        print("VAE", far(encode(v, picture)[0], z.mean), far(decode(v, z.mean), v.decode(z.mean).sample))
        one, two = stack.text_encoders(900)
        words = torch.randint(0, 890, (3, 77))
        words[:, 20:] = 899
        a, b = stack.encode_text(one.eval(), two.eval(), words, words), encode_text(one, two, words, words)
        print("text", far(b[0], a[0]), far(b[1], a[1]))
