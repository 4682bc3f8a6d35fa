"""Stage 3: the base model, text to picture in the latent space; text encoders and UNet learn together."""
import json
import os
import sys
import torch
import torch.nn.functional as F
import stack
import words
from data import Cast, DEVICE, SMOKE, WORK
from loop import Loop, RANK, WORLD, autocast, budget, compiled, load, save, share, start, warm

TIME_IDS = torch.tensor([256.0, 256.0, 0.0, 0.0, 256.0, 256.0])


def schedule():
    """SDXL's: scaled linear betas, 1000 steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(DEVICE)


def noised(latents, alphas):
    t = torch.randint(0, 1000, (len(latents),), device=DEVICE)
    a = alphas[t].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    return a.sqrt() * latents + (1 - a).sqrt() * noise, noise, t


def weights(t, alphas, gamma=5.0):
    """min-SNR weighting (arXiv:2303.09556) for a net that predicts the noise."""
    snr = alphas[t] / (1 - alphas[t])
    return snr.clamp_max(gamma) / snr


@torch.no_grad()
def encode(vae, data):
    """All pictures as scaled latents, in 16 bits."""
    factor = json.load(open(os.path.join(WORK, "vae.json")))["scaling_factor"]
    out = torch.empty(data.count, 4, 32, 32, dtype=torch.float16, device=DEVICE)
    with autocast():
        for i in range(0, data.count, 256):
            rows = torch.arange(i, min(i + 256, data.count), device=DEVICE)
            out[rows] = (vae.encode(data.batch(rows)).latent_dist.mean * factor).half()
    return out


def vocabulary(captions):
    path = os.path.join(WORK, "words.json")
    if not os.path.exists(path):
        v, m = words.train(captions[:20000])
        json.dump({"vocabulary": v, "merges": m}, open(path, "w"))
    saved = json.load(open(path))
    return words.Words(saved["vocabulary"], saved["merges"]), saved


def token_ids(captions, book):
    rows = [book.encode(c, 0) for c in captions]
    two = torch.tensor(rows, dtype=torch.long, device=DEVICE)
    ended = (two == book.end).cumsum(1) > 0
    return torch.where(ended, book.end, two), two


class Base(torch.nn.Module):
    def __init__(self, unet, one, two):
        super().__init__()
        self.unet, self.one, self.two = unet, one, two
        self.run = compiled(unet)

    def forward(self, x, t, ids1, ids2, keep, ids):
        text, pooled = stack.encode_text(self.one, self.two, ids1, ids2)
        text, pooled = text * keep[:, None, None], pooled * keep[:, None]
        return self.run(x, t, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample


def main(seconds, names, batch):
    start(13)
    data = Cast(names, share=(RANK, WORLD))
    book, saved = vocabulary(data.captions)
    ids1, ids2 = token_ids(data.captions, book)
    empty1, empty2 = token_ids([""], book)
    one, two = (m.to(DEVICE) for m in stack.text_encoders(len(saved["vocabulary"])))
    torch.manual_seed(17)
    unet = stack.unet().to(DEVICE).to(memory_format=torch.channels_last)
    stack.plain_attention(unet)
    net = Base(unet, one, two)
    ids = TIME_IDS.to(DEVICE).expand(batch, 6)
    some = torch.arange(batch, device=DEVICE) % data.count
    x = torch.randn(batch, 4, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    warm(lambda: net(x, some % 1000, ids1[some], ids2[some], torch.ones(batch, device=DEVICE), ids), unet, one, two)
    vae = load("vae", stack.vae(), wait=1200).eval()
    latents = encode(vae, data)
    path = os.path.join(WORK, f"latents{RANK}.tensor")
    torch.save(latents.cpu(), path + ".part")
    os.replace(path + ".part", path)
    data.images = None
    torch.cuda.empty_cache() if DEVICE == "cuda" else None
    share(unet, one, two)
    torch.manual_seed(1000 + RANK)
    loop = Loop("base", [unet, one, two], seconds, 1.2e-3, average=0.9985)
    alphas = schedule()
    for _ in loop:
        index = torch.randint(0, data.count, (batch,), device=DEVICE)
        x, noise, t = noised(latents[index].float(), alphas)
        draw = torch.rand(batch, device=DEVICE)
        keep = (draw >= 0.07).float()                      # zeros, as pipelines give where there is no negative prompt
        blank = ((draw >= 0.07) & (draw < 0.12))[:, None]    # and the empty text, as others give
        a, b = torch.where(blank, empty1, ids1[index]), torch.where(blank, empty2, ids2[index])
        with autocast():
            out = net(x.to(memory_format=torch.channels_last), t, a, b, keep, ids)
        loss = (F.mse_loss(out.float(), noise, reduction="none").mean((1, 2, 3)) * weights(t, alphas)).mean()
        loop.step(loss)
    loop.use_average()
    for name, m in (("text1", one), ("text2", two), ("unet", unet)):
        save(name, m)


if __name__ == "__main__":
    if sys.argv[1] == "words":          # the vocabulary alone, before anything waits for it
        vocabulary(Cast(sys.argv[2].split(","), images=False).captions)
        sys.exit()
    main(budget(sys.argv[1]), sys.argv[2].split(","), 2 if SMOKE else int(os.environ.get("BATCH", 384)))
