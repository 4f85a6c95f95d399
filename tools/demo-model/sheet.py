"""Makes the README's contact sheet with our own binary: `python sheet.py --binary sdxl --output ../../docs/demo.png`.

Nothing is picked by hand: one seed for all, every picture shown.
"""

import argparse
import os
import tempfile
import textwrap

from PIL import Image, ImageDraw, ImageFont

from evaluate import with_sdxl

PROMPTS = [
    "a red circle to the left of a blue star on a yellow background",
    "a happy face on a teal background",
    "a red house and two green trees on green hills on a sunny day",
    "three pink hearts on a white background",
    "a large orange fish on a blue background",
    "a boat on the sea at sunset",
    "a white star above a pink ring on a purple background",
    "two red mushrooms on a green background",
    "snowy hills at night with three trees",
    "a striped blue heart on a yellow background",
    "a yellow sun on a blue background",
    "the desert at sunset",
    "two yellow stars on a black background",
    "a flower on a pink background",
    "a white house on a meadow at night",
    "a purple diamond to the right of an orange square on a white background",
    "a small black cross on an orange background",
    "two boats on the ocean by day",
]
CELL, LABEL, GAP, COLUMNS = 168, 46, 14, 6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--binary", default="sdxl")
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    args.batch = len(PROMPTS)
    with tempfile.TemporaryDirectory() as folder:
        seeds = ",".join([str(args.seed)] * len(PROMPTS))
        images = with_sdxl(args, PROMPTS, folder, "--guidance-scale", str(args.guidance_scale), "--seed", seeds)
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, rows * (CELL + LABEL + GAP) + GAP), (252, 250, 246))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for i, (text, image) in enumerate(zip(PROMPTS, images)):
        x = GAP + i % COLUMNS * (CELL + GAP)
        y = GAP + i // COLUMNS * (CELL + LABEL + GAP)
        sheet.paste(image.resize((CELL, CELL), Image.LANCZOS), (x, y))
        draw.multiline_text((x, y + CELL + 5), "\n".join(textwrap.wrap(text, 29)), fill=(70, 66, 60), font=font, spacing=2)
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    sheet.save(args.output, optimize=True)


if __name__ == "__main__":
    main()
