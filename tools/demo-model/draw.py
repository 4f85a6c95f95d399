"""Draws captioned pictures of simple scenes, endlessly and without any downloaded data.

A *scene* is a plain dict (JSON-able) that says everything about a picture; `draw` turns it into
pixels and `caption` into one of many possible phrasings. `held_out` says whether a scene contains a
combination of background, colour and shape that training must never see; `sample_scene` obeys it.
"""

import hashlib
import math
import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

# The ten colours, exactly. They are far enough apart that analysing a picture can decide by distance.
COLOURS = {
    "red": (219, 50, 54),
    "orange": (245, 139, 31),
    "yellow": (252, 214, 59),
    "green": (58, 163, 86),
    "teal": (64, 196, 200),
    "blue": (48, 96, 214),
    "purple": (128, 66, 176),
    "pink": (250, 153, 192),
    "white": (250, 250, 246),
    "black": (33, 34, 42),
}
SHAPES = ["circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross"]
OBJECTS = ["house", "tree", "sun", "face", "fish", "flower", "mushroom", "boat"]
# Colour an object has when the caption does not name one.
NATURAL = {"tree": "green", "sun": "yellow", "face": "yellow", "mushroom": "red"}
PLURAL = {"house": "houses", "cross": "crosses", "fish": "fish"}
BROWN, CREAM, DARK = (134, 88, 56), (253, 240, 213), (52, 46, 60)
# (width, height) in pixels and how often each is drawn.
BUCKETS = {(96, 96): 0.86, (128, 64): 0.07, (64, 128): 0.07}
SUPERSAMPLE = 4


# ---------------------------------------------------------------- hold-out rule

def held_out(background, colour, shape):
    """True for about one in ten (background, colour, shape) triples: those are for evaluation only."""
    digest = hashlib.sha256(f"{background}|{colour}|{shape}".encode()).digest()
    return digest[0] < 26


def scene_held_out(scene):
    """True if any group of the scene is a held-out combination. Landscapes have no such groups."""
    return any(held_out(scene["bg"], g["colour"], g["shape"]) for g in scene.get("groups", []))


# ---------------------------------------------------------------- shapes as polygons

def _regular(n, start, radii=(1.0,)):
    return [
        (radii[i % len(radii)] * math.cos(start + 2 * math.pi * i / n),
         radii[i % len(radii)] * math.sin(start + 2 * math.pi * i / n))
        for i in range(n)
    ]


def _heart():
    points = []
    for i in range(48):
        t = 2 * math.pi * i / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -(y + 2.5) / 17))
    return points


