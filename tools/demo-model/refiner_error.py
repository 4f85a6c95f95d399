"""How much better than the base the refiner predicts the noise, at the time steps that it is given.

    python refiner_error.py [--base ../../crates/demo/base] [--refiner ../../crates/demo/refiner]

Both see the same noisy pictures and captions. Prints Markdown.
"""

import argparse
import os
import random
import tempfile

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

import draw
import models
import train

BANDS = ((0, 50), (50, 100), (100, 200), (200, 300))


class Pool(train.Pool):
    """Latents of new drawings, scaled as a checkpoint's VAE says; its encoder is the one that is set, not trained."""

    def _scale(self, root):
        return AutoencoderKL.load_config(os.path.join(root, "vae"))["scaling_factor"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    demo = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../crates/demo")
    parser.add_argument("--base", default=os.path.join(demo, "base"))
    parser.add_argument("--refiner", default=os.path.join(demo, "refiner"))
    parser.add_argument("--batches", type=int, default=40, help="of 32 pictures, for each band of time steps")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    def part(kind, root, name):
        return kind.from_pretrained(os.path.join(root, name), dtype=torch.float32).eval()

    one = part(CLIPTextModel, args.base, "text_encoder")
    two = part(CLIPTextModelWithProjection, args.base, "text_encoder_2")
    networks = {"base": part(UNet2DConditionModel, args.base, "unet"), "refiner": part(UNet2DConditionModel, args.refiner, "unet")}
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as work:
        tok = train.tokenizers(work)
    pool = Pool(args.base, 400, args.seed)
    acp = models.alphas_cumprod()
    errors = {(name, band): [] for name in networks for band in BANDS}
    with torch.no_grad():
        for _ in range(args.batches):
            z, scenes = pool.batch(32)
            ids_1, ids_2 = (torch.tensor(x) for x in tok([draw.caption(rng, s) for s in scenes]))
            hidden, pooled = train.encode_text(one, two, ids_1, ids_2)
            hidden_2, _ = train.encode_text(None, two, None, ids_2)
            ids = torch.tensor([draw.time_ids(s) for s in scenes], dtype=torch.float32)
            scored = torch.tensor([draw.time_ids(s)[:4] + [draw.aesthetic_score(s)] for s in scenes], dtype=torch.float32)
            told = {"base": (hidden, ids), "refiner": (hidden_2, scored)}
            for band in BANDS:
                t = torch.randint(*band, (32,))
                x, noise = train.noisy(z, t, acp)
                for name, unet in networks.items():
                    states, time_ids = told[name]
                    y = unet(x, t, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}).sample
                    errors[name, band].append((y - noise).square().mean().item())
    print("| time steps | base | refiner | lower by |\n|---|---|---|---|")
    for band in BANDS:
        base, refiner = (sum(errors[name, band]) / args.batches for name in networks)
        print(f"| {band[0]} to {band[1]} | {base:.4f} | {refiner:.4f} | {100 * (1 - refiner / base):.0f} % |")


if __name__ == "__main__":
    main()
