"""Trains the miniature SDXL: `python train.py --work DIR`. Stop it at any time; run it again to go on.

Stages, in order: `vae` (its decoder); `text` (the text encoders learn to name what a caption says, minutes that save
the UNet hours); `base` (UNet and both text encoders, jointly); `refiner`. `vae` may also run beside the others, or again later.
"""

import argparse
import os
import random

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

import draw
import models
from stages import Stage, load_ema, rank, workers
from tokenizer import Tokenizers, write_tokenizer

AUTOCAST = ("cpu", torch.bfloat16)


def seed_of(base, stage):
    """A run that goes on draws new pictures, and so does each process."""
    return base + stage.step * 64 + rank()


# ---------------------------------------------------------------- VAE

def pictures(rng, n, bucket):
    """n drawn pictures of one size as a float tensor in [-1, 1], with their scenes."""
    scenes = [draw.sample_scene(rng, bucket=bucket) for _ in range(n)]
    x = torch.from_numpy(np.stack([np.asarray(draw.draw(s)) for s in scenes]))
    return (x.permute(0, 3, 1, 2).float() / 127.5 - 1).to(memory_format=torch.channels_last), scenes


def _edges(x):
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def _picture_loss(y, x):
    l1 = (y - x).abs().mean()
    edge = sum((a - b).abs().mean() for a, b in zip(_edges(y), _edges(x)))
    return l1, edge