_ARM = 0.32
OUTLINES = {
    "circle": _regular(64, 0.0, (0.95,)),
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0, -0.95), (1.0, 0.8), (-1.0, 0.8)],
    "star": [(x, y + 0.06) for x, y in _regular(10, -math.pi / 2, (1.08, 0.45))],
    "heart": _heart(),
    "diamond": [(0, -1.05), (0.74, 0), (0, 1.05), (-0.74, 0)],
    "cross": [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
              (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
    "ring": _regular(64, 0.0, (0.98,)),
}


def shape_mask(shape, radius, style="flat"):
    """Mask ('L' image of side 2.2 * radius, supersampled pixels) of one shape."""
    side = max(4, int(round(2.2 * radius)))
    c = side / 2
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    points = [(c + x * radius, c + y * radius) for x, y in OUTLINES[shape]]
    pen.polygon(points, fill=255)
    if shape == "ring":
        r = 0.52 * radius
        pen.ellipse((c - r, c - r, c + r, c + r), fill=0)
    elif style == "outline":
        edge = Image.new("L", mask.size, 0)
        width = max(4, int(0.42 * radius))
        ImageDraw.Draw(edge).line(points + points[:2], fill=255, width=width, joint="curve")
        mask = ImageChops.multiply(mask, edge)
    return mask


def _pattern(style, side, radius, angle):
    """Mask of the lighter parts of a striped or dotted filling."""
    pattern = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(pattern)
    step = max(10, 0.5 * radius)
    if style == "striped":
        for k in np.arange(-side, 2 * side, step):
            dx = side if angle else 0
            pen.line([(k, 0), (k + dx, side)], fill=255, width=int(step * 0.42))
    else:
        step *= 1.1
        for row in range(-1, int(side / step) + 2):
            for col in range(-1, int(side / step) + 2):
                x, y = (col + 0.5 * (row % 2)) * step, row * step
                r = 0.27 * step
                pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return pattern


# ---------------------------------------------------------------- simple objects

class _Pen:
    """Draws in the unit square [-1, 1] around (cx, cy), in supersampled pixels."""

    def __init__(self, image, cx, cy, r):
        self.draw, self.cx, self.cy, self.r = ImageDraw.Draw(image), cx, cy, r

    def poly(self, points, fill):
        self.draw.polygon([(self.cx + x * self.r, self.cy + y * self.r) for x, y in points], fill=fill)

    def rect(self, x0, y0, x1, y1, fill):
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def disc(self, x, y, rx, fill, ry=None):
        ry = rx if ry is None else ry
        self.draw.ellipse((self.cx + (x - rx) * self.r, self.cy + (y - ry) * self.r,
                           self.cx + (x + rx) * self.r, self.cy + (y + ry) * self.r), fill=fill)

    def pie(self, x, y, rad, start, end, fill):
        self.draw.pieslice((self.cx + (x - rad) * self.r, self.cy + (y - rad) * self.r,
                            self.cx + (x + rad) * self.r, self.cy + (y + rad) * self.r),
                           start, end, fill=fill)


def _shade(colour, k):
    return tuple(int(c * k) for c in colour)


def draw_object(image, name, colour, cx, cy, r):
    """Draws a house, tree, ... of an RGB `colour`, centred at (cx, cy) with half-extent r."""
    p = _Pen(image, cx, cy, r)
    if name == "house":
        p.rect(-0.72, -0.15, 0.72, 0.95, colour)
        p.poly([(-0.98, -0.1), (0, -0.98), (0.98, -0.1)], _shade(colour, 0.62))
        p.rect(-0.17, 0.35, 0.2, 0.95, BROWN)
        p.rect(-0.56, 0.1, -0.27, 0.4, CREAM)
        p.rect(0.3, 0.1, 0.58, 0.4, CREAM)
    elif name == "tree":
        p.rect(-0.14, 0.3, 0.14, 0.98, BROWN)
        p.disc(0, -0.2, 0.62, colour, 0.78)
    elif name == "sun":
        p.poly(_regular(24, 0.0, (1.0, 0.68)), colour)
        p.disc(0, 0, 0.62, _shade(colour, 0.92))
    elif name == "face":
        p.disc(0, 0, 0.95, colour)
        ink = DARK if sum(colour) > 160 else CREAM
        p.disc(-0.33, -0.2, 0.12, ink, 0.17)
        p.disc(0.33, -0.2, 0.12, ink, 0.17)
        p.pie(0, 0.1, 0.52, 15, 165, ink)
        p.pie(0, 0.0, 0.5, 10, 170, colour)
    elif name == "fish":
        p.poly([(0.45, 0), (1.0, -0.5), (1.0, 0.5)], _shade(colour, 0.72))
        p.disc(-0.15, 0, 0.78, colour, 0.52)
        p.disc(-0.55, -0.12, 0.14, (255, 255, 255))
        p.disc(-0.57, -0.12, 0.07, DARK)
    elif name == "flower":
        p.rect(-0.06, 0.1, 0.06, 0.98, (47, 130, 70))
        p.disc(0.22, 0.66, 0.2, (47, 130, 70), 0.1)
        for x, y in _regular(6, 0.3, (0.42,)):
            p.disc(x, y - 0.3, 0.3, colour)
        middle = (252, 214, 59) if colour != COLOURS["yellow"] else (245, 139, 31)
        p.disc(0, -0.3, 0.25, middle)
    elif name == "mushroom":
        p.poly([(-0.24, 0), (0.24, 0), (0.3, 0.92), (-0.3, 0.92)], CREAM)
        p.pie(0, 0.12, 0.92, 180, 360, colour)
        spot = CREAM if sum(colour) < 690 else _shade(colour, 0.7)
        for x, y, k in [(-0.45, -0.22, 0.15), (0.05, -0.48, 0.17), (0.48, -0.15, 0.13)]:
            p.disc(x, y, k, spot)
    elif name == "boat":
        p.poly([(-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85)], colour)
        p.rect(-0.05, -0.9, 0.05, 0.35, BROWN)
        p.poly([(0.1, -0.85), (0.8, 0.2), (0.1, 0.2)], CREAM)
        p.poly([(-0.1, -0.6), (-0.65, 0.2), (-0.1, 0.2)], _shade(CREAM, 0.88))
    else:
        raise ValueError(f"unknown object {name!r}")


# ---------------------------------------------------------------- landscapes

SKIES = {
    "day": ((120, 196, 245), (205, 235, 250)),
    "sunset": ((120, 70, 150), (252, 160, 90)),
    "night": ((22, 26, 62), (58, 62, 120)),
}
# far band, near band, by time of day
GROUNDS = {
    "hills": {"day": ((126, 196, 110), (84, 168, 88)), "sunset": ((150, 110, 96), (96, 84, 72)),
              "night": ((40, 70, 78), (28, 50, 58))},
    "sea": {"day": ((64, 140, 214), (44, 112, 190)), "sunset": ((176, 96, 130), (120, 70, 124)),
            "night": ((34, 48, 104), (24, 34, 80))},
    "snow": {"day": ((232, 242, 250), (250, 252, 255)), "sunset": ((240, 200, 200), (250, 222, 214)),
             "night": ((130, 144, 190), (160, 172, 212))},
    "desert": {"day": ((240, 206, 130), (226, 182, 104)), "sunset": ((222, 140, 84), (190, 110, 76)),
               "night": ((96, 80, 100), (76, 62, 84))},
}
_TINT = {"day": (1.0, 1.0, 1.0), "sunset": (0.9, 0.74, 0.72), "night": (0.5, 0.54, 0.72)}


def _gradient(size, top, bottom):
    w, h = size
    t = np.linspace(0, 1, h)[:, None, None]
    rows = (1 - t) * np.array(top) + t * np.array(bottom)
    return Image.fromarray(np.broadcast_to(rows, (h, w, 3)).round().astype(np.uint8))


def _tinted(colour, time):
    return tuple(int(c * k) for c, k in zip(colour, _TINT[time]))


def _draw_landscape(scene, w, h):
    rng = random.Random(scene["seed"])
    time = scene["time"]
    image = _gradient((w, h), *SKIES[time])
    pen = ImageDraw.Draw(image)
    horizon = int(h * 0.6)
    u = min(w, h)
    if time == "night":
        for _ in range(14):
            x, y, r = rng.uniform(0, w), rng.uniform(0, horizon * 0.9), u * rng.uniform(0.008, 0.016)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 250, 220))
        x, y, r = w * rng.uniform(0.15, 0.85), h * rng.uniform(0.14, 0.24), u * 0.1
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 246, 205))
        k = r * 0.45
        pen.ellipse((x - r + k, y - r - k * 0.5, x + r + k, y + r - k * 0.5), fill=(30, 34, 74))
    elif time == "sunset":
        x, y, r = w * rng.uniform(0.3, 0.7), horizon - u * 0.03, u * 0.15
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 226, 120))
    else:
        x, y, r = w * rng.uniform(0.12, 0.88), h * rng.uniform(0.14, 0.22), u * 0.1
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 222, 84))
        for _ in range(2):
            x, y, r = w * rng.uniform(0.1, 0.9), h * rng.uniform(0.1, 0.36), u * 0.05
            for dx, k in ((-1.3, 0.8), (0, 1.15), (1.3, 0.75)):
                pen.ellipse((x + dx * r - k * r, y - k * r, x + dx * r + k * r, y + k * r), fill=(255, 255, 255))
    far, near = GROUNDS[scene["ground"]][time]
    if scene["ground"] == "sea":
        pen.rectangle((0, horizon, w, h), fill=far)
        pen.rectangle((0, horizon + (h - horizon) * 0.5, w, h), fill=near)
    else:
        phase = rng.uniform(0, 6.28)
        xs = np.linspace(0, w, 25)
        for level, amp, freq, fill in ((horizon, 0.045, 1.6, far), (h * 0.74, 0.025, 2.3, near)):
            ys = level - h * amp * np.sin(freq * 6.28 * xs / max(w, h) + phase)
            pen.polygon([(0, h)] + list(zip(xs, ys)) + [(w, h)], fill=fill)
            phase += 2.0
    slots = [0.2, 0.5, 0.8]
    rng.shuffle(slots)
    things = [t for name, n, colour in scene["things"] for t in [(name, colour)] * n]
    for (name, colour), slot in zip(things, slots):
        r = u * (0.2 if name in ("house", "boat") else 0.16)
        y = h * (0.74 if scene["ground"] == "sea" else 0.76) - r * 0.8 + h * rng.uniform(-0.01, 0.03)
        draw_object(image, name, _tinted(COLOURS[colour], time), w * (slot + rng.uniform(-0.04, 0.04)), y, r)
    return image


