"""Input pictures and masks, and what Pillow and diffusers make of them:
`refined/*.png` and `refined/pixels.safetensors`."""

import numpy as np
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw

from files import GOLDEN, write_tensors
from weights import normal

FOLDER = GOLDEN / "refined"

RESIZE_MODES = {"stretch": "default", "crop": "crop", "pad": "fill"}  # ours: diffusers'


def picture(name: str, width: int, height: int) -> Image.Image:
    """Soft colours with some grain, so that filters have something to get wrong."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / (5 + 2 * c) + c) * np.cos(y / (7 - c) - c) for c in range(3)]
    values = 128 + 90 * np.stack(waves, axis=-1) + 12 * normal(30, name, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def mask(width: int, height: int) -> Image.Image:
    """White where something new is wanted: an ellipse off the centre, with soft corners beside it."""
    out = Image.new("L", (width, height))
    draw = ImageDraw.Draw(out)
    draw.ellipse((width * 0.3, height * 0.2, width * 0.8, height * 0.7), fill=255)
    draw.rectangle((width * 0.1, height * 0.75, width * 0.25, height * 0.9), fill=140)
    return out


PICTURES = {
    "square": picture("square", 64, 64),
    "wide": picture("wide", 80, 48),
    "odd": picture("odd", 67, 45),
    "large": picture("large", 96, 80),
}
MASKS = {f"{name}_mask": mask(*image.size) for name, image in PICTURES.items() if name != "odd"}


def make_pixels() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, image in {**PICTURES, **MASKS}.items():
        image.save(FOLDER / f"{name}.png", optimize=True)
    processor = VaeImageProcessor()
    tensors = {}
    for mode, theirs in RESIZE_MODES.items():
        for width, height in ((48, 64), (104, 40), (64, 48)):
            resized = processor.resize(PICTURES["odd"], height, width, resize_mode=theirs)
            tensors[f"resize.{mode}.{width}x{height}"] = np.array(resized)
    for radius in (0.7, 2, 5.5):
        tensors[f"blur.{radius}"] = np.array(processor.blur(MASKS["wide_mask"], radius))
    for padding in (0, 4, 100):
        for width, height in ((64, 64), (128, 48), (32, 96)):
            region = processor.get_crop_region(MASKS["wide_mask"], width, height, pad=padding)
            tensors[f"region.{padding}.{width}x{height}"] = np.array(region, dtype=np.int64)
    write_tensors(FOLDER / "pixels.safetensors", tensors)