def train_vae(work, minutes):
    """Trains the decoder: L1 on pixels, on their differences (edges) and on coarse colours.

    Always whole pictures, because group norms see the statistics of a whole picture. The encoder is set
    (see models.py), so the UNets can be trained before, or at the same time. Latents get a little noise,
    as a UNet's latents have.
    """
    vae = models.new_vae().to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    models.keep_constants(vae.decoder)
    levels = []  # what each up block makes of the picture, at 1/4, 1/2 and whole size
    for block in vae.decoder.up_blocks[:3]:
        block.register_forward_hook(lambda module, inputs, output: levels.append(output[:, :3]))
    stage = Stage(work, "vae", minutes, {"vae": vae}, lr=6e-4, ema_decay=0.995)
    rng = random.Random(seed_of(1000, stage))
    torch.manual_seed(seed_of(1000, stage))
    while stage.running():
        w, h = draw._pick(rng, draw.BUCKETS)
        half = rng.random() < 0.5  # four times as cheap, and edges are edges
        x, _ = pictures(rng, 16 if half else 6, (w // 2, h // 2) if half else (w, h))
        levels.clear()
        with torch.autocast(*AUTOCAST):
            with torch.no_grad():
                z = vae.encode(x).latent_dist.sample()
                z = z + 0.06 * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)
            y = vae.decode(z).sample.float()
        l1, edge = _picture_loss(y, x)
        coarse = (F.avg_pool2d(y, 8) - F.avg_pool2d(x, 8)).abs().mean()
        steps = 0.0  # each doubling is a small task of its own: colours stay in the stream's first channels
        for level in levels:
            target = F.avg_pool2d(x, x.shape[-1] // level.shape[-1])
            a, b = _picture_loss(level.float(), target)
            steps = steps + a + 0.5 * b
        shown = {"l1": l1.item(), "edge": edge.item(), "coarse": coarse.item(), "steps": steps.item()}
        stage.update(l1 + 0.5 * edge + 0.5 * coarse + 0.4 * steps, **({} if half else shown))


# ---------------------------------------------------------------- text

def tokenizers(work):
    one, two = os.path.join(work, "tokenizer"), os.path.join(work, "tokenizer_2")
    if not os.path.exists(one):
        write_tokenizer(one, "<|endoftext|>")
        write_tokenizer(two, "!")
    return Tokenizers(one, two)


def encode_text(encoder_1, encoder_2, ids_1, ids_2):
    """Conditioning as the pipeline makes it: penultimate hidden states side by side, and encoder 2's pooled."""
    out_2 = encoder_2(ids_2, output_hidden_states=True)
    hidden_2 = out_2.hidden_states[-2]
    if encoder_1 is None:
        return hidden_2, out_2.text_embeds
    hidden_1 = encoder_1(ids_1, output_hidden_states=True).hidden_states[-2]
    return torch.cat([hidden_1, hidden_2], -1), out_2.text_embeds


def _attributes(scene):
    """What a caption is about, as class numbers: (what, number of classes) per slot of SLOTS."""
    colours, things = list(draw.COLOURS), draw.SHAPES + draw.OBJECTS
    row = [1 + list(draw.KINDS).index(scene["kind"])]
    row.append(1 + colours.index(scene["bg"]) if scene.get("bg") else 0)
    row.append(1 + colours.index(scene["bg2"]) if scene.get("bg2") else 0)
    row.append(["left", "above", "right", "top", "bottom"].index(scene["relation"]) + 1 if scene.get("relation") else 0)
    row.append(1 + list(draw.SKIES).index(scene["time"]) if "time" in scene else 0)
    row.append(1 + list(draw.GROUNDS).index(scene["ground"]) if "ground" in scene else 0)
    groups = scene.get("groups") or [
        {"at": [0] * n, "shape": name, "colour": colour, "style": "flat", "size": None}
        for name, n, colour in scene["things"]
    ]
    for g in (groups + [None, None])[:2]:
        row += [0] * 5 if g is None else [
            len(g["at"]), 1 + things.index(g["shape"]), 1 + colours.index(g["colour"]),
            1 + ["flat", "outline", "striped", "dotted"].index(g["style"]), {"small": 1, None: 2, "large": 3}[g["size"]],
        ]
    return row


SLOTS = [6, 11, 11, 6, 4, 5] + 2 * [4, 17, 11, 5, 4]


class _Reader(nn.Module):
    """Answers what a caption says, from the hidden states (attention with one query a slot) and the pooled vector."""

    def __init__(self):
        super().__init__()
        width = models.TEXT_1 + models.TEXT_2
        self.queries = nn.Parameter(torch.randn(len(SLOTS), width) * 0.1)
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in SLOTS)
        self.pooled = nn.Linear(models.TEXT_2, sum(SLOTS))

    def forward(self, hidden, pooled):
        scores = torch.softmax(self.queries @ hidden.transpose(1, 2) * 0.2, -1)
        seen = scores @ hidden
        return [h(seen[:, i]) for i, h in enumerate(self.heads)], self.pooled(pooled).split(SLOTS, -1)


def new_encoders(vocab):
    one, two = models.new_text_encoder(vocab), models.new_text_encoder_2(vocab)
    for m in (one, two):
        m.config._attn_implementation = "eager"
        m.train()
    return one, two


def train_text(work, minutes):
    tok = tokenizers(work)
    one, two = new_encoders(tok.size)
    reader = _Reader()
    stage = Stage(work, "text", minutes, {"text_encoder": one, "text_encoder_2": two, "reader": reader}, lr=1e-3, ema_decay=0.99)
    rng = random.Random(seed_of(3000, stage))
    while stage.running():
        scenes = [draw.sample_scene(rng) for _ in range(96)]
        ids_1, ids_2 = (torch.tensor(x) for x in tok([draw.caption(rng, s) for s in scenes]))
        longest = 3 + int((ids_1 != tok.end).sum(1).max())
        longest += rng.randint(0, min(10, 77 - longest))
        target = torch.tensor([_attributes(s) for s in scenes])
        with torch.autocast(*AUTOCAST):
            hidden, pooled = encode_text(one, two, ids_1[:, :longest], ids_2[:, :longest])
            a, b = reader(hidden, pooled)
        from_hidden = sum(F.cross_entropy(y.float(), target[:, i]) for i, y in enumerate(a))
        from_pooled = sum(F.cross_entropy(y.float(), target[:, i]) for i, y in enumerate(b))
        stage.update(from_hidden + from_pooled, hidden=from_hidden.item(), pooled=from_pooled.item())


# ---------------------------------------------------------------- latents

class Pool:
    """Encoded pictures, by size, used several times each and replaced bit by bit."""

    def __init__(self, work, count, seed):
        self.vae = models.new_vae().to(memory_format=torch.channels_last).eval()
        self.rng = random.Random(seed)
        self.scale = self._scale(work)
        self.buckets = {b: {"mean": [], "std": [], "scene": []} for b in draw.BUCKETS}
        for b, share in draw.BUCKETS.items():
            chunks = [self._encode(128, b) for _ in range(max(1, round(count * share / 128)))]
            self.buckets[b] = {"mean": torch.cat([c[0] for c in chunks]), "std": torch.cat([c[1] for c in chunks]),
                               "scene": [s for c in chunks for s in c[2]]}

    def _scale(self, work):
        """scaling_factor: one over the standard deviation of the latents, measured once and kept."""
        path = os.path.join(work, "scaling_factor.txt")
        if not os.path.exists(path):
            z = torch.cat([self._moments(64, b)[0].flatten() for b in list(draw.BUCKETS) * 4])
            with open(path, "w") as f:
                f.write(f"{1 / z.std().item():.5f}\n")
        return float(open(path).read())

    @torch.no_grad()
    def _moments(self, n, bucket):
        x, scenes = pictures(self.rng, n, bucket)
        with torch.autocast(*AUTOCAST):
            posterior = self.vae.encode(x).latent_dist
        return posterior.mean.float(), posterior.std.float(), scenes

    def _encode(self, n, bucket):
        mean, std, scenes = self._moments(n, bucket)
        return mean * self.scale, std * self.scale, scenes

    def refresh(self, n=64):
        b = draw._pick(self.rng, draw.BUCKETS)
        pool = self.buckets[b]
        mean, std, scenes = self._encode(n, b)
        for i, k in enumerate(self.rng.sample(range(len(pool["scene"])), n)):
            pool["mean"][k], pool["std"][k], pool["scene"][k] = mean[i], std[i], scenes[i]

    def batch(self, n):
        pool = self.buckets[draw._pick(self.rng, draw.BUCKETS)]
        ks = self.rng.sample(range(len(pool["scene"])), n)
        z = pool["mean"][ks]
        return z + pool["std"][ks] * torch.randn_like(z), [pool["scene"][k] for k in ks]


def noisy(z, t, acp):
    noise = torch.randn_like(z)
    a = acp[t].view(-1, 1, 1, 1)
    return (a.sqrt() * z + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last), noise


# ---------------------------------------------------------------- UNets

def train_base(work, minutes, unique=11, repeats=3):
    """Epsilon prediction with min-SNR weights (gamma 5), drawn mostly by importance; 10 % of prompts dropped."""
    tok = tokenizers(work)
    one, two = new_encoders(tok.size)
    if not os.path.exists(os.path.join(work, "base.pt")):
        load_ema(work, "text", text_encoder=one, text_encoder_2=two)
    unet = models.new_base_unet().to(memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())  # faster here than PyTorch's fused attention on a CPU
    stage = Stage(work, "base", minutes, {"unet": unet, "text_encoder": one, "text_encoder_2": two}, lr=1.2e-3, ema_decay=0.998,
                  lr_scale={"text_encoder": 0.3, "text_encoder_2": 0.3})
    torch.manual_seed(seed_of(4000, stage))
    rng = random.Random(seed_of(4000, stage))
    pool = Pool(work, 2500 // workers(), seed_of(4000, stage))
    acp = models.alphas_cumprod()
    # min-SNR weighting (gamma 5) by importance: what would be weighted low is drawn seldom. The noisiest steps,
    # which only decide the background's colour and are learnt first, are drawn seldom too.
    density = (5 * (1 - acp) / acp).clamp(max=1) * torch.linspace(1.0, 0.0, 1000).sub(0.1).mul(2.5).clamp(0.25, 1) + 0.05
    cumulative = torch.cumsum(density / density.sum(), 0)
    while stage.running():
        z, scenes = pool.batch(unique)
        texts = ["" if rng.random() < 0.03 else draw.caption(rng, s) for s in scenes]
        ids_1, ids_2 = (torch.tensor(x) for x in tok(texts))
        ids = torch.tensor([draw.time_ids(s) for s in scenes], dtype=torch.float32).repeat(repeats, 1)
        z = z.repeat(repeats, 1, 1, 1)
        n = len(z)
        u = (torch.randperm(n) + torch.rand(n)) / n
        t = torch.searchsorted(cumulative, u).clamp(max=999)
        x, noise = noisy(z, t, acp)
        with torch.autocast(*AUTOCAST):
            hidden, pooled = encode_text(one, two, ids_1, ids_2)
            keep = (torch.rand(n) >= 0.1).float()
            hidden = hidden.repeat(repeats, 1, 1) * keep.view(-1, 1, 1)
            pooled = pooled.repeat(repeats, 1) * keep.view(-1, 1)
            y = unet(x, t, hidden, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample
        error = (y.float() - noise).square().mean((1, 2, 3))
        stage.update(error.mean())
        if stage.step % 12 == 0:
            pool.refresh()


def train_refiner(work, minutes, unique=16, repeats=2):
    """The low-noise end only, from the base's weights; encoder 2 is the base's, frozen; conditioned on an aesthetic score."""
    tok = tokenizers(work)
    _, two = new_encoders(tok.size)
    load_ema(work, "base", text_encoder_2=two)
    two.requires_grad_(False)
    base = models.new_base_unet()
    load_ema(work, "base", unet=base)
    unet = models.new_refiner_unet(base).to(memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())
    stage = Stage(work, "refiner", minutes, {"unet": unet}, lr=8e-4)
    torch.manual_seed(seed_of(5000, stage))
    rng = random.Random(seed_of(5000, stage))
    pool = Pool(work, 4000 // workers(), seed_of(5000, stage))
    acp = models.alphas_cumprod()
    while stage.running():
        z, scenes = pool.batch(unique)
        texts = ["" if rng.random() < 0.1 else draw.caption(rng, s) for s in scenes]
        _, ids_2 = (torch.tensor(x) for x in tok(texts))
        ids = torch.tensor([draw.time_ids(s)[:4] + [draw.aesthetic_score(s)] for s in scenes]).repeat(repeats, 1)
        z = z.repeat(repeats, 1, 1, 1)
        n = len(z)
        t = ((torch.randperm(n) + torch.rand(n)) / n * 300).long()
        x, noise = noisy(z, t, acp)
        with torch.autocast(*AUTOCAST):
            with torch.no_grad():
                hidden, pooled = encode_text(None, two, None, ids_2)
            y = unet(x, t, hidden.repeat(repeats, 1, 1),
                     added_cond_kwargs={"text_embeds": pooled.repeat(repeats, 1), "time_ids": ids}).sample
        error = (y.float() - noise).square().mean((1, 2, 3))
        stage.update(error.mean())
        if stage.step % 12 == 0:
            pool.refresh()


STAGES = {"vae": (train_vae, 20), "text": (train_text, 4), "base": (train_base, 120), "refiner": (train_refiner, 20)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder for checkpoints and progress.log")
    parser.add_argument("--minutes", default="", help="wall-clock minutes in total for a stage, e.g. vae=12,base=90")
    parser.add_argument("--stages", default=",".join(STAGES), help="stages to run, in order (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="processes that train together (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads in each (default: %(default)s)")
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    tokenizers(args.work)
    if args.processes == 1:
        run(0, args)
    else:
        args.port = 20000 + os.getpid() % 20000
        torch.multiprocessing.spawn(run, (args,), nprocs=args.processes)


def run(rank_, args):
    torch.set_num_threads(args.threads)
    if args.processes > 1:
        os.setsid()  # Linux schedules by session: a process of its own standing
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{args.port}", rank=rank_, world_size=args.processes)
    minutes = {k: v[1] for k, v in STAGES.items()}
    minutes.update((k, float(v)) for k, v in (p.split("=") for p in args.minutes.split(",") if p))
    for name in args.stages.split(","):
        STAGES[name][0](args.work, minutes[name])


if __name__ == "__main__":
    main()