# ---------------------------------------------------------------- drawing a scene

def draw_canvas(scene):
    """Draws the scene's whole canvas, antialiased, as an RGB PIL image."""
    w, h = scene["canvas"]
    W, H = w * SUPERSAMPLE, h * SUPERSAMPLE
    if scene["kind"] == "landscape":
        return _draw_landscape(scene, W, H).reduce(SUPERSAMPLE)
    if scene.get("bg2"):
        image = _gradient((W, H), COLOURS[scene["bg"]], COLOURS[scene["bg2"]])
    else:
        image = Image.new("RGB", (W, H), COLOURS[scene["bg"]])
    for group in scene["groups"]:
        colour = COLOURS[group["colour"]]
        for x, y, r in group["at"]:
            x, y, r = x * SUPERSAMPLE, y * SUPERSAMPLE, r * SUPERSAMPLE
            if group["shape"] in OBJECTS:
                draw_object(image, group["shape"], colour, x, y, r)
                continue
            mask = shape_mask(group["shape"], r, group["style"])
            corner = (int(round(x - mask.width / 2)), int(round(y - mask.height / 2)))
            image.paste(colour, corner, mask)
            if group["style"] in ("striped", "dotted"):
                light = COLOURS["white"] if group["colour"] != "white" else COLOURS["pink"]
                pattern = _pattern(group["style"], mask.width, r, scene["seed"] % 2)
                image.paste(light, corner, ImageChops.multiply(mask, pattern))
    return image.reduce(SUPERSAMPLE)


