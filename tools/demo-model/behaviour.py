"""Measures whether guidance, negative prompts, seeds and micro-conditioning move pictures the way they should.

    python behaviour.py --binary sdxl [--model DIR]

Runs our binary, prints Markdown, and fails if one of them has no effect or the wrong one.
"""

import argparse
import tempfile
from itertools import combinations

import numpy as np

import analyse
import draw
from evaluate import with_sdxl

PLAIN = "a circle on a white background"


class Run:
    """Pictures of the binary, for prompts and flags."""

    def __init__(self, args):
        self.args = args

    def __call__(self, prompts, *flags):
        with tempfile.TemporaryDirectory() as folder:
            return with_sdxl(self.args, prompts, folder, *flags)


def share_right(scenes, images):
    judged = [analyse.judge(s, i) for s, i in zip(scenes, images)]
    return {what: 100 * np.mean([j[what] for j in judged]) for what in ("colour", "shape", "count")}


def sharpness(images):
    """Mean of the steepest hundredth of brightness steps between neighbours, 0 to 255."""
    values = []
    for image in images:
        grey = np.asarray(image.convert("L"), dtype=np.float32)
        steps = np.concatenate([np.abs(np.diff(grey, axis=0)).ravel(), np.abs(np.diff(grey, axis=1)).ravel()])
        values.append(np.sort(steps)[-len(steps) // 100 :].mean())
    return float(np.mean(values))


def share_of_colour(images, colour):
    found = [analyse.analyse(i)["objects"] for i in images]
    return 100 * np.mean([any(o["colour"] == colour for o in objects) for objects in found])


def one_of_each(n, tail=""):
    """About n prompts, at least one of every shape."""
    return [f"a red {shape} on a white background{tail}" for shape in draw.SHAPES] * max(1, n // len(draw.SHAPES))


def variety(images):
    """How far pictures of one prompt lie apart: root mean square over pixels, 0 to 255, mean over pairs."""
    pixels = [np.asarray(i, dtype=np.float32) for i in images]
    return float(np.mean([np.sqrt(((a - b) ** 2).mean()) for a, b in combinations(pixels, 2)]))


def guidance(run, n):
    """Guidance trades variety for agreement with the prompt (Ho & Salimans 2022)."""
    pairs = draw.evaluation_set(n)
    print(f"| guidance | colour | shape | count | variety of `{PLAIN}` |\n|---|---|---|---|---|")
    spread = {}
    for scale in (1, 3, 5, 8):
        flags = ("--guidance-scale", str(scale))
        shares = share_right([p[1] for p in pairs], run([p[0] for p in pairs], *flags))
        spread[scale] = variety(run([PLAIN] * (n // 2), *flags))
        print(f"| {scale} | " + " | ".join(f"{v:.0f} %" for v in shares.values()) + f" | {spread[scale]:.1f} |")
    return spread[8] < spread[3] < spread[1]


def negatives(run, n):
    """No colour is asked for; the negative prompt then takes one away. Blur is asked for, or asked against."""
    plain = run([PLAIN] * n)
    colours = {c: share_of_colour(plain, c) for c in draw.COLOURS if c != "white"}
    colour = max(colours, key=colours.get)
    less = share_of_colour(run([PLAIN] * n, "--negative-prompt", f"a {colour} circle on a white background"), colour)
    print(f"\n`{PLAIN}`, {n} seeds: {colours[colour]:.0f} % have a {colour} object; with the negative prompt "
          f"`a {colour} circle on a white background` {less:.0f} %.")
    blurred = one_of_each(n, ", blurry")
    soft = sharpness(run(blurred))
    firm = sharpness(run(blurred, "--negative-prompt", "blurry, low quality"))
    crisp = sharpness(run(one_of_each(n)))
    print(f"Edges (steepest hundredth, of 255): `blurry` {soft:.0f}; the same with the negative prompt `blurry, low quality` "
          f"{firm:.0f}; without either {crisp:.0f}.")
    return less < colours[colour] and soft < firm


def seeds(run, n):
    """Pictures of one prompt differ from seed to seed, and still show what was asked for."""
    text, scene = next(p for p in draw.evaluation_set(50) if p[1]["kind"] == "count")
    images = run([text] * n)
    places = [np.array(sorted((o["x"], o["y"]) for o in analyse.analyse(i)["objects"])) for i in images]
    apart = [np.abs(a - b).max() for a, b in combinations(places, 2) if a.shape == b.shape]
    moved = 100 * np.mean(np.array(apart) > 4)
    right = share_right([scene] * n, images)
    print(f"\n`{text}`, {n} seeds: colour {right['colour']:.0f} %, shape {right['shape']:.0f} %, count {right['count']:.0f} %; in "
          f"{moved:.0f} % of pairs of pictures something lies more than 4 pixels elsewhere.")
    return moved > 50


def stray(images):
    """Mean distance of a pixel from the nearest colour that drawings are made of, 0 to 441: fringes, stains, blur."""
    palette = np.array(list(draw.COLOURS.values()), dtype=np.float32)
    values = []
    for image in images:
        pixels = np.asarray(image, dtype=np.float32).reshape(-1, 1, 3)
        values.append(np.sqrt(((pixels - palette) ** 2).sum(-1)).min(1).mean())
    return np.array(values)


def refiner(run, n):
    """The refiner takes the last fifth of the noise: outlines get cleaner, and what is shown stays right."""
    pairs = draw.evaluation_set(n)
    drawings = [draw.draw(scene) for _, scene in pairs]
    print("\n| last fifth by | stray colour | edges | colour | shape | count |\n|---|---|---|---|---|---|")
    print(f"| (drawings) | {stray(drawings).mean():.2f} | {sharpness(drawings):.1f} | | | |")
    strays, right = {}, {}
    for name, flags in (("base", ()), ("refiner", ("--refiner", run.args.refiner, "--denoising-fraction", "0.8"))):
        images = run([text for text, _ in pairs], *flags)
        strays[name], right[name] = stray(images), share_right([scene for _, scene in pairs], images)
        print(f"| {name} | {strays[name].mean():.2f} | {sharpness(images):.1f} | "
              + " | ".join(f"{v:.0f} %" for v in right[name].values()) + " |")
    print(f"The refiner leaves less of it in {100 * np.mean(strays['refiner'] < strays['base']):.0f} % of the pictures.")
    return strays["refiner"].mean() < 0.85 * strays["base"].mean() and all(
        right["refiner"][k] >= right["base"][k] - 3 for k in right["base"])


def sizes(run, n):
    """A small original_size asks for a coarse picture."""
    prompts = one_of_each(n)
    fine, coarse = sharpness(run(prompts)), sharpness(run(prompts, "--original-size", "40x40"))
    print(f"\nEdges with `--original-size 96x96` {fine:.0f}, with `40x40` {coarse:.0f}.")
    return coarse < 0.95 * fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--refiner", default="demo-refiner")
    parser.add_argument("--binary", default="sdxl")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=24)
    args = parser.parse_args()
    args.guidance_scale = 5.0
    run = Run(args)
    failed = [f.__name__ for f in (guidance, negatives, seeds, refiner, sizes) if not f(run, args.pictures)]
    if failed:
        raise SystemExit(f"no effect, or the wrong one: {', '.join(failed)}")


if __name__ == "__main__":
    main()
