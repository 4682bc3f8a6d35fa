"""Is identity kept? 240 people and 8 prompts that training never saw, with controls beside them, judged by B."""
import json
import os
import sys
import time
import torch
import torch.nn.functional as F
import base
import stack
from data import ATTRIBUTES, Cast, DEVICE, SMOKE, WORK, align, keypoint_images
from faces import best_keypoints
from identity import text_of
from loop import autocast, load, start

# A prompt and what it asks for.
PROMPTS = [
    ("illustration of a person smiling, in an orange striped sweater, with round glasses, at sunset", dict(style="plain", expression="smile", clothing="striped", tint="orange", glasses="round", background="sunset")),
    ("film noir portrait of a person in a black suit and tie, in a city at night", dict(style="noir", clothing="suit", tint="black", background="city", headwear="none", glasses="none")),
    ("watercolor painting, a person looking sad, wearing a green turtleneck, in a forest", dict(style="watercolor", expression="sad", clothing="turtleneck", tint="green", background="forest", headwear="none")),
    ("ink sketch of a person laughing, in a white t-shirt, in the mountains", dict(style="ink", expression="laugh", clothing="t-shirt", background="mountains", headwear="none")),
    ("comic book panel, a person looking angry, wearing a red hoodie, on the beach", dict(style="comic", expression="angry", clothing="hoodie", tint="red", background="beach", headwear="none")),
    ("pop art poster of a person looking surprised, in a yellow t-shirt, with headphones", dict(style="pop-art", expression="surprised", clothing="t-shirt", tint="yellow", headwear="headphones")),
    ("pixel art of a person in a purple hoodie, wearing a golden crown, in space", dict(style="pixel", clothing="hoodie", tint="purple", headwear="crown", background="space")),
    ("oil painting of a person with a calm face, wearing blue overalls, in a library", dict(style="oil", expression="neutral", clothing="overalls", tint="blue", background="room", headwear="none")),
]
# name: adapter scale, IdentityNet scale, whose identity, how many people
VARIANTS = {
    "text only": (0.0, 0.0, "own", 120),
    "adapter only": (1.0, 0.0, "own", 120),
    "IdentityNet only": (0.0, 1.0, "own", 120),
    "both": (1.0, 1.0, "own", 240),
    "both at 0.8": (0.8, 0.8, "own", 120),
    "both, no identity": (1.0, 1.0, "none", 120),
    "both, another's": (1.0, 1.0, "other", 120),
}


