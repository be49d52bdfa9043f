"""Chooses the appearance of a synthetic face from its seed, before anything is rendered."""

import random
from dataclasses import dataclass
from typing import Any

from shards.synthetic.face import TONES, Colour, Face

HAIR_COLOURS: dict[tuple[str, Colour], float] = {  # the annotated name, and the colour -> its weight
    ("black", (26, 22, 22)): 28,
    ("brown", (54, 37, 28)): 27,
    ("brown", (92, 60, 38)): 18,
    ("brown", (132, 95, 62)): 10,
    ("blond", (196, 158, 102)): 12,
    ("red", (146, 70, 38)): 5,
}
GREY_HAIR = 0.5  # share of grey from which hair is annotated as grey
IRIS_COLOURS: tuple[Colour, ...] = (
    (58, 36, 22),
    (88, 56, 30),
    (40, 27, 20),
    (70, 110, 140),
    (88, 112, 72),
    (110, 120, 125),
)
CLOTHES_COLOURS: tuple[Colour, ...] = (
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
BACKGROUND_COLOURS: tuple[Colour, ...] = (
    (150, 164, 178),
    (178, 170, 156),
    (142, 160, 146),
    (172, 152, 150),
    (128, 136, 150),
    (186, 186, 188),
    (156, 150, 172),
    (118, 140, 144),
)
FRAME_COLOURS: tuple[Colour, ...] = ((28, 26, 28), (84, 52, 34), (58, 62, 84))
HAIR_STYLES: dict[str, dict[str, float]] = {
    "female": {"long": 38, "wavy": 26, "bob": 18, "bun": 7, "curly": 8, "short": 3},
    "male": {"short": 44, "quiff": 20, "buzz": 14, "curly": 10, "fringe": 12},
}
BALDING_SHARES = {"adult": 0.06, "middle": 0.2, "senior": 0.42}  # of the men
BEARDS: dict[str, float] = {"none": 34, "stubble": 12, "full": 30, "goatee": 12, "moustache": 12}  # of men, not boys
#        width height  eye line  eye size nose  lips  folds
PROPORTIONS = {
    "child": (0.300, 0.342, 0.592, 1.40, 0.66, 0.86, 0.0),
    "young": (0.284, 0.372, 0.522, 1.15, 0.92, 1.12, 0.0),
    "adult": (0.288, 0.390, 0.502, 0.96, 1.02, 1.00, 0.30),
    "middle": (0.294, 0.392, 0.502, 0.90, 1.08, 0.86, 0.65),
    "senior": (0.288, 0.394, 0.505, 0.80, 1.16, 0.66, 1.0),
}


@dataclass
class Look:
    """The appearance of a face in the unit frame: x to the right, y down, the image is 0..1; sizes are half extents."""

    face: Face
    rng: random.Random  # for choices made while rendering, such as strands of hair
    male: bool
    child: bool
    skin: Colour
    folds: float  # depth of wrinkles, 0-1

    # shape
    x: float  # the head's middle
    top: float
    width: float
    height: float
    y: float
    chin: float
    jaw: float  # exponent of the lower half's outline; a higher one is squarer
    taper: float  # how much the lower half narrows
    turn: float  # how far the features are shifted from the head's middle
    face_x: float  # the features' middle
    eye_y: float
    eye_gap: float
    eye_size: float
    nose_size: float
    nose_y: float
    mouth_y: float
    mouth_width: float
    lip_size: float
    smile: float
    shows_teeth: bool
    brow_size: float

    # pose, light and colours
    shift: tuple[float, float]
    zoom: float
    light: float  # factor on the whole image
    side_light: float  # per mille, from the left
    background: Colour
    clothes: Colour
    iris: Colour
    has_glasses: bool
    frame: Colour
    blush: float  # per mille
    has_lipstick: bool
    has_earrings: bool
    beard: str

    # hair
    hair_style: str
    hair: Colour
    hair_name: str  # annotated: black, brown, blond, red, grey
    brows: Colour
    is_flowing: bool  # whether the hair falls next to the face
    has_fringe: bool
    parting: float  # 0-1 from left to right


def choose_look(face: Face) -> Look:
    """Choose the look of `face`, a pure function of it."""
    rng = random.Random(face.seed)
    male, child = face.gender == "male", face.age == "child"
    folds = PROPORTIONS[face.age][-1]
    # the order of the calls matters: they share `rng`
    return Look(
        face,
        rng,
        male,
        child,
        TONES[face.skin_tone],
        folds,
        **_choose_shape(rng, face),
        **_choose_pose_and_colours(rng, face),
        **_choose_hair(rng, face),
    )


def _choose_shape(rng: random.Random, face: Face) -> dict[str, Any]:
    """Positions and sizes of head and features."""

    def around(value: float, spread: float) -> float:
        return value * rng.uniform(1 - spread, 1 + spread)

    male, child, grown = face.gender == "male", face.age == "child", face.age not in ("child", "young")
    width, height, eye_y, eye_size, nose_size, lip_size, _ = PROPORTIONS[face.age]
    shape: dict[str, Any] = {"x": 0.5, "top": 0.165 if child else 0.13}
    shape["width"] = around(width * (1.03 if male else 0.98), 0.03)
    shape["height"] = around(height, 0.015)
    shape["y"], shape["chin"] = shape["top"] + shape["height"], shape["top"] + 2 * shape["height"]
    shape["jaw"] = around((2.8 if grown else 2.5) if male else 2.1, 0.06)
    shape["taper"] = around(0.16 if male else 0.2, 0.2)
    shape["turn"] = rng.uniform(-0.012, 0.012)
    shape["face_x"] = shape["x"] + shape["turn"]
    shape["eye_y"] = around(eye_y, 0.012)
    shape["eye_gap"] = around(0.122, 0.04)
    shape["eye_size"] = around(eye_size * (0.95 if male else 1.06), 0.05)
    shape["nose_size"] = around(nose_size * (1.08 if male else 0.94), 0.08)
    shape["nose_y"] = shape["eye_y"] + around(0.155, 0.05) * (nose_size + 1) / 2
    shape["mouth_y"] = shape["nose_y"] + (shape["chin"] - shape["nose_y"]) * around(0.43, 0.04)
    shape["mouth_width"] = around(0.088 if child else 0.1, 0.07)
    shape["lip_size"] = around(lip_size * (0.82 if male else 1.12), 0.1)
    shape["smile"], shape["shows_teeth"] = rng.uniform(0, 0.022), rng.random() < 0.2
    shape["brow_size"] = around((1.35 if male else 0.72) * (0.8 if child else 1), 0.15)
    return shape


def _choose_pose_and_colours(rng: random.Random, face: Face) -> dict[str, Any]:
    """Position, light, background, clothes, glasses, make-up and beard."""
    male, child, grown = face.gender == "male", face.age == "child", face.age not in ("child", "young")
    return {
        "shift": (rng.uniform(-0.012, 0.012), rng.uniform(-0.01, 0.01)),
        "zoom": rng.uniform(1.08, 1.12),
        "light": rng.uniform(0.975, 1.025),  # wider ranges of this and the next would blur the tones
        "side_light": rng.uniform(-30, 30),
        "background": rng.choice(BACKGROUND_COLOURS),
        "clothes": rng.choice(CLOTHES_COLOURS),
        "iris": rng.choice(IRIS_COLOURS),
        "has_glasses": rng.random() < 0.18,
        "frame": rng.choice(FRAME_COLOURS),
        "blush": rng.uniform(8, 25) if male or grown else rng.uniform(20, 45),
        "has_lipstick": not male and not child and rng.random() < 0.5,
        "has_earrings": not male and not child and rng.random() < 0.4,
        "beard": _pick(rng, BEARDS) if male and not child else "none",
    }


def _choose_hair(rng: random.Random, face: Face) -> dict[str, Any]:
    """Style and colour of the hair, independent of the skin tone, so that only the skin shows the tone."""
    male = face.gender == "male"
    style = _pick(rng, HAIR_STYLES[face.gender])
    if male and rng.random() < BALDING_SHARES.get(face.age, 0):
        style = "balding"
    name, colour = _pick(rng, HAIR_COLOURS)
    grey = {"middle": rng.uniform(0.1, 0.6), "senior": rng.uniform(0.82, 1)}.get(face.age, 0)
    return {
        "hair_style": style,
        "hair": mix(colour, (196, 194, 192), grey),
        "hair_name": "grey" if grey > GREY_HAIR else name,
        "brows": mix(mix(colour, (30, 24, 22), 0.35), (150, 146, 142), grey * 0.7),
        "is_flowing": style in ("long", "wavy", "bob"),
        "has_fringe": style == "fringe" or (not male and style != "curly" and rng.random() < 0.25),
        "parting": rng.uniform(0.25, 0.75),
    }


def _pick(rng: random.Random, weights: dict[Any, float]) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Mix two colours: `a` with the share `share` of `b`."""
    red, green, blue = [round(x + (y - x) * share) for x, y in zip(a, b, strict=True)]
    return red, green, blue


def shade(colour: Colour, factor: float) -> Colour:
    """`colour` with its brightness multiplied by `factor`."""
    red, green, blue = [min(255, round(x * factor)) for x in colour]
    return red, green, blue
