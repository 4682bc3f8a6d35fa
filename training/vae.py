"""Stage 1: the autoencoder by 8. L1 + squared error + differences between neighbours; a little KL."""
import json
import os
import sys
import torch
import lean
import stack
from data import Cast, DEVICE, WORK, SMOKE, unit
from loop import Loop, RANK, autocast, budget, compiled, halve, mark, save, start, warm


def gradients(x):
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def losses(vae, images, noise):
    x = unit(images)
    mean, logvar = lean.encode(vae, x.to(noise.dtype))
    mean, logvar = mean.float(), logvar.float().clamp(-30, 20)
    z = mean + torch.exp(0.5 * logvar) * noise.float()
    y = lean.decode(vae, z.to(noise.dtype)).float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    edges = sum((a - b).abs().mean() for a, b in zip(gradients(x), gradients(y)))
    return (x - y).abs().mean() + 2 * (x - y).square().mean() + 0.4 * edges + 2e-5 * kl


@torch.no_grad()
def measure(vae, test):
    """Signal to noise on the test pictures, and the latents' spread, which gives the scaling factor."""
    errors, values = [], []
    with autocast():
        for i in range(0, min(test.count, 640), 32):
            x = test.batch(torch.arange(i, min(i + 32, test.count), device=DEVICE))
            z = vae.encode(x).latent_dist.mean
            errors.append(((x - vae.decode(z).sample.float().clamp(-1, 1)) / 2).square().mean((1, 2, 3)))
            values.append(z.float())
    errors, values = torch.cat(errors), torch.cat(values)
    psnr = -10 * errors.log10()
    return {"psnr": psnr.mean().item(), "psnr_of_mean_error": (-10 * errors.mean().log10()).item(),
            "by_style": {s: round(psnr[test.attributes[: len(psnr), 0] == i].mean().item(), 2) for i, s in enumerate(test.info["attributes"]["style"])},
            "scaling_factor": 1 / values.std().item(), "channel_std": values.std((0, 2, 3)).tolist(), "channel_mean": values.mean((0, 2, 3)).tolist()}


def main(seconds, names, batch):
    start()
    torch.manual_seed(5)
    vae = halve(stack.vae().to(DEVICE).to(memory_format=torch.channels_last))
    run = compiled(losses)
    draw = lambda: torch.randn(batch, 4, 32, 32, device=DEVICE, dtype=torch.bfloat16)
    warm(lambda: run(vae, torch.randint(0, 256, (batch, 256, 256, 3), dtype=torch.uint8, device=DEVICE), draw()), vae)
    data = Cast(names)
    torch.manual_seed(100 + RANK)
    # The probe is shown reconstructions before the autoencoder is finished.
    loop = Loop("vae", [vae], seconds, 1.5e-3, average=0.998, marks=[(0.75, lambda l: l.save("vae_early", vae))])
    for _ in loop:
        index = torch.randint(0, data.count, (batch,), device=DEVICE)
        loop.step(run(vae, data.images[index], draw()))
    loop.use_average()
    if RANK:
        return
    vae.eval()
    report = measure(vae, Cast(["test"]) if os.path.exists(os.path.join(WORK, "test")) else data)
    print(json.dumps(report), flush=True)
    json.dump(report, open(os.path.join(WORK, "vae.json"), "w"))
    save("vae", vae)
    mark("done")


if __name__ == "__main__":
    main(budget(sys.argv[1]), sys.argv[2].split(","), batch=2 if SMOKE else int(os.environ.get("BATCH", 32)))