def draw(scene):
    """Draws the training picture: the canvas, coarsened and cropped as the scene's micro-conditioning says."""
    image = draw_canvas(scene)
    if scene["coarse"] > 1:
        w, h = image.size
        small = image.resize((max(1, round(w / scene["coarse"])), max(1, round(h / scene["coarse"]))), Image.BOX)
        image = small.resize((w, h), Image.BILINEAR)
    top, left = scene["crop"]
    w, h = scene["size"]
    return image.crop((left, top, left + w, top + h))


def time_ids(scene):
    """original_size (h, w), crop (top, left) and target_size (h, w), as SDXL's base model takes them."""
    w, h = scene["canvas"]
    k = scene["coarse"]
    tw, th = scene["size"]
    return [round(h / k), round(w / k), *scene["crop"], th, tw]


def aesthetic_score(scene):
    """6.5 for a clean picture, falling with coarseness: what the refiner is told instead of target_size."""
    return 6.5 if scene["coarse"] == 1 else max(1.5, 5.0 - 1.5 * (scene["coarse"] - 1) - 0.5)


# ---------------------------------------------------------------- sampling scenes

def _pick(rng, weights):
    return rng.choices(list(weights), list(weights.values()))[0]


def _fits(placed, x, y, r, gap):
    return all(math.hypot(x - a, y - b) > 1.12 * (r + c) + gap for a, b, c in placed)


def _place(rng, w, h, n, r):
    """n places of half-extent r inside w x h that do not touch; r shrinks if they do not fit."""
    while True:
        for _ in range(40):
            placed = []
            for _ in range(n):
                for _ in range(30):
                    m = r * 1.08 + 1
                    x, y = rng.uniform(m, w - m), rng.uniform(m, h - m)
                    if _fits(placed, x, y, r, 2):
                        placed.append((x, y, r))
                        break
            if len(placed) == n:
                return placed
        r *= 0.92


