"""Stage 3: the base model, text to picture in the latent space; text encoders and UNet learn together."""
import json
import os
import sys
import torch
import lean
import stack
import words
from data import Cast, DEVICE, SMOKE, WORK, unit
from loop import Loop, RANK, WORLD, await_file, budget, compiled, go_on, halve, mark, start, state, warm

TIME_IDS = torch.tensor([256.0, 256.0, 0.0, 0.0, 256.0, 256.0])


def schedule():
    """SDXL's: scaled linear betas, 1000 steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(DEVICE)


def noised(latents, noise, alphas, t):
    """-> the noisy latents and the velocity (arXiv:2202.00512), which the net predicts."""
    a = alphas[t].view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * latents


def weights(t, alphas, gamma=5.0, least=0.3):
    """min-SNR weighting (arXiv:2303.09556) for a net that predicts the velocity; the noisiest steps keep some weight,
    because colours are decided there."""
    snr = alphas[t] / (1 - alphas[t])
    return (snr.clamp_max(gamma) + least) / (snr + 1)


class Encoder:
    """The autoencoder's first half, compiled before its weights are there."""
    size = 4 if SMOKE else 256          # one shape, one compilation

    @torch.no_grad()
    def __init__(self):
        self.vae = stack.vae().eval().to(DEVICE).to(torch.bfloat16).to(memory_format=torch.channels_last)
        self.run = compiled(lambda images: lean.encode(self.vae, unit(images).to(torch.bfloat16))[0].float())
        self.run(torch.zeros(self.size, 256, 256, 3, dtype=torch.uint8, device=DEVICE))

    @torch.no_grad()
    def __call__(self, data):
        """All pictures as scaled latents, in 16 bits."""
        self.vae.load_state_dict(state("vae", wait=1200))
        factor = json.load(open(os.path.join(WORK, "vae.json")))["scaling_factor"]
        out = torch.empty(data.count, 4, 32, 32, dtype=torch.float16, device=DEVICE)
        for i, block in data.blocks(self.size):
            n = len(block)
            if n < self.size:
                block = torch.cat([block, block[:1].expand(self.size - n, -1, -1, -1)])
            out[i : i + n] = (self.run(block)[:n] * factor).half()
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


def losses(unet, one, two, latents, noise, t, ids1, ids2, keep, ids, alphas):
    text, pooled = lean.encode_text(one, two, ids1, ids2)
    x, target = noised(latents.float(), noise, alphas, t)
    out = lean.unet(unet, x.to(text.dtype), t, text * keep[:, None, None], pooled * keep[:, None], ids)
    return ((out.float() - target).square().mean((1, 2, 3)) * weights(t, alphas)).mean()


def main(seconds, names, batch):
    start(13)
    await_file("words.json", 1200)
    book, saved = vocabulary([])
    empty1, empty2 = token_ids([""], book)
    torch.manual_seed(17)
    one, two = halve(*(m.to(DEVICE) for m in stack.text_encoders(len(saved["vocabulary"]))))
    unet = halve(stack.unet().to(DEVICE).to(memory_format=torch.channels_last))
    run, alphas = compiled(losses), schedule()
    ids = TIME_IDS.to(DEVICE).expand(batch, 6)
    ones = torch.ones(batch, device=DEVICE, dtype=torch.bfloat16)
    made_up = lambda: torch.randn(batch, 4, 32, 32, device=DEVICE)
    some = torch.arange(batch, device=DEVICE)
    text = lambda one: one.expand(batch, -1).clone()
    warm(lambda: run(unet, one, two, made_up().half(), made_up(), some % 1000, text(empty1), text(empty2), ones, ids, alphas), unet, one, two)
    encode = Encoder()
    data = Cast(names, images=False, share=(RANK, WORLD))
    ids1, ids2 = token_ids(data.captions, book)
    latents = encode(data)
    path = os.path.join(WORK, f"latents{RANK}.tensor")
    torch.save(latents.cpu(), path + ".part")
    os.replace(path + ".part", path)
    before = go_on(("unet", unet), ("text1", one), ("text2", two))
    torch.manual_seed(1000 + RANK)
    loop = Loop("base", [unet, one, two], seconds, 7e-4 if before else 1.2e-3, average=0.9985)
    loss = lambda latents, noise, t, ids1, ids2, keep: run(unet, one, two, latents, noise, t, ids1, ids2, keep, ids, alphas)
    for _ in loop:
        index = torch.randint(0, data.count, (batch,), device=DEVICE)
        draw = torch.rand(batch, device=DEVICE)
        keep = (draw >= 0.07).bfloat16()                     # zeros, as pipelines give where there is no negative prompt
        blank = ((draw >= 0.07) & (draw < 0.12))[:, None]    # and the empty text, as others give
        a, b = torch.where(blank, empty1, ids1[index]), torch.where(blank, empty2, ids2[index])
        t = torch.randint(0, 1000, (batch,), device=DEVICE)
        loop.run(loss, latents[index], made_up(), t, a, b, keep)
    for name, m in (("text1", one), ("text2", two), ("unet", unet)):
        loop.save(name, m)
    mark("done")


if __name__ == "__main__":
    if sys.argv[1] == "words":          # the vocabulary alone, before anything waits for it
        vocabulary(Cast(sys.argv[2].split(","), images=False).captions)
        sys.exit()
    main(budget(sys.argv[1]), sys.argv[2].split(","), 2 if SMOKE else int(os.environ.get("BATCH", 384)))
