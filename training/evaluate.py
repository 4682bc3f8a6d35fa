"""Is identity kept? 240 people and 8 prompts that training never saw, with controls beside them, judged by B."""
import json
import os
import sys
import time
import torch
import torch.nn.functional as F
import base
import lean
import stack
from data import ATTRIBUTES, Cast, DEVICE, WORK, align, keypoint_images
from faces import best_keypoints
from identity import text_of
from loop import await_file, compiled, fill, halve, load, mark, start, state

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
    "text only": (0.0, 0.0, "own", 240),
    "adapter only": (1.0, 0.0, "own", 240),
    "IdentityNet only": (0.0, 1.0, "own", 240),
    "both": (1.0, 1.0, "own", 240),
    "both at 0.8": (0.8, 0.8, "own", 120),
    "both, no identity": (1.0, 1.0, "none", 120),
    "both, another's": (1.0, 1.0, "other", 120),
}
# The method's claim: the adapter's scale alone, and beside IdentityNet.
CURVE = {f"adapter {a:g}, IdentityNet {n:g}": (a, n, "own", 60) for n in (0.0, 1.0) for a in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)}
# For the choice of guidance, on people of their own (SET val).
GUIDED = {f"both, guidance {g:g}": (1.0, 1.0, "own", 60, g) for g in (1.5, 2.0, 2.5, 3.0, 4.0)}
BATCH = int(os.environ.get("PICTURES", 240))          # pictures made at a time
STEPS = 20


def one_step(unet, net, x, t, text, pooled, ids, tokens, hinted, adapter, scale):
    down, mid = lean.identity_net(net, x, t, tokens, pooled, ids, hinted)
    return lean.unet(unet, x, t, text, pooled, ids, tokens, adapter, ([d * scale for d in down], mid * scale)).float()


class Models:
    def __init__(self):
        last = lambda m: m.to(DEVICE).to(memory_format=torch.channels_last)
        unet = stack.unet()
        net = stack.identity_net(unet)
        stack.plain_attention(net)
        adapter = stack.add_identity(unet)
        self.unet, self.net, self.resampler = halve(last(unet), last(net), stack.Resampler().to(DEVICE))
        self.vae = last(stack.vae()).to(torch.bfloat16)
        self.run, self.decode = compiled(one_step), compiled(lambda z: lean.decode(self.vae, z).float().clamp(-1, 1))
        self.hint = compiled(lambda k: lean.hint(self.net, keypoint_images(k).to(torch.bfloat16)))
        self.factor, self.book = 1.0, None
        zero = lambda *shape: torch.zeros(BATCH, *shape, device=DEVICE)
        if DEVICE == "cuda":          # compile while others train
            self.sample(zero(77, stack.CONTEXT), zero(stack.TEXT2), zero(512), zero(5, 2) + 100, zero(4, 32, 32), steps=2)
            mark("compiled")
        await_file(os.environ.get("AFTER", "resampler.pt"))
        self.vae.load_state_dict(state("vae"))
        self.factor = json.load(open(os.path.join(WORK, "vae.json")))["scaling_factor"]
        self.book, saved = base.vocabulary([])
        self.text = [load(n, m).eval() for n, m in zip(("text1", "text2"), stack.text_encoders(len(saved["vocabulary"])))]
        for module, name in ((self.unet, "unet"), (adapter, "adapter"), (self.net, "identitynet"), (self.resampler, "resampler")):
            fill(module, state(name))
        self.a, self.b = load("A", stack.EncoderA()).eval(), load("B", stack.JudgeB()).eval()
        self.detector = load("detector", stack.Detector()).eval()

    @torch.no_grad()
    def sample(self, hidden, pooled, faces, keypoints, noise, adapter=1.0, net=1.0, guidance=3.0, steps=STEPS):
        from diffusers import EulerDiscreteScheduler
        sampler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1, prediction_type="v_prediction")
        sampler.set_timesteps(steps, device=DEVICE)
        half = torch.bfloat16
        zero = lambda x: torch.cat([torch.zeros_like(x), x]).to(half)
        tokens, text, pooled = self.resampler(zero(faces)[:, None]), zero(hidden), zero(pooled)
        ids = base.TIME_IDS.to(DEVICE).expand(len(text), 6)
        hinted = self.hint(keypoints).repeat(2, 1, 1, 1)
        adapter, net = (torch.tensor(v, device=DEVICE, dtype=half) for v in (adapter, net))
        x = noise * sampler.init_noise_sigma
        for t in sampler.timesteps:
            both = sampler.scale_model_input(x, t).repeat(2, 1, 1, 1).to(half).contiguous(memory_format=torch.channels_last)
            out = self.run(self.unet, self.net, both, t.expand(len(text)), text, pooled, ids, tokens, hinted, adapter, net)
            free, bound = out.chunk(2)
            x = sampler.step(free + guidance * (bound - free), t, x).prev_sample
        z = (x / self.factor).to(half)
        return torch.cat([self.decode(part) for part in z.split(min(80, len(z)))])

    def generate(self, prompts, faces, keypoints, noise, *scales):
        """Any number of pictures, in batches of one size."""
        unique = sorted(set(prompts))
        hidden, pooled = text_of(unique, self.book, *self.text)
        rows = torch.tensor([unique.index(p) for p in prompts], device=DEVICE)
        out = []
        for i in range(0, len(prompts), BATCH):
            pick = torch.arange(i, i + BATCH, device=DEVICE).clamp_max(len(prompts) - 1)
            images = self.sample(hidden[rows[pick]].float(), pooled[rows[pick]].float(), faces[pick], keypoints[pick], noise[pick], *scales)
            out.append(images[: len(prompts) - i])
        return torch.cat(out)

    @torch.no_grad()
    def judge(self, images, fallback):
        k, score = best_keypoints(self.detector, images, 320)
        k = torch.where((score > 0.4)[:, None, None], k, fallback)
        return F.normalize(self.b(align(images, k)).float()), score


