"""Says what is in a picture by plain image analysis: background colour, and each object's colour and shape.

`python analyse.py` validates it on ground-truth drawings, where it must be right at least 99 times in 100.
"""

from functools import lru_cache

import numpy as np
from scipy import ndimage

import draw

NAMES = list(draw.COLOURS)
PALETTE = np.array([draw.COLOURS[n] for n in NAMES], dtype=np.float32)
SIDE = 24  # objects are compared as SIDE x SIDE masks
SMALLEST = 0.008  # of the picture's area: anything smaller is a speck


def nearest_colour(rgb):
    return NAMES[int(((PALETTE - rgb) ** 2).sum(1).argmin())]


def _fit(mask):
    """A mask cut to its bounding box and resampled (box average) to SIDE x SIDE."""
    ys, xs = np.where(mask > 0.5)
    cut = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    yi = np.linspace(0, cut.shape[0] - 1, SIDE)
    xi = np.linspace(0, cut.shape[1] - 1, SIDE)
    return ndimage.map_coordinates(cut.astype(np.float32), np.meshgrid(yi, xi, indexing="ij"), order=1)


@lru_cache(None)
def _templates():
    rows = {}
    for shape in draw.SHAPES:
        mask = np.asarray(draw.shape_mask(shape, 120.0), dtype=np.float32) / 255
        rows[shape] = _fit(mask)
    return rows


def _shape_of(mask):
    """Best template by intersection over union; a hole decides for the ring, and against the others."""
    fitted = _fit(mask)
    scores = {s: np.minimum(fitted, t).sum() / np.maximum(fitted, t).sum() for s, t in _templates().items()}
    return max(scores, key=scores.get)


def analyse(image):
    """{'background': name, 'objects': [{'colour', 'shape', 'x', 'y', 'area'}]} of an RGB image."""
    x = np.asarray(image, dtype=np.float32)[..., :3]
    h, w = x.shape[:2]
    border = np.concatenate([x[:2].reshape(-1, 3), x[-2:].reshape(-1, 3), x[:, :2].reshape(-1, 3), x[:, -2:].reshape(-1, 3)])
    votes = ((border[:, None] - PALETTE) ** 2).sum(2).argmin(1)
    background = NAMES[np.bincount(votes, minlength=len(NAMES)).argmax()]
    away = np.sqrt(((x - np.median(border[votes == NAMES.index(background)], 0)) ** 2).sum(2))
    # An edge pixel half covered by an object is half as far from the background as the object's own colour.
    labels, n = ndimage.label(away > 34)
    objects = []
    for k in range(1, n + 1):
        region = labels == k
        area = region.sum() / (h * w)
        if area < SMALLEST:
            continue
        inner = ndimage.binary_erosion(region, iterations=2 if area > 0.02 else 1)
        colour = np.median(x[inner if inner.sum() >= 4 else region], 0)
        half = 0.5 * np.median(away[inner if inner.sum() >= 4 else region])
        mask = np.where(ndimage.binary_dilation(region), away, 0)
        mask = np.clip(mask / (2 * half), 0, 1) if half > 0 else region
        ys, xs = np.where(region)
        objects.append({"colour": nearest_colour(colour), "shape": _shape_of(mask), "area": float(area),
                        "x": float(xs.mean()), "y": float(ys.mean())})
    return {"background": background, "objects": objects}


def judge(scene, image):
    """Which of background, colour, shape, count (and position, for pairs) a picture gets right, as booleans.

    Colour and shape are right when the objects found show exactly the colours and shapes asked for, the
    larger objects deciding for a scene of one kind of thing.
    """
    found = analyse(image)
    groups, objects = scene["groups"], found["objects"]
    result = {"background": found["background"] == scene["bg"],
              "count": len(objects) == sum(len(g["at"]) for g in groups)}
    for what in ("colour", "shape"):
        wanted = {g[what] for g in groups}
        if len(groups) == 1:
            weight = {}
            for o in objects:
                weight[o[what]] = weight.get(o[what], 0) + o["area"]
            result[what] = bool(weight) and {max(weight, key=weight.get)} == wanted
        else:
            result[what] = {o[what] for o in objects} == wanted
    if len(groups) == 2:
        a, b = groups

        def matches(o, g):
            return o["shape"] == g["shape"] and o["colour"] == g["colour"]

        first = [o for o in objects if matches(o, a)]
        second = [o for o in objects if matches(o, b)]
        axis = "x" if scene["relation"] == "left" else "y"
        result["position"] = bool(first and second) and first[0][axis] < second[0][axis]
    return result


def validate(n=1000):
    right = {}
    for text, scene in draw.evaluation_set(n, seed=77):
        for what, ok in judge(scene, draw.draw(scene)).items():
            right.setdefault(what, []).append(ok)
            if not ok:
                print("wrong", what, "-", text, analyse(draw.draw(scene)))
    return {k: sum(v) / len(v) for k, v in right.items()}


if __name__ == "__main__":
    shares = validate()
    for what, share in shares.items():
        print(f"{what:12s} {100 * share:6.2f} %")
    if min(shares.values()) < 0.99:
        raise SystemExit("the analysis itself is not good enough")