def _group(rng, shape, colour, style, at, size=None):
    if shape in OBJECTS or (shape == "ring" and style == "outline"):
        style = "flat"
    return {"shape": shape, "colour": colour, "style": style, "size": size,
            "at": [[round(v, 2) for v in p] for p in at]}


def _any_shape(rng, objects=0.18):
    return rng.choice(OBJECTS if rng.random() < objects else SHAPES)


def _any_colour(rng, shape, bg, bg2=None):
    natural = NATURAL.get(shape)
    if natural and natural not in (bg, bg2) and rng.random() < 0.5:
        return natural
    return rng.choice([c for c in COLOURS if c not in (bg, bg2)])


def _sample_groups(rng, kind, w, h, bg, bg2=None, plain=False):
    u = min(w, h)
    style = "flat" if plain or rng.random() < 0.88 else rng.choice(["outline", "striped", "dotted"])
    objects = 0.0 if plain else 0.13
    shape = _any_shape(rng, objects)
    colour = _any_colour(rng, shape, bg, bg2)
    if kind == "single":
        size = _pick(rng, {"small": 0.2, None: 0.5, "large": 0.3})
        r = u * {"small": 0.16, None: 0.27, "large": 0.40}[size] * rng.uniform(0.92, 1.08)
        where = None if plain or rng.random() < 0.8 or size == "large" else rng.choice(["left", "right", "top", "bottom"])
        m = r * 1.1
        x = w / 2 + rng.uniform(-0.06, 0.06) * w
        y = h / 2 + rng.uniform(-0.06, 0.06) * h
        if where == "left":
            x = m + 1
        elif where == "right":
            x = w - m - 1
        elif where == "top":
            y = m + 1
        elif where == "bottom":
            y = h - m - 1
        x, y = min(max(x, m), w - m), min(max(y, m), h - m)
        group = _group(rng, shape, colour, style, [(x, y, r)], size)
        return [group], where
    if kind == "count":
        n = rng.choice([2, 3])
        if n * u * 0.38 < w * 1.12 and rng.random() < 0.55:  # a row
            r = min(u * 0.19, w / n * 0.42) * rng.uniform(0.9, 1.05)
            at = [(w * (i + 0.5) / n + rng.uniform(-1.5, 1.5), h / 2 + rng.uniform(-0.06, 0.06) * h, r) for i in range(n)]
        else:
            at = _place(rng, w, h, n, u * (0.2 if n == 2 else 0.17) * rng.uniform(0.95, 1.1))
        return [_group(rng, shape, colour, style, at)], None
    other = _any_shape(rng, objects)
    while other == shape:
        other = _any_shape(rng, objects)
    other_colour = _any_colour(rng, other, bg, bg2)
    other_style = "flat" if plain or rng.random() < 0.85 else style
    if kind == "rows":
        n, m = rng.choice([(2, 1), (3, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 2)])
        rows = []
        for k, y in ((n, h * 0.27), (m, h * 0.73)):
            r = min(h * 0.19, w / k * 0.40)
            rows.append([(w * (i + 0.5) / k + rng.uniform(-1, 1), y + rng.uniform(-1.5, 1.5), r) for i in range(k)])
        return [_group(rng, shape, colour, style, rows[0]), _group(rng, other, other_colour, other_style, rows[1])], "above"
    relation = rng.choice(["left", "above"]) if w == h else ("left" if w > h else "above")
    r1, r2 = (min(u * 0.2, max(w, h) * 0.2) * rng.uniform(0.88, 1.1) for _ in range(2))
    if relation == "left":
        a = (w * 0.27 + rng.uniform(-2, 2), h / 2 + rng.uniform(-0.1, 0.1) * h, r1)
        b = (w * 0.73 + rng.uniform(-2, 2), h / 2 + rng.uniform(-0.1, 0.1) * h, r2)
    else:
        a = (w / 2 + rng.uniform(-0.1, 0.1) * w, h * 0.27 + rng.uniform(-2, 2), r1)
        b = (w / 2 + rng.uniform(-0.1, 0.1) * w, h * 0.73 + rng.uniform(-2, 2), r2)
    return [_group(rng, shape, colour, style, [a]), _group(rng, other, other_colour, other_style, [b])], relation


KINDS = {"single": 0.43, "count": 0.23, "pair": 0.23, "rows": 0.03, "landscape": 0.08}


