"""Golden watermarks: pictures before and after diffusers' own watermarker, and the bits that
invisible-watermark's decoder then reads.

Inputs are bytes; the picture that is marked is `(byte / 127.5 - 1) * 1.1 + 0.003` in float32, so that it has
fractions, and values outside -1 to 1 as a VAE's output has.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion_xl.watermark import WATERMARK_BITS, StableDiffusionXLWatermarker
from imwatermark import WatermarkDecoder
from PIL import Image

OUT = Path(__file__).resolve().parents[2] / "golden" / "watermark"
SIZES = {"square": (256, 256), "wide": (328, 200)}


def picture(rng, width, height):
    """Soft colours with some texture: a few waves a channel, and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    channels = []
    for _ in range(3):
        waves = sum(np.sin(x * rng.uniform(-0.08, 0.08) + y * rng.uniform(-0.08, 0.08) + rng.uniform(0, 6)) for _ in range(3))
        channels.append(128 + 45 * waves + rng.normal(0, 3, (height, width)))
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    bits = {}
    for name, (width, height) in SIZES.items():
        before = picture(rng, width, height)
        x = (before.astype(np.float32) / np.float32(127.5) - 1) * np.float32(1.1) + np.float32(0.003)
        x = torch.from_numpy(x).permute(2, 0, 1)[None]
        marked = StableDiffusionXLWatermarker().apply_watermark(x)
        after = np.asarray(VaeImageProcessor().postprocess(marked, output_type="pil")[0])
        Image.fromarray(before).save(OUT / f"{name}.before.png", optimize=True)
        Image.fromarray(after).save(OUT / f"{name}.after.png", optimize=True)
        decoder = WatermarkDecoder("bits", len(WATERMARK_BITS))
        # The decoder takes OpenCV's channel order.
        bits[name] = {
            when: "".join(str(int(b)) for b in decoder.decode(np.ascontiguousarray(p[:, :, ::-1]), "dwtDct"))
            for when, p in (("before", before), ("after", after))
        }
    message = "".join(map(str, WATERMARK_BITS))
    (OUT / "bits.json").write_text(json.dumps({"message": message, "decoded": bits}, indent=1) + "\n")


if __name__ == "__main__":
    main()
