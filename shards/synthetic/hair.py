"""Draws the hair of a synthetic face."""

import numpy as np

from shards.synthetic.look import Look, mix, shade
from shards.synthetic.pen import Pen, arc, bow, curve, unit_steps

SHEEN = (255, 236, 214)  # the colour of light on hair


def draw_hair_behind(pen: Pen, look: Look) -> None:
    """Draw the hair behind head and neck."""
    x, top, width, dark = look.x, look.top, look.width, shade(look.hair, 0.72)
    if look.is_flowing:
        end = 0.86 if look.hair_style == "bob" else 1.06
        crown = bow((x, 0.5), (width + 0.045, 0.53 - top), squareness=2.2)
        pen.polygon([*crown, (x + width + 0.06, end), (x - width - 0.06, end)], dark)
    elif look.hair_style == "bun":
        pen.ellipse((x, top - 0.03), (0.115, 0.1), colour=look.hair)
        for r in (0.085, 0.055):
            pen.line(arc((x - r, top - 0.04), (x + r, top - 0.04), bend=-r), dark, width=0.008)
    elif look.hair_style == "curly":
        base, volume, radius = (0.46, 0.02, 0.042) if look.male else (0.56, 0.08, 0.052)
        ring = bow((x, base), (width + volume, base - top + volume * 0.4), squareness=2.1)
        pen.polygon(ring, dark)
        _draw_curls(pen, look, points=ring, radius=radius)


def draw_hair_in_front(pen: Pen, look: Look) -> None:
    """Draw the hair on top of the head and, where it is long, next to the face."""
    style, ear = look.hair_style, look.eye_y + (0.05 if look.male else 0.0)
    if style == "balding":
        _draw_balding_sides(pen, look, ear=ear)
        return
    hairline, crown = _hairline_and_crown(look, ear)
    if style == "buzz":
        pen.polygon(np.concatenate([hairline, crown[::-1]]), mix(look.hair, look.skin, 0.35), skin=120)
        return
    along = style in ("quiff", "long", "bob") and not look.has_fringe
    _draw_strands(pen, look, inner=hairline, outer=crown, along=along, strands=72)
    if style == "curly":
        for share, radius in ((0.05, 0.03), (0.35, 0.036), (0.7, 0.04), (1, 0.04)):
            points = (hairline + (crown - hairline) * share)[1:-1:2]
            _draw_curls(pen, look, points=points, radius=radius)
    if look.is_flowing:
        _draw_curtains(pen, look)


def _hairline_and_crown(look: Look, ear: float) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the upper edge of the hair on top of the head, each [25, 2], from ear to ear."""
    style, x, width = look.hair_style, look.x, look.width
    forehead = look.eye_y - (0.115 if look.has_fringe else 0.205 + 0.035 * look.folds * look.male)
    volume = {"quiff": 0.06, "buzz": 0.014, "short": 0.03, "fringe": 0.035, "bun": 0.012}.get(style, 0.04)
    hairline = bow((x, ear), (width * 0.93, ear - forehead), squareness=2.9 if look.male else 2.5)
    overhang = 0.045 if look.is_flowing else min(volume, 0.022)
    crown = bow((x, ear), (width + overhang, ear - look.top + volume), squareness=2.3)
    if not look.has_fringe and (look.is_flowing or style in ("quiff", "short")):  # a parting lifts the line
        hairline[:, 1] -= 0.045 * np.exp(-(((unit_steps(len(hairline)) - look.parting) / 0.14) ** 2))
    roughness = {"short": 0.008, "fringe": 0.009, "quiff": 0.005}.get(style, 0.0025)
    for edge in (hairline, crown):
        edge[2:-2, 1] += [look.rng.uniform(-roughness, roughness) for _ in edge[2:-2]]
    return hairline, crown


def _draw_strands(pen: Pen, look: Look, *, inner: np.ndarray, outer: np.ndarray, along: bool, strands: int) -> None:
    """Draw the area between two curves [N, 2], combed along them or across from one to the other."""
    pen.polygon(np.concatenate([inner, outer[::-1]]), look.hair)
    rng, last = look.rng, len(inner) - 1
    dark = [(*shade(look.hair, factor), 0) for factor in (0.74, 0.82, 0.9)]
    bright = [(*mix(look.hair, SHEEN, share), 0) for share in (0.05, 0.1, 0.15)]
    levels = pen.to_pixels(inner + (outer - inner) * unit_steps(17)[1:-1, None, None]).tolist()
    for k in range(strands):
        if along:
            start = int(rng.random() * last * 0.7)
            end = start + 3 + int(rng.random() * last * 0.6)
            points = levels[int(rng.random() * 15)][2 * start : 2 * end]
        else:
            i, low = int(rng.random() * (last + 1)), int(rng.random() * 6)
            j = i + round((look.parting * last - i) * 0.3)  # strands fan out from the parting
            points = levels[low][2 * i : 2 * i + 2] + levels[low + 4 + int(rng.random() * 5)][2 * j : 2 * j + 2]
        pen.draw.line(points, dark[k % 3] if k % 5 < 3 else bright[k % 3], max(1, pen.edge // 200))


def _draw_curls(pen: Pen, look: Look, *, points: np.ndarray, radius: float) -> None:
    """Draw small overlapping curls at `points` [N, 2], each lit from above."""
    rng, bright = look.rng, mix(look.hair, SHEEN, 0.05)
    colours = [shade(look.hair, factor) for factor in (0.8, 0.88, 0.95, 1)]
    for x, y in points.tolist():
        r = radius * rng.uniform(0.75, 1.2)
        pen.ellipse((x, y), (r, r), colour=rng.choice(colours))
        pen.ellipse((x + rng.uniform(-r, r) / 2, y - r * 0.3), (r * 0.5, r * 0.4), colour=bright)


def _draw_balding_sides(pen: Pen, look: Look, *, ear: float) -> None:
    """Draw the hair that a balding man has left."""
    high, middle = look.eye_y - 0.16, look.eye_y - 0.075
    for side in (-1, 1):
        inner, outer = (
            curve(*((look.x + side * (look.width + offset), y) for offset, y in points))
            for points in (
                ((-0.009, high), (-0.04, middle), (-0.02, ear)),
                ((-0.006, high), (0.028, middle), (0.025, ear + 0.02)),
            )
        )
        _draw_strands(pen, look, inner=inner, outer=outer, along=True, strands=14)


def _draw_curtains(pen: Pen, look: Look) -> None:
    """Draw the hair that falls next to the face: to the chin for a bob, else beyond the lower edge."""
    bob, width, t, high = look.hair_style == "bob", look.width, unit_steps(14), look.eye_y - 0.12
    y = high + ((0.87 if bob else 1.06) - high) * t
    ripple = 0.02 * (look.hair_style == "wavy") * np.sin(t * 14 + look.parting * 6)
    inside = width * (0.89 + 0.1 * np.sin(np.pi * t) - (0.12 if bob else 0.22) * t**3) + ripple / 2
    outside = width + 0.035 + 0.06 * np.sqrt(t) - 0.05 * bob * t**4 + ripple
    for side in (-1, 1):
        inner, outer = (np.stack([look.x + side * half, y], 1) for half in (inside, outside))
        _draw_strands(pen, look, inner=inner, outer=outer, along=True, strands=30)