def sample_scene(rng, bucket=None, kind=None, plain=False, want_held_out=False):
    """One random scene. `plain` keeps to what analyse.py can judge: flat shapes, whole sharp pictures."""
    w, h = bucket or _pick(rng, BUCKETS)
    chosen = kind or _pick(rng, KINDS)
    while True:
        scene = {"kind": chosen, "size": [w, h], "canvas": [w, h], "crop": [0, 0], "coarse": 1,
                 "seed": rng.getrandbits(30), "bg2": None}
        if not plain:
            r = rng.random()
            if r < 0.05:
                scene["coarse"] = rng.choice([1.5, 2, 2.5, 3])
            elif r < 0.08:
                cw, ch = w + rng.choice([8, 16, 24, 32]), h + rng.choice([8, 16, 24, 32])
                scene["canvas"] = [cw, ch]
                scene["crop"] = [rng.randint(0, ch - h), rng.randint(0, cw - w)]
        cw, ch = scene["canvas"]
        if chosen == "landscape":
            scene["time"] = rng.choice(list(SKIES))
            scene["ground"] = _pick(rng, {"hills": 0.4, "sea": 0.25, "snow": 0.2, "desert": 0.15})
            if scene["ground"] == "sea":
                things = rng.choice([[], [("boat", 1, rng.choice(list(COLOURS)))], [("boat", 2, "red")]])
            else:
                house = ("house", 1, rng.choice(["red", "white", "blue", "orange", "pink", "yellow"]))
                trees = ("tree", rng.choice([1, 1, 2, 2, 3]), "green")
                things = rng.choice([[], [house], [trees], [house, ("tree", rng.choice([1, 2]), "green")]])
            scene["things"] = things
            return scene
        scene["bg"] = rng.choice(list(COLOURS))
        if not plain and rng.random() < 0.025:
            scene["bg2"] = rng.choice([c for c in COLOURS if c != scene["bg"]])
        scene["groups"], scene["relation"] = _sample_groups(rng, chosen, cw, ch, scene["bg"], scene["bg2"], plain)
        if scene_held_out(scene) == want_held_out:
            return scene


# ---------------------------------------------------------------- captions

_WORDS = {1: ["a", "a", "a", "one"], 2: ["two", "two", "two", "2"], 3: ["three", "three", "three", "3"]}


def _noun(name, n):
    return name if n == 1 else PLURAL.get(name, name + "s")


def _phrase(rng, group, plain):
    n = len(group["at"])
    adjectives = []
    size = group["size"]
    if size and (plain or rng.random() < 0.75):
        adjectives.append(size if plain else rng.choice({"small": ["small", "little", "tiny"], "large": ["large", "big", "huge"]}[size]))
    elif not size and n == 1 and not plain and rng.random() < 0.03:
        adjectives.append("medium")
    shape, style, colour = group["shape"], group["style"], group["colour"]
    tail = ""
    if style == "outline":
        adjectives.append(rng.choice(["outlined", "hollow"]))
    elif style == "striped":
        if rng.random() < 0.7:
            adjectives.append("striped")
        else:
            tail = " with stripes"
    elif style == "dotted":
        if rng.random() < 0.7:
            adjectives.append("dotted")
        else:
            tail = " with dots"
    if colour != NATURAL.get(shape) or rng.random() < 0.5:
        if plain or shape in NATURAL or rng.random() < 0.98:
            adjectives.append(colour)
    if shape == "face":
        shape = rng.choice(["face", "smiling face", "happy face", "smiley face"])
    words = " ".join(adjectives + [_noun(shape, n)]) + tail
    count = "a" if plain and n == 1 else rng.choice(_WORDS[n])
    if count == "a" and words[0] in "aeiou":
        count = "an"
    return f"{count} {words}"