def main(m, people, guidance, grid, chosen, file, of="test"):
    test = Cast([of])
    probe = load("probe", stack.Probe(test.classes)).eval()
    per = test.pictures
    first = torch.arange(test.people, device=DEVICE) * per
    own = torch.arange(test.people, device=DEVICE)
    reference = test.batch(first)
    judged = torch.cat([m.judge(test.batch(torch.arange(i, min(i + 256, test.count), device=DEVICE)), test.keypoints[i : i + 256])[0] for i in range(0, test.count, 256)])
    known = judged.view(test.people, per, -1)
    ref, others = known[:, 0], F.normalize(known[:, 1:].mean(1))
    with torch.no_grad():
        # What a user's photo goes through: detector, alignment, encoder.
        k, _ = best_keypoints(m.detector, reference, 640)
        faces = m.a(align(reference, k)).float()
        again = torch.cat([lean.decode(m.vae, lean.encode(m.vae, test.batch(first[i : i + 60] + 3).bfloat16())[0]).float().clamp(-1, 1) for i in range(0, test.people, 60)])
    through = m.judge(again, test.keypoints[first + 3])[0]
    table = {}
    cosine = lambda a, b: (a * b).sum(-1)
    same = torch.einsum("pd,pnd->pn", ref, known[:, 1:])
    styles = test.attributes[:, 0].view(test.people, per)[:, 1:]
    names = test.info["attributes"]
    top1 = lambda e, gallery: ((e @ gallery.T).argmax(-1) == own[: len(e)]).float().mean().item()
    table["drawings"] = {"SimRef": same.mean().item(), "SimGT": (torch.einsum("pnd,pmd->pnm", known[:, 1:], known[:, 1:]).sum((1, 2)).mean().item() - (per - 1)) / ((per - 1) * (per - 2)),
                         "top1": top1(known[:, 3], ref), "by_style": {s: round(same[styles == i].mean().item(), 3) for i, s in enumerate(names["style"])}}
    table["drawings through the VAE"] = {"SimRef": cosine(ref, through).mean().item(), "SimRef_same_drawings": cosine(ref, known[:, 3]).mean().item(), "top1": top1(through, ref)}
    with torch.no_grad():
        read = torch.cat([probe(test.batch(torch.arange(i, min(i + 256, test.count), device=DEVICE)))[0] for i in range(0, test.count, 256)]).view(-1, 5, 2) * 256
    table["drawings"]["keypoint_error"] = ((read - test.keypoints).norm(dim=-1).mean(-1) / (test.keypoints[:, 1] - test.keypoints[:, 0]).norm(dim=-1)).mean().item()
    print(json.dumps(table), flush=True)
    pictures = {}
    for name in chosen:
        adapter, net, whose, most, *own_guidance = {**VARIANTS, **CURVE, **GUIDED}[name]
        began = time.time()
        n = min(people, most, test.people)
        who = own[:n]
        face = {"own": faces[:n], "none": torch.zeros_like(faces[:n]), "other": faces[(who + n // 2) % n]}[whose]
        noise = torch.stack([torch.randn(test.people, 4, 32, 32, generator=torch.Generator(DEVICE).manual_seed(900 + j), device=DEVICE)[:n] for j in range(len(PROMPTS))])
        fallback = test.keypoints[first[:n]]
        prompts = [p for p, _ in PROMPTS for _ in range(n)]
        each = lambda v: v.repeat(len(PROMPTS), *[1] * (v.dim() - 1))
        images = m.generate(prompts, each(face), each(fallback), noise.flatten(0, 1), adapter, net, *(own_guidance or [guidance])).unflatten(0, (len(PROMPTS), n)).transpose(0, 1)
        if name in VARIANTS:
            pictures[name] = images[: max(grid, 1)]          # [n, 8, 3, 256, 256]
        flat = images.flatten(0, 1)
        fallback = fallback.repeat_interleave(len(PROMPTS), 0)
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
        error = (k - fallback).norm(dim=-1).mean(-1) / eye
        logits = torch.cat([r[1] for r in read]).split(probe.classes, 1)
        obeyed = {}
        for a, label in enumerate(ATTRIBUTES):
            hits = [(logits[a].argmax(1).view(n, -1)[:, j] == names[label].index(asked[label])).float().mean().item() for j, (_, asked) in enumerate(PROMPTS) if label in asked]
            if hits:
                obeyed[label] = round(sum(hits) / len(hits), 3)
        row = {"people": n, "SimRef": to_ref.mean().item(), "SimRef_p10": to_ref.flatten().quantile(0.1).item(), "SimGT": to_others.mean().item(), "top1": best.float().mean().item(),
               "found": (found > 0.4).float().mean().item(), "keypoint_error": error.mean().item(), "keypoint_error_median": error.median().item(),
               "obeyed": obeyed, "obeyed_mean": round(sum(obeyed.values()) / len(obeyed), 4),
               "by_style": {asked["style"]: round(v.item(), 3) for (_, asked), v in zip(PROMPTS, to_ref.mean(0))},
               "top1_by_style": {asked["style"]: round(v.item(), 3) for (_, asked), v in zip(PROMPTS, best.float().mean(0))}}
        if whose == "other":
            row["SimOther"] = torch.einsum("pjd,pd->pj", e, ref[(who + n // 2) % n]).mean().item()
        row["seconds"] = round(time.time() - began, 1)
        table[name] = row
        print(name, json.dumps(row), flush=True)
        json.dump({"guidance": guidance, "steps": STEPS, "people": of, "table": table}, open(os.path.join(WORK, file + ".json"), "w"), indent=1)
    if grid:
        from PIL import Image
        for name, images in pictures.items():          # a row a person: the reference, then the eight prompts
            rows = [torch.cat([reference[i], *images[i]], -1) for i in range(min(len(images), grid if name == "both" else 4))]
            sheet = ((torch.cat(rows, -2) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
            Image.fromarray(sheet).save(os.path.join(WORK, "grid-" + name.replace(",", "").replace(" ", "-").replace("'", "") + ".jpg"), quality=88)
    return table


def choose(m):
    """The guidance that keeps identity best among those that obey the text as well as any, on people of their own."""
    table = main(m, 60, 3.0, 0, list(GUIDED), "guidance", "val")
    rows = {GUIDED[n][4]: table[n] for n in GUIDED}
    obeys = max(r["obeyed_mean"] for r in rows.values()) - 0.02
    best = max((g for g, r in rows.items() if r["obeyed_mean"] >= obeys), key=lambda g: rows[g]["SimRef"])
    print("guidance", best, flush=True)
    path = os.path.join(WORK, "guidance")
    open(path + ".part", "w").write(str(best))
    os.replace(path + ".part", path)


if __name__ == "__main__":
    # evaluate.py PEOPLE GUIDANCE|choose|chosen "VARIANT;VARIANT;curve0;curve1" FILE
    people, guidance, chosen, file = sys.argv[1:5]
    chosen = [name for c in chosen.split(";") for name in ([n for n, v in CURVE.items() if v[1] == float(c[5:])] if c.startswith("curve") else [c])]
    start(3, together=False)
    models = Models()
    if guidance == "choose":
        choose(models)
    if guidance in ("choose", "chosen"):
        await_file("guidance", 60)
        guidance = open(os.path.join(WORK, "guidance")).read() if os.path.exists(os.path.join(WORK, "guidance")) else 3.0
    main(models, int(people), float(guidance), 12, chosen, file)
