"""Stage 1: the autoencoder by 8. L1 + squared error + differences between neighbours; a little KL."""
import json
import os
import sys
import torch
import torch.nn.functional as F
import stack
from data import Cast, DEVICE, WORK, SMOKE
from loop import Loop, RANK, autocast, budget, compiled, save, share, start, warm


def gradients(x):
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


class Trainer(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, x):
        posterior = self.vae.encode(x).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        y = self.vae.decode(z.to(x.dtype)).sample.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        edges = sum((a - b).abs().mean() for a, b in zip(gradients(x), gradients(y)))
        return (x - y).abs().mean() + 2 * (x - y).square().mean() + 0.4 * edges + 2e-5 * kl, kl


def main(seconds, names, batch=32):
    start()
    vae = stack.vae().to(DEVICE).to(memory_format=torch.channels_last)
    trainer = compiled(Trainer(vae))
    warm(lambda: trainer(torch.randn(batch, 3, 256, 256, device=DEVICE).to(memory_format=torch.channels_last))[0], vae)
    data = Cast(names)
    share(vae)
    torch.manual_seed(100 + RANK)
    loop = Loop("vae", [vae], seconds, 1.5e-3, average=0.998)
    for _ in loop:
        index = torch.randint(0, data.count, (batch,), device=DEVICE)
        x = data.batch(index).to(memory_format=torch.channels_last)
        with autocast():
            loss, kl = trainer(x)
        loop.step(loss)
    loop.use_average()
    if RANK:
        return
    vae.eval()
    # Spread of the latents gives the scaling factor; quality is measured on the test people where they are at hand.
    test = Cast(["test"]) if os.path.exists(os.path.join(WORK, "test")) else data
    errors, values = [], []
    with torch.no_grad(), autocast():
        for i in range(0, min(test.count, 640), 32):
            x = test.batch(torch.arange(i, min(i + 32, test.count), device=DEVICE))
            z = vae.encode(x).latent_dist.mean
            y = vae.decode(z).sample.float().clamp(-1, 1)
            errors.append(((x - y) / 2).square().mean((1, 2, 3)))
            values.append(z.float())
    errors, values = torch.cat(errors), torch.cat(values)
    psnr = (-10 * errors.log10())
    by_style = {s: round(psnr[test.attributes[: len(psnr), 0] == i].mean().item(), 2) for i, s in enumerate(test.info["attributes"]["style"])}
    report = {"psnr": psnr.mean().item(), "psnr_of_mean_error": (-10 * errors.mean().log10()).item(), "by_style": by_style,
              "scaling_factor": 1 / values.std().item(), "channel_std": values.std((0, 2, 3)).tolist(), "channel_mean": values.mean((0, 2, 3)).tolist()}
    print(json.dumps(report), flush=True)
    json.dump(report, open(os.path.join(WORK, "vae.json"), "w"))
    save("vae", vae)


if __name__ == "__main__":
    main(budget(sys.argv[1]), sys.argv[2].split(","), batch=2 if SMOKE else int(os.environ.get("BATCH", 32)))