def _article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def _landscape_caption(rng, scene):
    time = {"day": ["on a sunny day", "by day", "during the day"], "night": ["at night", "by night", "under a night sky"],
            "sunset": ["at sunset", "in the sunset", "during sunset"]}[scene["time"]]
    ground = {"hills": ["green hills", "hills", "a field", "a meadow"], "sea": ["the sea", "the ocean", "a sea"],
              "snow": ["snowy hills", "a snowy field", "snow"], "desert": ["a desert", "the desert", "sand dunes"]}[scene["ground"]]
    place = rng.choice(ground)
    things = []
    for name, n, colour in scene["things"]:
        named = colour + " " if name != "tree" and rng.random() < 0.75 else ""
        things.append(f"{rng.choice(_WORDS[n])} {named}{_noun(name, n)}".replace("a orange", "an orange"))
    listed = " and ".join(things)
    time = rng.choice(time)
    if listed:
        prep = "on" if scene["ground"] != "desert" else "in"
        return rng.choice([f"{listed} {prep} {place} {time}", f"a landscape with {listed}, {place} {time}",
                           f"{place} {time} with {listed}"])
    return rng.choice([f"{place} {time}", f"a landscape with {place} {time}", f"a landscape of {place} {time}"])


def caption(rng, scene, plain=False):
    """One of many phrasings of the scene. `plain` names everything, in the plainest words."""
    if scene["kind"] == "landscape":
        text = _landscape_caption(rng, scene)
    else:
        groups = [_phrase(rng, g, plain) for g in scene["groups"]]
        relation = scene["relation"]
        if len(groups) == 1:
            text = groups[0]
            if relation:
                text += {"left": " on the left", "right": " on the right", "top": " at the top", "bottom": " at the bottom"}[relation]
        else:
            a, b = groups
            forward = {"left": ["to the left of", "left of", "to the left of"], "above": ["above", "over", "on top of"]}[relation]
            back = {"left": ["to the right of", "right of", "to the right of"], "above": ["below", "under", "beneath"]}[relation]
            if plain:
                text = f"{a} {forward[0]} {b}"
            else:
                r = rng.random()
                if r < 0.55:
                    text = f"{a} {rng.choice(forward)} {b}"
                elif r < 0.85:
                    text = f"{b} {rng.choice(back)} {a}"
                elif relation == "left":
                    text = rng.choice([f"{a} next to {b}", f"{a} and {b}", f"{b} and {a}", f"{a} beside {b}"])
                else:
                    text = rng.choice([f"{a} and {b}", f"{b} and {a}"])
        bg = scene["bg"]
        if scene["bg2"]:
            text += rng.choice([f" on a gradient background from {bg} to {scene['bg2']}", f" on {_article(bg)} to {scene['bg2']} gradient"])
        elif plain:
            text += f" on {_article(bg)} background"
        elif rng.random() < 0.97:
            text += rng.choice([f" on {_article(bg)} background"] * 4 + [f" against {_article(bg)} background", f", {bg} background", f" on {bg}",
                                f", the background is {bg}", f" in front of {_article(bg)} background"])
    if plain:
        return text
    if rng.random() < 0.15:
        text = rng.choice(["a picture of ", "a drawing of ", "an image of ", "an illustration of ", "a simple drawing of "]) + text
    if rng.random() < 0.06:
        text += rng.choice([", flat design", ", simple", ", cute", ", minimal", ", flat colours", ", clean vector art"])
    if scene["coarse"] > 1 and rng.random() < 0.6:
        text += rng.choice([", blurry", ", low quality", ", blurred"])
    return text


def evaluation_set(n, seed=2024):
    """n held-out (caption, scene) pairs: 2/5 single shapes, 1/5 twos, 1/5 threes, 1/5 pairs; native size."""
    rng = random.Random(seed)
    pairs = []
    while len(pairs) < n:
        kind = ["single", "single", "count", "count", "pair"][len(pairs) % 5]
        want = {2: 2, 3: 3}.get(len(pairs) % 5) if kind == "count" else None
        scene = sample_scene(rng, bucket=(96, 96), kind=kind, plain=True, want_held_out=True)
        if want and len(scene["groups"][0]["at"]) != want:
            continue
        pairs.append((caption(rng, scene, plain=True), scene))
    return pairs


if __name__ == "__main__":
    import sys

    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    sheet = Image.new("RGB", (10 * 132, 7 * 132), (128, 128, 128))
    for i in range(70):
        scene = sample_scene(rng)
        sheet.paste(draw(scene), ((i % 10) * 132 + 2, (i // 10) * 132 + 2))
        print(i, caption(rng, scene))
    sheet.save(sys.argv[1])
