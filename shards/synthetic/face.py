"""Draws one face: what it looks like, every choice from its seed, and the strokes and shadows that show it."""

import random
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw

VERSION = 2  # bumped when the drawing changes, so that older folders are drawn again
MONK = "f6ede4 f3e7db f7ead0 eadaba d7bd96 a07e56 825c43 604134 3a312a 292420"
TONES = {tone: tuple(bytes.fromhex(code)) for tone, code in enumerate(MONK.split(), 1)}

Colour = tuple[int, int, int]
SHEEN = (255, 236, 214)  # what light adds to hair


@dataclass(frozen=True)
class Face:
    """The annotated truth of one face; whatever else is seen of it follows from `seed`."""

    gender: str  # 'female', 'male'
    age: str  # 'child', 'young', 'adult', 'middle', 'senior'
    skin_tone: int  # Monk 1-10
    seed: int  # hair, glasses, beard, brows, eyes, shape, pose, light, background


# --- what a face looks like: every choice, before anything is drawn ---

HAIR = {
    (26, 22, 22): 28,
    (54, 37, 28): 27,
    (92, 60, 38): 18,
    (132, 95, 62): 10,
    (196, 158, 102): 12,
    (146, 70, 38): 5,
}  # black, dark brown, brown, light brown, blond, red
EYES = ((58, 36, 22), (88, 56, 30), (40, 27, 20), (70, 110, 140), (88, 112, 72), (110, 120, 125))
CLOTHES = (
    (52, 66, 92),
    (120, 44, 48),
    (60, 92, 80),
    (200, 196, 188),
    (40, 42, 46),
    (148, 120, 80),
    (98, 78, 118),
    (170, 96, 80),
    (86, 120, 150),
)
BACKGROUNDS = (
    (150, 164, 178),
    (178, 170, 156),
    (142, 160, 146),
    (172, 152, 150),
    (128, 136, 150),
    (186, 186, 188),
    (156, 150, 172),
    (118, 140, 144),
)
FRAMES = ((28, 26, 28), (84, 52, 34), (58, 62, 84))
STYLES = {
    "female": {"long": 38, "wavy": 26, "bob": 18, "bun": 7, "curly": 8, "short": 3},
    "male": {"short": 44, "quiff": 20, "buzz": 14, "curly": 10, "fringe": 12},
}
BALDING = {"adult": 0.06, "middle": 0.2, "senior": 0.42}  # of the men
BEARDS = {"none": 34, "stubble": 12, "full": 30, "goatee": 12, "moustache": 12}  # of the men from young on
#        width height  eye line  eye size nose  lips  folds
BUILD = {
    "child": (0.300, 0.342, 0.592, 1.40, 0.66, 0.86, 0.0),
    "young": (0.284, 0.372, 0.522, 1.15, 0.92, 1.12, 0.0),
    "adult": (0.288, 0.390, 0.502, 0.96, 1.02, 1.00, 0.30),
    "middle": (0.294, 0.392, 0.502, 0.90, 1.08, 0.86, 0.65),
    "senior": (0.288, 0.394, 0.505, 0.80, 1.16, 0.66, 1.0),
}


