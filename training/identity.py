"""Stage 4: adapter and IdentityNet, the base frozen.

Pairs as the paper asks: the reference is another picture of the person, in another pose, style and light, so that
copying does not help. Text, identity, adapter and IdentityNet are each left out at random.
"""
import os
import sys
import torch
import base
import lean
import stack
from data import Cast, DEVICE, SMOKE, WORK, crop_grid, keypoint_images, pick
from loop import Loop, RANK, WORLD, autocast, await_file, budget, compiled, fill, halve, load, mark, start, state, warm


def losses(unet, net, resampler, latents, noise, t, text, pooled, ids, face, keypoints, box, use_adapter, use_net, alphas):
    half = torch.bfloat16
    tokens = resampler(face[:, None].to(half))
    x, target = base.noised(latents.float(), noise, alphas, t)
    down, mid = lean.identity_net(net, x.to(half), t, tokens, pooled, ids, lean.hint(net, keypoint_images(keypoints).to(half)))
    use = use_net.to(half)[:, None, None, None]
    # Zero tokens make the second branch add nothing, as a scale of zero does.
    out = lean.unet(unet, x.to(half), t, text.to(half), pooled, ids, tokens * use_adapter.to(half)[:, None, None], 1.0, ([d * use for d in down], mid * use))
    # The head counts four times: it is small, and identity lives there.
    line = torch.arange(32, device=x.device) * 8.0 + 4
    xs, ys = line[None, None, :], line[None, :, None]
    grow = 0.3 * (box[:, 2:] - box[:, :2])
    low, high = (box[:, :2] - grow)[:, :, None, None], (box[:, 2:] + grow)[:, :, None, None]
    head = ((xs >= low[:, 0]) & (xs <= high[:, 0]) & (ys >= low[:, 1]) & (ys <= high[:, 1])).float()
    weight = (1 + 3 * head) / (1 + 3 * head).mean((1, 2), keepdim=True)
    return (((out.float() - target).square().mean(1) * weight).mean((1, 2)) * base.weights(t, alphas)).mean()


@torch.no_grad()
def text_of(captions, book, one, two):
    ids1, ids2 = base.token_ids(captions, book)
    hidden, pooled = [], []
    for i in range(0, len(captions), 2048):
        h, p = lean.encode_text(one, two, ids1[i : i + 2048], ids2[i : i + 2048])
        hidden.append(h.half())
        pooled.append(p.half())
    return torch.cat(hidden), torch.cat(pooled)


@torch.no_grad()
def embed_all(a, data):
    """Every picture's embedding, the keypoints a little off, as a detector's are."""
    k = data.keypoints
    eye = (k[:, 1] - k[:, 0]).norm(dim=-1)[:, None, None]
    grid = crop_grid
    out = []
    for i, block in data.blocks(1024):
        rows = k[i : i + len(block)] + 0.015 * eye[i : i + len(block)] * torch.randn(len(block), 5, 2, device=DEVICE)
        x = pick(block, torch.arange(len(block), device=DEVICE), grid(rows)).permute(0, 3, 1, 2)
        with autocast():
            out.append(a(x).half())
    return torch.cat(out)


def prepare(names):
    """What pairs are made of, so that training itself only compiles and trains: latents, embeddings, texts."""
    start(19, together=False)
    data = Cast(names, images=False, share=(RANK, WORLD))
    faces = embed_all(load("A", stack.EncoderA(), wait=1200).eval(), data)
    path = os.path.join(WORK, f"latents{RANK}.tensor")
    if os.path.exists(path):          # the base has been there before
        latents = torch.load(path, weights_only=True)
    else:
        latents = base.encode(load("vae", stack.vae(), wait=1200).eval(), data).cpu()
    book, saved = base.vocabulary(data.captions)
    await_file("unet.pt", 2400)
    one, two = (load(n, m) for n, m in zip(("text1", "text2"), stack.text_encoders(len(saved["vocabulary"]))))
    hidden, pooled = text_of(data.captions, book, one, two)
    path = os.path.join(WORK, f"pairs{RANK}.tensor")
    torch.save([v.cpu() for v in (latents, faces, hidden, pooled)], path + ".part")
    os.replace(path + ".part", path)