class Models:
    def __init__(self):
        self.vae = load("vae", stack.vae()).eval()
        self.factor = json.load(open(os.path.join(WORK, "vae.json")))["scaling_factor"]
        self.book, saved = base.vocabulary([])
        self.text = [load(n, m).eval() for n, m in zip(("text1", "text2"), stack.text_encoders(len(saved["vocabulary"])))]
        unet = stack.unet()
        self.net = stack.identity_net(unet)
        stack.plain_attention(self.net)
        adapter = stack.add_identity(unet)
        missing, unexpected = unet.load_state_dict(torch.load(os.path.join(WORK, "unet.pt"), weights_only=True), strict=False)
        assert not unexpected and all("_ip." in k for k in missing)
        adapter.load_state_dict(torch.load(os.path.join(WORK, "adapter.pt"), weights_only=True))
        self.unet = unet.to(DEVICE).to(memory_format=torch.channels_last).eval()
        self.net = load("identitynet", self.net).to(memory_format=torch.channels_last).eval()
        self.resampler = load("resampler", stack.Resampler()).eval()
        self.a, self.b = load("A", stack.EncoderA()).eval(), load("B", stack.JudgeB()).eval()
        self.detector = load("detector", stack.Detector()).eval()

    @torch.no_grad()
    def generate(self, prompts, faces, keypoints, noise, adapter=1.0, net=1.0, guidance=3.0, steps=20):
        from diffusers import EulerDiscreteScheduler
        sampler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1)
        sampler.set_timesteps(steps, device=DEVICE)
        b = len(prompts)
        unique = sorted(set(prompts))
        hidden, pooled = text_of(unique, self.book, *self.text)
        rows = torch.tensor([unique.index(p) for p in prompts], device=DEVICE)
        zero = lambda x: torch.cat([torch.zeros_like(x), x])
        with autocast():
            tokens = self.resampler(zero(faces)[:, None].float()).float()
        context = torch.cat([zero(hidden[rows].float()), tokens], 1)
        added = {"text_embeds": zero(pooled[rows].float()), "time_ids": base.TIME_IDS.to(DEVICE).expand(2 * b, 6)}
        hint = keypoint_images(keypoints).repeat(2, 1, 1, 1)
        stack.set_adapter_scale(self.unet, adapter)
        x = noise * sampler.init_noise_sigma
        for t in sampler.timesteps:
            both = sampler.scale_model_input(x, t).repeat(2, 1, 1, 1)
            with autocast():
                extra = {}
                if net > 0:
                    down, mid = self.net(both, t, tokens, hint, conditioning_scale=net, added_cond_kwargs=added, return_dict=False)
                    extra = dict(down_block_additional_residuals=down, mid_block_additional_residual=mid)
                out = self.unet(both, t, context, added_cond_kwargs=added, **extra).sample.float()
            free, bound = out.chunk(2)
            x = sampler.step(free + guidance * (bound - free), t, x).prev_sample
        with autocast():
            return self.vae.decode(x / self.factor).sample.float().clamp(-1, 1)

    @torch.no_grad()
    def judge(self, images, fallback):
        k, score = best_keypoints(self.detector, images, 320)
        k = torch.where((score > 0.4)[:, None, None], k, fallback)
        return F.normalize(self.b(align(images, k)).float()), score


