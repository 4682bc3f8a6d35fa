"""Stage 4: adapter and IdentityNet, the base frozen.

Pairs as the paper asks: the reference is another picture of the person, in another pose, style and light, so that
copying does not help. Text, identity, adapter and IdentityNet are each left out at random.
"""
import json
import os
import sys
import torch
import torch.nn.functional as F
import base
import stack
from data import Cast, DEVICE, SMOKE, WORK, keypoint_images
from faces import embed_all
from loop import Loop, RANK, WORLD, autocast, budget, compiled, load, save, share, start, warm


class Stack(torch.nn.Module):
    def __init__(self, unet, net, resampler):
        super().__init__()
        self.unet, self.net, self.resampler = unet, net, resampler

    def forward(self, x, t, text, pooled, ids, face, keypoints, use_adapter, use_net):
        tokens = self.resampler(face[:, None])
        added = {"text_embeds": pooled, "time_ids": ids}
        down, mid = self.net(x, t, tokens, keypoint_images(keypoints).to(memory_format=torch.channels_last), added_cond_kwargs=added, return_dict=False)
        use = use_net[:, None, None, None]
        # Zero tokens make the second branch add nothing, as a scale of zero does.
        context = torch.cat([text, tokens * use_adapter[:, None, None]], 1)
        return self.unet(x, t, context, added_cond_kwargs=added, down_block_additional_residuals=[d * use for d in down],
                         mid_block_additional_residual=mid * use).sample


@torch.no_grad()
def text_of(captions, book, one, two):
    ids1, ids2 = base.token_ids(captions, book)
    hidden, pooled = [], []
    for i in range(0, len(captions), 2048):
        h, p = stack.encode_text(one, two, ids1[i : i + 2048], ids2[i : i + 2048])
        hidden.append(h.half())
        pooled.append(p.half())
    return torch.cat(hidden), torch.cat(pooled)


def main(seconds, names, batch):
    start(19)
    data = Cast(names, share=(RANK, WORLD))
    torch.manual_seed(29)
    unet = stack.unet().to(DEVICE).to(memory_format=torch.channels_last)
    net = stack.identity_net(unet).to(DEVICE).to(memory_format=torch.channels_last)
    stack.plain_attention(net)
    unet.requires_grad_(False)
    adapter = stack.add_identity(unet).to(DEVICE)
    resampler = stack.Resampler().to(DEVICE)
    run = compiled(Stack(unet, net, resampler))
    made_up = lambda *shape: torch.randn(batch, *shape, device=DEVICE)
    ids = base.TIME_IDS.to(DEVICE).expand(batch, 6)
    some = torch.arange(batch, device=DEVICE)
    warm(lambda: run(made_up(4, 32, 32).to(memory_format=torch.channels_last), some % 1000, made_up(77, stack.CONTEXT), made_up(stack.TEXT2), ids, made_up(512),
                     100 + made_up(5, 2), torch.ones(batch, device=DEVICE), torch.ones(batch, device=DEVICE)), net, adapter, resampler)
    a = load("A", stack.EncoderA(), wait=1200).eval()
    faces = embed_all(a, data).half()
    data.images = None
    torch.cuda.empty_cache() if DEVICE == "cuda" else None
    # The base arrives: IdentityNet begins as a copy of its first half, the branches as copies of the text's.
    trained = load("unet", stack.unet(), wait=2400)
    unet.load_state_dict(trained.state_dict(), strict=False)
    fresh = stack.identity_net(trained)
    net.load_state_dict({k: v.to(DEVICE) for k, v in fresh.state_dict().items()})
    adapter.load_state_dict({k: v.to(DEVICE) for k, v in stack.add_identity(trained).state_dict().items()})
    share(net, adapter, resampler)
    latents = torch.load(os.path.join(WORK, f"latents{RANK}.tensor"), weights_only=True).to(DEVICE)
    book, saved = base.vocabulary(data.captions)
    one, two = (load(n, m) for n, m in zip(("text1", "text2"), stack.text_encoders(len(saved["vocabulary"]))))
    hidden, pooled = text_of(data.captions, book, one, two)
    torch.manual_seed(2000 + RANK)
    loop = Loop("identity", [adapter, net, resampler], seconds, 1e-3, average=0.9985)
    alphas = base.schedule()
    line = torch.arange(32, device=DEVICE) * 8.0 + 4
    ys, xs = torch.meshgrid(line, line, indexing="ij")
    references = data.info["references"]
    for _ in loop:
        index = torch.randint(0, data.count, (batch,), device=DEVICE)
        draw = lambda p: torch.rand(batch, device=DEVICE) < p
        # Another picture of the person: mostly a portrait such as users give, otherwise any.
        step = torch.randint(1, data.pictures, (batch,), device=DEVICE)
        first = data.person[index] * data.pictures
        other = first + (index - first + step) % data.pictures
        portrait = first + torch.randint(0, references, (batch,), device=DEVICE)
        use_portrait = draw(0.5) & (portrait != index)
        face = faces[torch.where(use_portrait, portrait, other)].float()
        face = face * (1 - draw(0.12).float())[:, None]
        keep_text = 1 - draw(0.12).float()
        drop = torch.rand(batch, device=DEVICE)
        use_adapter, use_net = 1 - (drop < 0.12).float(), 1 - (drop > 0.86).float()
        text = hidden[index].float() * keep_text[:, None, None]
        pool = pooled[index].float() * keep_text[:, None]
        x, noise, t = base.noised(latents[index].float(), alphas)
        with autocast():
            out = run(x.to(memory_format=torch.channels_last), t, text, pool, ids, face, data.keypoints[index], use_adapter, use_net)
        # The head counts four times: it is small, and identity lives there.
        box = data.box[index]
        grow = 0.3 * (box[:, 2:] - box[:, :2])
        low, high = (box[:, :2] - grow)[:, :, None, None], (box[:, 2:] + grow)[:, :, None, None]
        head = ((xs >= low[:, 0]) & (xs <= high[:, 0]) & (ys >= low[:, 1]) & (ys <= high[:, 1])).float()
        weight = (1 + 3 * head) / (1 + 3 * head).mean((1, 2), keepdim=True)
        error = F.mse_loss(out.float(), noise, reduction="none").mean(1)
        loss = ((error * weight).mean((1, 2)) * base.weights(t, alphas)).mean()
        loop.step(loss)
    loop.use_average()
    for name, m in (("adapter", adapter), ("identitynet", net), ("resampler", resampler)):
        save(name, m)


if __name__ == "__main__":
    main(budget(sys.argv[1]), sys.argv[2].split(","), 2 if SMOKE else int(os.environ.get("BATCH", 384)))