def main(seconds, names, batch):
    start(19)
    torch.manual_seed(29)
    unet = stack.unet()
    net = stack.identity_net(unet).to(DEVICE).to(memory_format=torch.channels_last)
    stack.plain_attention(net)
    unet.requires_grad_(False)
    adapter = stack.add_identity(unet)
    resampler = stack.Resampler()
    unet = unet.to(DEVICE).to(memory_format=torch.channels_last)
    adapter, resampler = adapter.to(DEVICE), resampler.to(DEVICE)
    halve(unet, net, resampler)
    run, alphas = compiled(losses), base.schedule()
    made_up = lambda *shape: torch.randn(batch, *shape, device=DEVICE)
    ids = base.TIME_IDS.to(DEVICE).expand(batch, 6)
    some, ones = torch.arange(batch, device=DEVICE), torch.ones(batch, device=DEVICE)
    # No tensor twice: the compiler would take it for a rule, and compile again when it is broken.
    warm(lambda: run(unet, net, resampler, made_up(4, 32, 32).half(), made_up(4, 32, 32), some % 1000, made_up(77, stack.CONTEXT).half(), made_up(stack.TEXT2).half(), ids,
                     made_up(512).half(), 100 + made_up(5, 2), 100 + made_up(4), ones, ones.clone(), alphas), net, adapter, resampler)
    data = Cast(names, images=False, share=(RANK, WORLD))
    # The base arrives: IdentityNet begins as a copy of its first half, the branches as copies of the text's.
    trained = stack.unet()
    trained.load_state_dict(state("unet", wait=2400))
    fill(unet, trained.state_dict())
    fill(net, stack.identity_net(trained).state_dict())
    fill(adapter, stack.add_identity(trained).state_dict())
    if before := os.environ.get("BEFORE"):          # a folder with an earlier run's checkpoints, to go on from
        for name, module in (("adapter", adapter), ("identitynet", net), ("resampler", resampler)):
            fill(module, torch.load(os.path.join(before, name + ".pt"), map_location="cpu", weights_only=True))
    await_file(f"pairs{RANK}.tensor")
    latents, faces, hidden, pooled = (v.to(DEVICE) for v in torch.load(os.path.join(WORK, f"pairs{RANK}.tensor"), weights_only=True))
    torch.manual_seed(2000 + RANK)
    keep = lambda l: [l.save(n, m) for n, m in (("adapter", adapter), ("identitynet", net), ("resampler", resampler))]
    loop = Loop("identity", [adapter, net, resampler], seconds, 1e-3, average=0.9985, marks=[(0.4, keep), (0.75, keep)])
    references = data.info["references"]
    for _ in loop:
        index = torch.randint(0, data.count, (batch,), device=DEVICE)
        draw = lambda p: torch.rand(batch, device=DEVICE) < p
        # Another picture of the person: mostly a portrait such as users give, otherwise any.
        step = torch.randint(1, data.pictures, (batch,), device=DEVICE)
        first = data.person[index] * data.pictures
        other = first + (index - first + step) % data.pictures
        portrait = first + torch.randint(0, references, (batch,), device=DEVICE)
        use_portrait = draw(0.65) & (portrait != index)
        face = faces[torch.where(use_portrait, portrait, other)] * (~draw(0.12)).half()[:, None]
        keep_text = (~draw(0.12)).half()
        drop = torch.rand(batch, device=DEVICE)
        loop.step(run(unet, net, resampler, latents[index], made_up(4, 32, 32), torch.randint(0, 1000, (batch,), device=DEVICE), hidden[index] * keep_text[:, None, None],
                      pooled[index] * keep_text[:, None], ids, face, data.keypoints[index], data.box[index], (drop >= 0.12).float(), (drop <= 0.86).float(), alphas))
    keep(loop)
    mark("done")


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(sys.argv[2].split(","))
        sys.exit()
    main(budget(sys.argv[1]), sys.argv[2].split(","), 2 if SMOKE else int(os.environ.get("BATCH", 384)))