def main(people, guidance, grid, chosen, file):
    start(3)
    test = Cast(["test"])
    m = Models()
    probe = load("probe", stack.Probe(test.classes)).eval()
    per = test.pictures
    first = torch.arange(test.people, device=DEVICE) * per
    reference = test.batch(first)
    judged = torch.cat([m.judge(test.batch(torch.arange(i, min(i + 256, test.count), device=DEVICE)), test.keypoints[i : i + 256])[0] for i in range(0, test.count, 256)])
    known = judged.view(test.people, per, -1)
    ref, others = known[:, 0], F.normalize(known[:, 1:].mean(1))
    with torch.no_grad():
        # What a user's photo goes through: detector, alignment, encoder.
        k, _ = best_keypoints(m.detector, reference, 640)
        faces = m.a(align(reference, k)).float()
    with torch.no_grad(), autocast():
        again = torch.cat([m.vae(test.batch(first[i : i + 64] + 3), sample_posterior=False).sample.float().clamp(-1, 1) for i in range(0, test.people, 64)])
    through = m.judge(again, test.keypoints[first + 3])[0]
    table = {}
    cosine = lambda a, b: (a * b).sum(-1)
    same = torch.einsum("pd,pnd->pn", ref, known[:, 1:])
    table["drawings"] = {"SimRef": same.mean().item(), "SimGT": (torch.einsum("pnd,pmd->pnm", known[:, 1:], known[:, 1:]).sum((1, 2)).mean().item() - (per - 1)) / ((per - 1) * (per - 2)), "top1": ((known[:, 3] @ ref.T).argmax(1) == torch.arange(test.people, device=DEVICE)).float().mean().item()}
    table["drawings through the VAE"] = {"SimRef": cosine(ref, through).mean().item(), "top1": ((through @ ref.T).argmax(1) == torch.arange(test.people, device=DEVICE)).float().mean().item()}
    names = test.info["attributes"]
    pictures = {}
    for name in chosen:
        adapter, net, whose, most = VARIANTS[name]
        began = time.time()
        n = min(people, most, test.people)
        who = torch.arange(n, device=DEVICE)
        face = {"own": faces[:n], "none": torch.zeros_like(faces[:n]), "other": faces[(who + n // 2) % n]}[whose]
        images = []
        for j, (prompt, _) in enumerate(PROMPTS):
            generator = torch.Generator(DEVICE).manual_seed(900 + j)
            noise = torch.randn(test.people, 4, 32, 32, generator=generator, device=DEVICE)[:n]
            images.append(m.generate([prompt] * n, face, test.keypoints[first[:n]], noise, adapter, net, guidance))
        images = torch.stack(images, 1)          # [n, 8, 3, 256, 256]
        pictures[name] = images[: max(grid, 1)]
        flat = images.flatten(0, 1)
        fallback = test.keypoints[first[:n]].repeat_interleave(len(PROMPTS), 0)
        parts = [m.judge(flat[i : i + 256], fallback[i : i + 256]) for i in range(0, len(flat), 256)]
        e = torch.cat([p[0] for p in parts]).view(n, len(PROMPTS), -1)
        found = torch.cat([p[1] for p in parts])
        to_ref = torch.einsum("pjd,pd->pj", e, ref[:n])
        to_others = torch.einsum("pjd,pnd->pjn", e, known[:n, 1:]).mean(-1)
        best = (e.flatten(0, 1) @ others.T).argmax(1).view(n, -1) == who[:, None]
        with torch.no_grad():
            read = [probe(flat[i : i + 256]) for i in range(0, len(flat), 256)]
        k = torch.cat([r[0] for r in read]).view(-1, 5, 2) * 256
        eye = (fallback[:, 1] - fallback[:, 0]).norm(dim=-1)
        error = ((k - fallback).norm(dim=-1).mean(-1) / eye)
        logits = torch.cat([r[1] for r in read]).split(probe.classes, 1)
        obeyed = {}
        for a, label in enumerate(ATTRIBUTES):
            hits = [(logits[a].argmax(1).view(n, -1)[:, j] == names[label].index(asked[label])).float().mean().item() for j, (_, asked) in enumerate(PROMPTS) if label in asked]
            if hits:
                obeyed[label] = round(sum(hits) / len(hits), 3)
        row = {"people": n, "SimRef": to_ref.mean().item(), "SimRef_p10": to_ref.flatten().quantile(0.1).item(), "SimGT": to_others.mean().item(), "top1": best.float().mean().item(),
               "found": (found > 0.4).float().mean().item(), "keypoint_error": error.mean().item(), "keypoint_error_median": error.median().item(), "obeyed": obeyed,
               "by_style": {asked["style"]: round(v.item(), 3) for (_, asked), v in zip(PROMPTS, to_ref.mean(0))},
               "top1_by_style": {asked["style"]: round(v.item(), 3) for (_, asked), v in zip(PROMPTS, best.float().mean(0))}}
        if whose == "other":
            row["SimOther"] = torch.einsum("pjd,pd->pj", e, ref[(who + n // 2) % n]).mean().item()
        row["seconds"] = round(time.time() - began, 1)
        table[name] = row
        print(name, json.dumps(row), flush=True)
    json.dump({"guidance": guidance, "steps": 20, "table": table}, open(os.path.join(WORK, file + ".json"), "w"), indent=1)
    if grid:
        from PIL import Image
        for name, images in pictures.items():          # a row a person: the reference, then the eight prompts
            rows = [torch.cat([reference[i], *images[i]], -1) for i in range(min(len(images), grid if name == "both" else 4))]
            sheet = ((torch.cat(rows, -2) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
            Image.fromarray(sheet).save(os.path.join(WORK, "grid-" + name.replace(",", "").replace(" ", "-").replace("'", "") + ".jpg"), quality=88)
    return table


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 240, float(sys.argv[2]) if len(sys.argv) > 2 else 3.0, 12,
         sys.argv[3].split(";") if len(sys.argv) > 3 else list(VARIANTS), sys.argv[4] if len(sys.argv) > 4 else "evaluation")