def pick(rng: random.Random, weights: dict):
    return rng.choices(list(weights), list(weights.values()))[0]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` of `b` in it."""
    return tuple([round(x + (y - x) * share) for x, y in zip(a, b, strict=True)])


def shade(colour: Colour, factor: float) -> Colour:
    return tuple([min(255, round(x * factor)) for x in colour])


def look_of(face: Face) -> SimpleNamespace:
    """Every appearance choice of `face` in the unit frame (x right, y down, the picture is 0..1)."""
    rng = random.Random(face.seed)
    near = lambda value, spread: value * rng.uniform(1 - spread, 1 + spread)  # noqa: E731
    man, child, grown = face.gender == "male", face.age == "child", face.age not in ("child", "young")
    width, height, eye_y, eye, nose, lips, folds = BUILD[face.age]
    look = SimpleNamespace(face=face, rng=rng, man=man, child=child, skin=TONES[face.skin_tone], folds=folds)
    look.x, look.top = 0.5, 0.165 if child else 0.13
    look.width, look.height = near(width * (1.03 if man else 0.98), 0.03), near(height, 0.015)
    look.y, look.chin = look.top + look.height, look.top + 2 * look.height
    look.jaw = near((2.8 if grown else 2.5) if man else 2.1, 0.06)  # the exponent that squares it
    look.taper = near(0.16 if man else 0.2, 0.2)
    look.turn = rng.uniform(-0.012, 0.012)  # how far the features sit from the head's middle
    look.face_x = look.x + look.turn
    look.eye_y, look.eye_gap = near(eye_y, 0.012), near(0.122, 0.04)
    look.eye = near(eye * (0.95 if man else 1.06), 0.05)
    look.nose = near(nose * (1.08 if man else 0.94), 0.08)
    look.nose_y = look.eye_y + near(0.155, 0.05) * (nose + 1) / 2
    look.mouth_y = look.nose_y + (look.chin - look.nose_y) * near(0.43, 0.04)
    look.mouth, look.lips = near(0.088 if child else 0.1, 0.07), near(lips * (0.82 if man else 1.12), 0.1)
    look.smile, look.teeth = rng.uniform(0, 0.022), rng.random() < 0.2
    look.brow = near((1.35 if man else 0.72) * (0.8 if child else 1), 0.15)
    look.shift, look.zoom = (rng.uniform(-0.012, 0.012), rng.uniform(-0.01, 0.01)), rng.uniform(1.08, 1.12)
    look.light, look.side = rng.uniform(0.975, 1.025), rng.uniform(-30, 30)  # more would blur the tones
    look.background, look.clothes, look.iris = rng.choice(BACKGROUNDS), rng.choice(CLOTHES), rng.choice(EYES)
    look.glasses, look.frame = rng.random() < 0.18, rng.choice(FRAMES)
    look.blush = rng.uniform(8, 25) if man or grown else rng.uniform(20, 45)
    look.lipstick, look.earrings = (not man and not child and rng.random() < share for share in (0.5, 0.4))
    look.beard = pick(rng, BEARDS) if man and not child else "none"
    choose_hair(look)
    return look


def choose_hair(look: SimpleNamespace) -> None:
    """Style and colour of hair: independent of the skin tone, so that only skin tells the tone."""
    rng, age = look.rng, look.face.age
    look.style = pick(rng, STYLES[look.face.gender])
    if look.man and rng.random() < BALDING.get(age, 0):
        look.style = "balding"
    colour = pick(rng, HAIR)
    grey = {"middle": rng.uniform(0.1, 0.6), "senior": rng.uniform(0.82, 1)}.get(age, 0)
    look.hair = mix(colour, (196, 194, 192), grey)
    look.brows = mix(mix(colour, (30, 24, 22), 0.35), (150, 146, 142), grey * 0.7)
    look.flowing = look.style in ("long", "wavy", "bob")
    look.fringe = look.style == "fringe" or (not look.man and look.style != "curly" and rng.random() < 0.25)
    look.part = rng.uniform(0.25, 0.75)


# --- drawing ---


class Pen:
    """Draws in the unit frame on a canvas of `edge` pixels; the fourth channel marks skin, to be shaded."""

    def __init__(self, edge: int, look: SimpleNamespace):
        self.image = Image.new("RGBX", (edge, edge), (*look.background, 0))
        self.draw, self.edge, self.zoom = ImageDraw.Draw(self.image), edge, look.zoom
        self.dx, self.dy = 0.5 + look.shift[0] - 0.5 * look.zoom, 0.5 + look.shift[1] - 0.5 * look.zoom
        self.scale, self.origin = look.zoom * edge, np.array([self.dx * edge, self.dy * edge])

    def place(self, points) -> np.ndarray:
        """Unit points [..., 2] -> the same points run together in pixels [..., x y x y]."""
        points = np.asarray(points) * self.scale + self.origin
        return points.reshape(*points.shape[:-2], -1)

    def area(self, points, colour: Colour, skin: int = 0) -> None:
        self.draw.polygon(self.place(points).tolist(), (*colour, skin))

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour, skin: int = 0) -> None:
        e, z = self.edge, self.zoom
        x, y, rx, ry = (x * z + self.dx) * e, (y * z + self.dy) * e, rx * z * e, ry * z * e
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), (*colour, skin))

    def line(self, points, colour: Colour, width: float, skin: int = 0) -> None:
        self.draw.line(self.place(points).tolist(), (*colour, skin), max(1, round(width * self.edge)))


@cache
def steps_of(steps: int) -> np.ndarray:
    return np.linspace(0, 1, steps)


@cache
def arc_weights(steps: int) -> np.ndarray:
    t = steps_of(steps)
    return np.stack([1 - t, t, 4 * t * (1 - t)], 1)


def arc(x0: float, y0: float, x1: float, y1: float, bend: float, steps: int = 9) -> np.ndarray:
    """Points [steps, 2] of a parabola from (x0, y0) to (x1, y1), `bend` below its chord in the middle."""
    return arc_weights(steps) @ np.array([(x0, y0), (x1, y1), (0.0, bend)])


@cache
def curve_weights(knots: int, steps: int) -> np.ndarray:
    """Weights [steps, knots] of a Catmull-Rom spline: a smooth line through its knots."""
    at = steps_of(steps) * (knots - 1)
    left = np.minimum(at.astype(int), knots - 2)
    t, weights = at - left, np.zeros((steps, knots))
    bases = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
    for offset, basis in enumerate(bases, -1):
        np.add.at(weights, (np.arange(steps), np.clip(left + offset, 0, knots - 1)), basis / 2)
    return weights


def curve(*knots: tuple[float, float], steps: int = 14) -> np.ndarray:
    """A smooth line [steps, 2] through `knots`."""
    return curve_weights(len(knots), steps) @ np.array(knots)


def outline(look: SimpleNamespace, steps: int = 44) -> np.ndarray:
    """The head's closed contour [2 * steps, 2]: round above, `jaw` and `taper` shape the lower half."""
    v = -np.cos(np.pi * steps_of(steps))
    size = np.abs(v)
    skull, face = (1 - size**2.3) ** 0.455, (1 - size**look.jaw) ** 0.5 * (1 - look.taper * size)
    half = look.width * np.where(v < 0, skull, face)
    y = look.y + v * look.height
    return np.concatenate([np.stack([look.x + half, y], 1), np.stack([look.x - half, y], 1)[::-1]])


@cache
def bow_weights(squareness: float, steps: int) -> np.ndarray:
    angle = np.linspace(np.pi, 0, steps)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.sign(cos) * np.abs(cos) ** (2 / squareness), -(np.abs(sin) ** (2 / squareness))], 1)


def bow(x: float, y: float, rx: float, ry: float, squareness: float, steps: int = 25) -> np.ndarray:
    """The upper half of a superellipse [steps, 2] from left to right."""
    return bow_weights(squareness, steps) * (rx, ry) + (x, y)


def draw_hair(pen: Pen, look: SimpleNamespace, inner, outer, along: bool, strands: int) -> None:
    """The area between two curves [n, 2], combed along them or from one across to the other."""
    pen.area(np.concatenate([inner, outer[::-1]]), look.hair)
    rng, last = look.rng, len(inner) - 1
    dark = [(*shade(look.hair, factor), 0) for factor in (0.74, 0.82, 0.9)]
    bright = [(*mix(look.hair, SHEEN, share), 0) for share in (0.05, 0.1, 0.15)]
    levels = pen.place(inner + (outer - inner) * steps_of(17)[1:-1, None, None]).tolist()
    for k in range(strands):
        if along:
            start = int(rng.random() * last * 0.7)
            end = start + 3 + int(rng.random() * last * 0.6)
            points = levels[int(rng.random() * 15)][2 * start : 2 * end]
        else:
            i, low = int(rng.random() * (last + 1)), int(rng.random() * 6)
            j = i + round((look.part * last - i) * 0.3)  # strands fan out from the parting
            points = levels[low][2 * i : 2 * i + 2] + levels[low + 4 + int(rng.random() * 5)][2 * j : 2 * j + 2]
        pen.draw.line(points, dark[k % 3] if k % 5 < 3 else bright[k % 3], max(1, pen.edge // 200))


def curls(pen: Pen, look: SimpleNamespace, points: np.ndarray, radius: float) -> None:
    """Small overlapping locks along `points`, each lit from above."""
    rng, bright = look.rng, mix(look.hair, SHEEN, 0.05)
    colours = [shade(look.hair, factor) for factor in (0.8, 0.88, 0.95, 1)]
    for x, y in points.tolist():
        r = radius * rng.uniform(0.75, 1.2)
        pen.oval(x, y, r, r, rng.choice(colours))
        pen.oval(x + rng.uniform(-r, r) / 2, y - r * 0.3, r * 0.5, r * 0.4, bright)


def draw_back(pen: Pen, look: SimpleNamespace) -> None:
    """Hair behind head and neck."""
    x, top, width, dark = look.x, look.top, look.width, shade(look.hair, 0.72)
    if look.flowing:
        end = 0.86 if look.style == "bob" else 1.06
        crown = bow(x, 0.5, width + 0.045, 0.53 - top, 2.2)
        pen.area([*crown, (x + width + 0.06, end), (x - width - 0.06, end)], dark)
    elif look.style == "bun":
        pen.oval(x, top - 0.03, 0.115, 0.1, look.hair)
        for r in (0.085, 0.055):
            pen.line(arc(x - r, top - 0.04, x + r, top - 0.04, -r), dark, 0.008)
    elif look.style == "curly":
        base, big, radius = (0.46, 0.02, 0.042) if look.man else (0.56, 0.08, 0.052)
        ring = bow(x, base, width + big, base - top + big * 0.4, 2.1)
        pen.area(ring, dark)
        curls(pen, look, ring, radius)


def draw_neck(pen: Pen, look: SimpleNamespace) -> None:
    """Neck, in the head's shade, and clothes."""
    x, size = look.x, 0.86 if look.child else 1
    half, wide = look.width * (0.6 if look.man else 0.5) * size, (0.5 if look.man else 0.43) * size
    pen.area(
        [(x - half, 0.7), (x + half, 0.7), (x + half * 1.1, 1.05), (x - half * 1.1, 1.05)], shade(look.skin, 0.8), 255
    )
    for side in (-1, 1):
        low, high = (x + side * half * 0.5, 1.06), (x + side * half * 1.05, 0.915)
        end = x + side * wide
        pen.area([low, *curve(high, (x + side * (half + 0.13), 0.95), (end, 1.0), (end, 1.1))], look.clothes)
        pen.line([low, high], shade(look.clothes, 0.72), 0.012)


def draw_head(pen: Pen, look: SimpleNamespace) -> None:
    for side in (-1, 1):
        x, y = look.x + side * look.width, look.eye_y + 0.055
        pen.oval(x, y, 0.034, 0.07, shade(look.skin, 0.92), 255)
        pen.oval(x + side * 0.006, y, 0.017, 0.045, shade(look.skin, 0.74), 255)
    pen.area(outline(look), look.skin, 255)


def draw_beard(pen: Pen, look: SimpleNamespace) -> None:
    """Full beard, goatee or moustache; stubble is a shadow (see `shadows`)."""
    x, y, rng, colour = look.face_x, look.mouth_y, look.rng, mix(look.hair, look.brows, 0.5)
    if look.beard == "full":
        jaw, wide, high = outline(look), look.width * 0.86, look.eye_y + 0.1
        inner = curve(
            (look.x - wide, high),
            (x - 0.14, y - 0.05),
            (x - 0.05, y - 0.06),
            (x + 0.05, y - 0.06),
            (x + 0.14, y - 0.05),
            (look.x + wide, high),
            steps=20,
        )
        pen.area(np.concatenate([inner, jaw[jaw[:, 1] > high] * (1, 1.015)]), colour)
        for _ in range(40):
            a, b = rng.uniform(-1, 1), rng.uniform(0, look.chin - y - 0.05)
            top, left = y + 0.02 + b * (1 - a * a) - 0.04 * a * a, x + a * look.width * 0.72
            tint = shade(colour, rng.choice((0.78, 1.2)))
            pen.line([(left, top), (left + 0.01 * a, top + 0.03)], tint, 0.006)
    if look.beard == "goatee":
        chin = look.chin - 0.01
        pen.area(
            curve(
                (x - 0.075, y + 0.035),
                (x - 0.055, chin),
                (x, chin + 0.02),
                (x + 0.055, chin),
                (x + 0.075, y + 0.035),
                (x, y + 0.05),
                steps=22,
            ),
            colour,
        )
    if look.beard in ("goatee", "moustache", "full"):
        pen.area(
            np.concatenate(
                [
                    arc(x - 0.112, y + 0.004, x, y - 0.047, -0.014),
                    arc(x, y - 0.047, x + 0.112, y + 0.004, -0.014),
                    arc(x + 0.1, y, x - 0.1, y, -0.01),
                ]
            ),
            shade(colour, 0.9),
        )


def draw_nose(pen: Pen, look: SimpleNamespace) -> None:
    x, y, size = look.x + look.turn * 1.3, look.nose_y, look.nose
    for side in (-1, 1):
        wing = arc(x + side * 0.044 * size, y - 0.03 * size, x + side * 0.026 * size, y + 0.006, 0.004)
        pen.line(wing, shade(look.skin, 0.72), 0.006, 255)
        pen.oval(x + side * 0.02 * size, y, 0.0115 * size, 0.0065 * size, shade(look.skin, 0.4), 255)
    pen.line(arc(x - 0.012, y + 0.006, x + 0.012, y + 0.006, 0.004), shade(look.skin, 0.7), 0.005, 255)


def draw_mouth(pen: Pen, look: SimpleNamespace) -> None:
    x, y, half, full = look.face_x, look.mouth_y, look.mouth, 0.026 * look.lips
    red, share = ((178, 34, 58), 0.72) if look.lipstick else ((176, 82, 84), 0.34 if look.man else 0.5)
    lip, corner, gap = mix(look.skin, red, share), y - look.smile, 0.014 if look.teeth else 0.0
    line = arc(x - half, corner, x + half, corner, look.smile + 0.002)
    low = arc(x - half, corner, x + half, corner, look.smile + 0.002 + gap)
    top = curve(
        (x - half, corner),
        (x - 0.02, y - full),
        (x, y - full * 0.78),
        (x + 0.02, y - full),
        (x + half, corner),
        steps=17,
    )
    bottom = arc(x + half, corner, x - half, corner, look.smile + gap + full * 1.35)
    pen.area(np.concatenate([top, line[::-1]]), shade(lip, 0.86))
    pen.area(np.concatenate([low, bottom]), lip)
    if look.teeth:
        pen.area(np.concatenate([line, low[::-1]]), (238, 232, 224))
    pen.line(line, shade(lip, 0.45), 0.007)
    y += gap + full * 0.75
    pen.line(arc(x - half * 0.4, y, x + half * 0.4, y, 0.002), shade(lip, 1.16), 0.007)


def draw_wrinkles(pen: Pen, look: SimpleNamespace) -> None:
    """Folds beside the mouth, then bags under and lines beside the eyes; the forehead's are in `shadows`."""
    x, y, nose, folds = look.face_x, look.eye_y, look.nose_y, look.folds
    ink = shade(look.skin, 1 - 0.28 * folds**0.8)
    for side in (-1, 1) if folds else ():
        pen.line(
            curve(
                (x + side * 0.058, nose - 0.012),
                (x + side * 0.092, nose + 0.03),
                (x + side * 0.112, look.mouth_y - 0.02 + 0.03 * folds),
                steps=7,
            ),
            ink,
            0.007,
            255,
        )
        if folds > 0.5:
            eye = x + side * look.eye_gap
            pen.line(arc(eye - side * 0.045, y + 0.034, eye + side * 0.05, y + 0.034, 0.014), ink, 0.006, 255)
            for k in (-1, 0, 1):
                crow = [(eye + side * 0.076, y + 0.012 * k), (eye + side * 0.108, y + 0.026 * k)]
                pen.line(crow, ink, 0.006, 255)


def draw_eyes(pen: Pen, look: SimpleNamespace) -> None:
    size, skin, y = look.eye, look.skin, look.eye_y
    rx, up, down = 0.0605 * (0.65 + 0.35 * size), 0.0305 * size, 0.02 * size
    iris = 0.0265 * (0.7 + 0.3 * size)
    lash, tail = mix(shade(skin, 0.3), (18, 12, 12), 0.6), y - 0.002 + 0.004 * look.folds
    for side in (-1, 1):
        x = look.face_x + side * look.eye_gap
        inner, outer = x - side * rx, x + side * rx
        upper, lower = arc(inner, y + 0.004, outer, tail, -up), arc(outer, tail, inner, y + 0.004, down)
        crease = arc(inner, y - 0.004, outer, tail - 0.008, -up - 0.014)
        pen.area(np.concatenate([upper, lower]), (228, 221, 215))
        pen.oval(x, y - 0.004, iris, iris, shade(look.iris, 0.6))
        pen.oval(x, y - 0.003, iris * 0.84, iris * 0.84, look.iris)
        pen.oval(x, y - 0.004, iris * 0.45, iris * 0.45, (12, 10, 10))
        pen.oval(x + 0.008, y - 0.012, 0.0055, 0.0055, (250, 250, 250))
        pen.area(np.concatenate([upper, crease[::-1]]), shade(skin, 0.86), 255)  # the lids cover the iris
        pen.area(np.concatenate([lower, lower[::-1] + np.array((0, 0.012))]), skin, 255)
        pen.line(crease, shade(skin, 0.66), 0.005, 255)
        pen.line(lower, shade(skin, 0.62), 0.005, 255)
        pen.line(upper, lash, 0.009 if look.man else 0.014)
        if not look.man:
            pen.line([(outer - side * 0.008, y - 0.008), (outer + side * 0.016, y - 0.02)], lash, 0.009)
        draw_brow(pen, look, x, side)


def draw_brow(pen: Pen, look: SimpleNamespace, x: float, side: int) -> None:
    y, thick, lift = look.eye_y - 0.062 - 0.012 * look.eye, 0.0115 * look.brow, 0.006 if look.man else 0.014
    upper = arc(x - side * 0.06, y + 0.003, x + side * 0.075, y + 0.011, -lift - thick)
    lower = arc(x + side * 0.075, y + 0.012, x - side * 0.062, y + 0.006 + thick, -lift + 0.002)
    pen.area(np.concatenate([upper, lower]), mix(look.brows, look.skin, 0.12))


def draw_front(pen: Pen, look: SimpleNamespace) -> None:
    """Hair on top of the head and, where it is long, beside the face."""
    style, x, width, ear = look.style, look.x, look.width, look.eye_y + (0.05 if look.man else 0.0)
    if style == "balding":
        draw_sides(pen, look, ear)
        return
    forehead = look.eye_y - (0.115 if look.fringe else 0.205 + 0.035 * look.folds * look.man)
    volume = {"quiff": 0.06, "buzz": 0.014, "short": 0.03, "fringe": 0.035, "bun": 0.012}.get(style, 0.04)
    hairline = bow(x, ear, width * 0.93, ear - forehead, 2.9 if look.man else 2.5)
    crown = bow(x, ear, width + (0.045 if look.flowing else min(volume, 0.022)), ear - look.top + volume, 2.3)
    if not look.fringe and (look.flowing or style in ("quiff", "short")):  # a parting lifts the line
        hairline[:, 1] -= 0.045 * np.exp(-(((steps_of(len(hairline)) - look.part) / 0.14) ** 2))
    rough = {"short": 0.008, "fringe": 0.009, "quiff": 0.005}.get(style, 0.0025)
    for edge in (hairline, crown):
        edge[2:-2, 1] += [look.rng.uniform(-rough, rough) for _ in edge[2:-2]]
    if style == "buzz":
        pen.area(np.concatenate([hairline, crown[::-1]]), mix(look.hair, look.skin, 0.35), 120)
        return
    draw_hair(pen, look, hairline, crown, style in ("quiff", "long", "bob") and not look.fringe, 72)
    if style == "curly":
        for share, radius in ((0.05, 0.03), (0.35, 0.036), (0.7, 0.04), (1, 0.04)):
            curls(pen, look, (hairline + (crown - hairline) * share)[1:-1:2], radius)
    if look.flowing:
        draw_curtains(pen, look)


def draw_sides(pen: Pen, look: SimpleNamespace, ear: float) -> None:
    """What is left of a balding man's hair."""
    high, middle = look.eye_y - 0.16, look.eye_y - 0.075
    for side in (-1, 1):
        inner, outer = (
            curve(*((look.x + side * (look.width + by), y) for by, y in points))
            for points in (
                ((-0.009, high), (-0.04, middle), (-0.02, ear)),
                ((-0.006, high), (0.028, middle), (0.025, ear + 0.02)),
            )
        )
        draw_hair(pen, look, inner, outer, along=True, strands=14)


def draw_curtains(pen: Pen, look: SimpleNamespace) -> None:
    """Hair falling beside the face: to the chin for a bob, else below the picture."""
    bob, width, t, high = look.style == "bob", look.width, steps_of(14), look.eye_y - 0.12
    y = high + ((0.87 if bob else 1.06) - high) * t
    ripple = 0.02 * (look.style == "wavy") * np.sin(t * 14 + look.part * 6)
    inside = width * (0.89 + 0.1 * np.sin(np.pi * t) - (0.12 if bob else 0.22) * t**3) + ripple / 2
    outside = width + 0.035 + 0.06 * np.sqrt(t) - 0.05 * bob * t**4 + ripple
    for side in (-1, 1):
        inner, outer = (np.stack([look.x + side * half, y], 1) for half in (inside, outside))
        draw_hair(pen, look, inner, outer, along=True, strands=30)


def draw_extras(pen: Pen, look: SimpleNamespace) -> None:
    """Glasses and earrings."""
    x, y, gap = look.face_x, look.eye_y + 0.008, look.eye_gap
    if look.glasses:
        for side in (-1, 1):
            lens = x + side * gap
            box = pen.place([(lens - 0.087, y - 0.056), (lens + 0.087, y + 0.062)]).tolist()
            radius, width = round((0.03 + 0.05 * look.part) * pen.edge), round(0.02 * pen.edge)
            pen.draw.rounded_rectangle(box, radius, None, (*look.frame, 0), width)
            temple = look.x + side * look.width
            pen.line([(lens + side * 0.087, y - 0.015), (temple, y - 0.01)], look.frame, 0.012)
        pen.line(arc(x - gap + 0.085, y - 0.008, x + gap - 0.085, y - 0.008, -0.012), look.frame, 0.013)
    if look.earrings and look.style != "curly":
        for side in (-1, 1):
            pen.oval(look.x + side * (look.width + 0.012), look.eye_y + 0.15, 0.014, 0.018, (222, 184, 92))


# --- light ---


def shadows(look: SimpleNamespace) -> list[tuple]:
    """Soft shadows (-) and lights (+) on the skin: (x, y, spread x, spread y, per mille)."""
    middle, x, w, folds = look.x, look.face_x, look.width, look.folds
    eye, nose, mouth, chin = look.eye_y, look.nose_y, look.mouth_y, look.chin
    shine = 1 + 3 * (1 - sum(look.skin) / 765) ** 2  # dark skin shows its form by its highlights
    spots = [
        (middle, look.top, 0.3, 0.06, -140),
        (x, eye - 0.16, 0.13, 0.06, 50 * shine),
        (middle, chin + 0.03, 0.16, 0.03, -200),
        (middle, chin + 0.08, 0.2, 0.05, -120),
        (x, (eye + nose) / 2, 0.016, 0.08, 90 * shine),
        (x, nose - 0.025, 0.022, 0.017, 90 * shine),
        (x, nose + 0.018, 0.04, 0.012, -180),
        (x, nose + 0.045, 0.012, 0.02, -60),
        (x, mouth + 0.058, 0.05, 0.014, -140),
        (x, chin - 0.045, 0.05, 0.03, 50 * shine),
    ]
    for side in (-1, 1):
        spots += [
            (middle + side * w * 1.03, 0.58, 0.055, 0.24, -290),
            (middle + side * w * 0.8, chin - 0.06, 0.08, 0.07, -140),
            (x + side * look.eye_gap, eye - 0.035, 0.055, 0.02, -110),
            (x + side * 0.055, eye - 0.005, 0.02, 0.035, -140),
            (x + side * 0.04, nose - 0.055, 0.014, 0.045, -110),
            (x + side * 0.16, nose - 0.035, 0.055, 0.04, 85 + 10 * shine),
            (x + side * 0.12, eye + 0.055, 0.045, 0.014, -30 - 90 * folds),
            (x + side * 0.115, nose + 0.05, 0.02, 0.04, -130 * folds),
            (x + side * 0.17, mouth + 0.01, 0.035, 0.06, -150 * folds),
        ]
    for k in range(max(0, round(3.2 * folds - 0.6))):  # forehead lines, each lit on its lower lip
        y, depth = eye - 0.122 - 0.036 * k, 200 * folds
        spots += [(x, y, 0.085 - 0.008 * k, 0.006, -depth), (x, y + 0.014, 0.085, 0.006, depth / 2)]
    if look.beard == "stubble":
        spots += [(x, mouth + 0.07, 0.15, 0.05, -260), (x, mouth - 0.032, 0.08, 0.016, -230)]
    return spots


def fields(pen: Pen, edge: int, *groups: list[tuple]) -> list[np.ndarray]:
    """One float32 [edge, edge] a group: the sum of its separable Gaussian spots.

    Spots are rounded to whole numbers first: the sums are exact, the same on every machine and in any order.
    Not by BLAS, whose threads wait for each other at this size.
    """
    x, y, sx, sy, amount = np.array([spot for group in groups for spot in group]).T[:, :, None]
    at = (np.arange(edge) + 0.5) / edge
    gx = np.rint(127 * np.exp(-0.5 * (((at - pen.dx) / pen.zoom - x) / sx) ** 2)).astype(np.float32)
    gy = np.rint(127 * np.exp(-0.5 * (((at - pen.dy) / pen.zoom - y) / sy) ** 2)).astype(np.float32)
    gy *= np.rint(amount / 5)  # steps of half a per cent keep every sum below 2 ** 24
    ends = np.cumsum([len(group) for group in groups])
    parts = (slice(end - len(group), end) for end, group in zip(ends, groups, strict=True))
    return [np.einsum("ky,kx->yx", gy[part], gx[part]) / np.float32(127**2 * 200) for part in parts]


def lit(pen: Pen, look: SimpleNamespace, size: int) -> Image.Image:
    """The canvas reduced to `size`, with soft shadows on the skin and one light over the picture."""
    room = [
        (0.0, 0.4, 0.4, 0.5, look.side),
        (1.0, 0.4, 0.4, 0.5, -look.side),
        (0.5, 0.1, 0.4, 0.25, 70),
        (0.0, 1.0, 0.3, 0.4, -160),
        (1.0, 1.0, 0.3, 0.4, -160),
    ]
    cheeks = [(look.face_x + side * 0.15, look.nose_y - 0.03, 0.055, 0.04, look.blush) for side in (-1, 1)]
    light, shadow, blush = fields(pen, size, room, shadows(look), cheeks)
    red, green, blue, skin = (np.asarray(band).astype(np.float32) for band in pen.image.reduce(2).split())
    skin /= 255
    light = (1 + light) * np.float32(look.light) * (1 + shadow * skin)
    cool = light * (1 - blush * skin)
    bands = (
        np.minimum(band * factor + 0.5, 255).astype(np.uint8)
        for band, factor in ((red, light), (green, cool), (blue, cool))
    )
    return Image.merge("RGB", [Image.fromarray(band) for band in bands])


def render(face: Face, size: int = 128) -> Image.Image:
    """`face` as an RGB image of size x size pixels, drawn at twice the size; a pure function of both."""
    look = look_of(face)
    pen = Pen(2 * size, look)
    for part in (
        draw_back,
        draw_neck,
        draw_head,
        draw_beard,
        draw_nose,
        draw_mouth,
        draw_wrinkles,
        draw_eyes,
        draw_front,
        draw_extras,
    ):
        part(pen, look)
    return lit(pen, look, size)
