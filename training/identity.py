"""Stage 4: adapter and IdentityNet, the base frozen.

Pairs as the paper asks: the reference is another picture of the person, in another pose, style and light, so that
copying does not help. Text, identity, adapter and IdentityNet are each left out at random. For some pictures of a batch
the denoised picture's embedding by A is drawn to the person's too (as in PuLID, arXiv:2404.16022): the squared error
alone hardly sees the few pixels by which people differ. The judge B has no part in it.
"""
import json
import os
import sys
import torch
import torch.nn.functional as F
import base
import lean
import stack
from data import Cast, DEVICE, SMOKE, WORK, align, crop_grid, keypoint_images, pick
from loop import Loop, RANK, WORLD, autocast, await_file, budget, compiled, fill, go_on, halve, load, mark, start, state, warm

# Of how many pictures in a batch the likeness is measured, what it weighs beside the squared error, and the noisiest step for it.
LIKENESS = int(os.environ.get("LIKENESS", 32))
WEIGHT, NOISIEST = float(os.environ.get("WEIGHT", 0.03)), 700
# How often the adapter, and how often IdentityNet, is left out. Both are used together, and whoever is trained much alone does
# the other's work: with 0.12 and 0.14 IdentityNet alone was nearly as good as both.
NO_ADAPTER, NO_NET = float(os.environ.get("NO_ADAPTER", 0.02)), float(os.environ.get("NO_NET", 0.3))


def losses(unet, net, resampler, latents, noise, t, text, pooled, ids, face, keypoints, box, use_adapter, use_net, alphas):
    """-> the loss, and the denoised latents of the first pictures."""
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
    loss = (((out.float() - target).square().mean(1) * weight).mean((1, 2)) * base.weights(t, alphas)).mean()
    a = alphas[t[:LIKENESS], None, None, None]
    return loss, a.sqrt() * x[:LIKENESS] - (1 - a).sqrt() * out[:LIKENESS].float()


def unlikeness(vae, a, latents, factor, keypoints, person, weight):
    """How far the embeddings of denoised latents [b, 4, 32, 32] are from those of their people [b, 512]."""
    images = lean.decode(vae, (latents / factor).to(torch.bfloat16)).float()
    with autocast():
        e = a(align(images, keypoints))
    return ((1 - F.cosine_similarity(e.float(), person.float())) * weight).mean()


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
        latents = base.Encoder()(data).cpu()
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
    run, judge, alphas = compiled(losses), compiled(unlikeness), base.schedule()
    made_up = lambda *shape: torch.randn(batch, *shape, device=DEVICE)
    ids = base.TIME_IDS.to(DEVICE).expand(batch, 6)
    some, ones = torch.arange(batch, device=DEVICE), torch.ones(batch, device=DEVICE)
    vae, a = stack.vae().to(DEVICE).to(torch.bfloat16).to(memory_format=torch.channels_last), stack.EncoderA().to(DEVICE).eval()
    for m in (vae, a):
        m.requires_grad_(False)
    factor = torch.ones((), device=DEVICE)
    few = slice(0, LIKENESS)

    def loss(latents, noise, t, text, pooled, face, keypoints, box, use_adapter, use_net, person, known):
        error, denoised = run(unet, net, resampler, latents, noise, t, text, pooled, ids, face, keypoints, box, use_adapter, use_net, alphas)
        if not LIKENESS:
            return error
        # What is hidden by noise cannot be like anybody.
        return error + WEIGHT * judge(vae, a, denoised, factor, keypoints[few], person, alphas[t[few]].sqrt() * known[few])

    # No tensor twice: the compiler would take it for a rule, and compile again when it is broken.
    warm(lambda: loss(made_up(4, 32, 32).half(), made_up(4, 32, 32), some % 1000, made_up(77, stack.CONTEXT).half(), made_up(stack.TEXT2).half(),
                      made_up(512).half(), 100 + 20 * made_up(5, 2), 100 + made_up(4), ones, ones.clone(), made_up(512)[few].half(), ones.clone()), net, adapter, resampler)
    data = Cast(names, images=False, share=(RANK, WORLD))
    # The base arrives: IdentityNet begins as a copy of its first half, the branches as copies of the text's.
    trained = stack.unet()
    trained.load_state_dict(state("unet", wait=2400))
    fill(unet, trained.state_dict())
    fill(net, stack.identity_net(trained).state_dict())
    fill(adapter, stack.add_identity(trained).state_dict())
    go_on(("adapter", adapter), ("identitynet", net), ("resampler", resampler))
    await_file(f"pairs{RANK}.tensor")
    latents, faces, hidden, pooled = (v.to(DEVICE) for v in torch.load(os.path.join(WORK, f"pairs{RANK}.tensor"), weights_only=True))
    vae.load_state_dict(state("vae"))
    a.load_state_dict(state("A"))
    factor.fill_(json.load(open(os.path.join(WORK, "vae.json")))["scaling_factor"])
    people = F.normalize(F.normalize(faces.float(), dim=-1).view(data.people, data.pictures, -1).mean(1), dim=-1).half()
    torch.manual_seed(2000 + RANK)
    keep = lambda l: [l.save(n, m) for n, m in (("adapter", adapter), ("identitynet", net), ("resampler", resampler))]
    loop = Loop("identity", [adapter, net, resampler], seconds, float(os.environ.get("RATE", 1e-3)), average=0.9985, marks=[(0.4, keep), (0.75, keep)])
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
        known = (~draw(0.12)).half()
        face = faces[torch.where(use_portrait, portrait, other)] * known[:, None]
        keep_text = (~draw(0.12)).half()
        drop = torch.rand(batch, device=DEVICE)
        t = torch.randint(0, 1000, (batch,), device=DEVICE)
        t[few] = t[few] * NOISIEST // 1000
        loop.run(loss, latents[index], made_up(4, 32, 32), t, hidden[index] * keep_text[:, None, None], pooled[index] * keep_text[:, None], face,
                 data.keypoints[index], data.box[index], (drop >= NO_ADAPTER).float(), (drop <= 1 - NO_NET).float(), people[data.person[index[few]]], known.float())
    keep(loop)
    mark("done")


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(sys.argv[2].split(","))
        sys.exit()
    main(budget(sys.argv[1]), sys.argv[2].split(","), 2 if SMOKE else int(os.environ.get("BATCH", 384)))
