"""Draws neck, head, features, glasses and earrings of a synthetic face."""

import numpy as np

from shards.synthetic.face import Colour
from shards.synthetic.look import Look, mix, shade
from shards.synthetic.pen import Pen, arc, curve, head_outline


def draw_neck(pen: Pen, look: Look) -> None:
    """Draw the neck, in the head's shadow, and the clothes."""
    x, size = look.x, 0.86 if look.child else 1
    half, shoulder = look.width * (0.6 if look.male else 0.5) * size, (0.5 if look.male else 0.43) * size
    neck = [(x - half, 0.7), (x + half, 0.7), (x + half * 1.1, 1.05), (x - half * 1.1, 1.05)]
    pen.polygon(neck, shade(look.skin, 0.8), skin=255)
    for side in (-1, 1):
        low, high = (x + side * half * 0.5, 1.06), (x + side * half * 1.05, 0.915)
        end = x + side * shoulder
        pen.polygon([low, *curve(high, (x + side * (half + 0.13), 0.95), (end, 1.0), (end, 1.1))], look.clothes)
        pen.line([low, high], shade(look.clothes, 0.72), width=0.012)


def draw_head(pen: Pen, look: Look) -> None:
    """Draw the ears and the head."""
    for side in (-1, 1):
        x, y = look.x + side * look.width, look.eye_y + 0.055
        pen.ellipse((x, y), (0.034, 0.07), colour=shade(look.skin, 0.92), skin=255)
        pen.ellipse((x + side * 0.006, y), (0.017, 0.045), colour=shade(look.skin, 0.74), skin=255)
    pen.polygon(head_outline(look), look.skin, skin=255)


def draw_beard(pen: Pen, look: Look) -> None:
    """Draw a full beard, goatee or moustache; stubble is a shadow (see `light.skin_shadows`)."""
    colour = mix(look.hair, look.brows, 0.5)
    if look.beard == "full":
        _draw_full_beard(pen, look, colour=colour)
    if look.beard == "goatee":
        _draw_goatee(pen, look, colour=colour)
    if look.beard in ("goatee", "moustache", "full"):
        x, y = look.face_x, look.mouth_y
        left = arc((x - 0.112, y + 0.004), (x, y - 0.047), bend=-0.014)
        right = arc((x, y - 0.047), (x + 0.112, y + 0.004), bend=-0.014)
        bottom = arc((x + 0.1, y), (x - 0.1, y), bend=-0.01)
        pen.polygon(np.concatenate([left, right, bottom]), shade(colour, 0.9))


def _draw_full_beard(pen: Pen, look: Look, *, colour: Colour) -> None:
    x, y, rng = look.face_x, look.mouth_y, look.rng
    outline, half, high = head_outline(look), look.width * 0.86, look.eye_y + 0.1
    inner = curve(
        (look.x - half, high),
        (x - 0.14, y - 0.05),
        (x - 0.05, y - 0.06),
        (x + 0.05, y - 0.06),
        (x + 0.14, y - 0.05),
        (look.x + half, high),
        steps=20,
    )
    pen.polygon(np.concatenate([inner, outline[outline[:, 1] > high] * (1, 1.015)]), colour)
    for _ in range(40):
        a, b = rng.uniform(-1, 1), rng.uniform(0, look.chin - y - 0.05)
        top, left = y + 0.02 + b * (1 - a * a) - 0.04 * a * a, x + a * look.width * 0.72
        tint = shade(colour, rng.choice((0.78, 1.2)))
        pen.line([(left, top), (left + 0.01 * a, top + 0.03)], tint, width=0.006)


def _draw_goatee(pen: Pen, look: Look, *, colour: Colour) -> None:
    x, y, chin = look.face_x, look.mouth_y, look.chin - 0.01
    outline = curve(
        (x - 0.075, y + 0.035),
        (x - 0.055, chin),
        (x, chin + 0.02),
        (x + 0.055, chin),
        (x + 0.075, y + 0.035),
        (x, y + 0.05),
        steps=22,
    )
    pen.polygon(outline, colour)


def draw_nose(pen: Pen, look: Look) -> None:
    """Draw wings, nostrils and the lower edge of the nose; its bridge is a highlight (see `light.skin_shadows`)."""
    x, y, size = look.x + look.turn * 1.3, look.nose_y, look.nose_size
    for side in (-1, 1):
        wing = arc((x + side * 0.044 * size, y - 0.03 * size), (x + side * 0.026 * size, y + 0.006), bend=0.004)
        pen.line(wing, shade(look.skin, 0.72), width=0.006, skin=255)
        nostril = (x + side * 0.02 * size, y)
        pen.ellipse(nostril, (0.0115 * size, 0.0065 * size), colour=shade(look.skin, 0.4), skin=255)
    edge = arc((x - 0.012, y + 0.006), (x + 0.012, y + 0.006), bend=0.004)
    pen.line(edge, shade(look.skin, 0.7), width=0.005, skin=255)


def draw_mouth(pen: Pen, look: Look) -> None:
    """Draw lips and teeth."""
    x, y, half, full = look.face_x, look.mouth_y, look.mouth_width, 0.026 * look.lip_size
    red, share = ((178, 34, 58), 0.72) if look.has_lipstick else ((176, 82, 84), 0.34 if look.male else 0.5)
    lip, corner, gap = mix(look.skin, red, share), y - look.smile, 0.014 if look.shows_teeth else 0.0
    left, right = (x - half, corner), (x + half, corner)
    upper_edge = arc(left, right, bend=look.smile + 0.002)
    lower_edge = arc(left, right, bend=look.smile + 0.002 + gap)
    top = curve(left, (x - 0.02, y - full), (x, y - full * 0.78), (x + 0.02, y - full), right, steps=17)
    bottom = arc(right, left, bend=look.smile + gap + full * 1.35)
    pen.polygon(np.concatenate([top, upper_edge[::-1]]), shade(lip, 0.86))
    pen.polygon(np.concatenate([lower_edge, bottom]), lip)
    if look.shows_teeth:
        pen.polygon(np.concatenate([upper_edge, lower_edge[::-1]]), (238, 232, 224))
    pen.line(upper_edge, shade(lip, 0.45), width=0.007)
    y += gap + full * 0.75
    pen.line(arc((x - half * 0.4, y), (x + half * 0.4, y), bend=0.002), shade(lip, 1.16), width=0.007)


def draw_wrinkles(pen: Pen, look: Look) -> None:
    """Draw folds next to the mouth, bags under the eyes and lines next to them; `light` adds the forehead's."""
    x, y, nose, folds = look.face_x, look.eye_y, look.nose_y, look.folds
    ink = shade(look.skin, 1 - 0.28 * folds**0.8)
    for side in (-1, 1) if folds else ():
        fold = curve(
            (x + side * 0.058, nose - 0.012),
            (x + side * 0.092, nose + 0.03),
            (x + side * 0.112, look.mouth_y - 0.02 + 0.03 * folds),
            steps=7,
        )
        pen.line(fold, ink, width=0.007, skin=255)
        if folds > 0.5:
            eye = x + side * look.eye_gap
            bag = arc((eye - side * 0.045, y + 0.034), (eye + side * 0.05, y + 0.034), bend=0.014)
            pen.line(bag, ink, width=0.006, skin=255)
            for k in (-1, 0, 1):
                crow = [(eye + side * 0.076, y + 0.012 * k), (eye + side * 0.108, y + 0.026 * k)]
                pen.line(crow, ink, width=0.006, skin=255)


def draw_eyes(pen: Pen, look: Look) -> None:
    """Draw eyes, lids, lashes and brows."""
    for side in (-1, 1):
        _draw_eye(pen, look, side=side)
        _draw_brow(pen, look, side=side)


def _draw_eye(pen: Pen, look: Look, *, side: int) -> None:
    x, y, size, skin = look.face_x + side * look.eye_gap, look.eye_y, look.eye_size, look.skin
    rx, up, down = 0.0605 * (0.65 + 0.35 * size), 0.0305 * size, 0.02 * size
    iris = 0.0265 * (0.7 + 0.3 * size)
    lash, tail = mix(shade(skin, 0.3), (18, 12, 12), 0.6), y - 0.002 + 0.004 * look.folds
    inner, outer = x - side * rx, x + side * rx
    upper = arc((inner, y + 0.004), (outer, tail), bend=-up)
    lower = arc((outer, tail), (inner, y + 0.004), bend=down)
    crease = arc((inner, y - 0.004), (outer, tail - 0.008), bend=-up - 0.014)
    pen.polygon(np.concatenate([upper, lower]), (228, 221, 215))
    pen.ellipse((x, y - 0.004), (iris, iris), colour=shade(look.iris, 0.6))
    pen.ellipse((x, y - 0.003), (iris * 0.84, iris * 0.84), colour=look.iris)
    pen.ellipse((x, y - 0.004), (iris * 0.45, iris * 0.45), colour=(12, 10, 10))
    pen.ellipse((x + 0.008, y - 0.012), (0.0055, 0.0055), colour=(250, 250, 250))
    # the lids cover the iris
    pen.polygon(np.concatenate([upper, crease[::-1]]), shade(skin, 0.86), skin=255)
    pen.polygon(np.concatenate([lower, lower[::-1] + np.array((0, 0.012))]), skin, skin=255)
    pen.line(crease, shade(skin, 0.66), width=0.005, skin=255)
    pen.line(lower, shade(skin, 0.62), width=0.005, skin=255)
    pen.line(upper, lash, width=0.009 if look.male else 0.014)
    if not look.male:
        pen.line([(outer - side * 0.008, y - 0.008), (outer + side * 0.016, y - 0.02)], lash, width=0.009)


def _draw_brow(pen: Pen, look: Look, *, side: int) -> None:
    x, y = look.face_x + side * look.eye_gap, look.eye_y - 0.062 - 0.012 * look.eye_size
    thick, lift = 0.0115 * look.brow_size, 0.006 if look.male else 0.014
    upper = arc((x - side * 0.06, y + 0.003), (x + side * 0.075, y + 0.011), bend=-lift - thick)
    lower = arc((x + side * 0.075, y + 0.012), (x - side * 0.062, y + 0.006 + thick), bend=-lift + 0.002)
    pen.polygon(np.concatenate([upper, lower]), mix(look.brows, look.skin, 0.12))


def draw_glasses_and_earrings(pen: Pen, look: Look) -> None:
    """Draw glasses, and earrings where no curls cover them."""
    x, y, gap = look.face_x, look.eye_y + 0.008, look.eye_gap
    if look.has_glasses:
        for side in (-1, 1):
            lens = x + side * gap
            box = pen.to_pixels([(lens - 0.087, y - 0.056), (lens + 0.087, y + 0.062)]).tolist()
            radius, width = round((0.03 + 0.05 * look.parting) * pen.edge), round(0.02 * pen.edge)
            pen.draw.rounded_rectangle(box, radius, None, (*look.frame, 0), width)
            temple = look.x + side * look.width
            pen.line([(lens + side * 0.087, y - 0.015), (temple, y - 0.01)], look.frame, width=0.012)
        bridge = arc((x - gap + 0.085, y - 0.008), (x + gap - 0.085, y - 0.008), bend=-0.012)
        pen.line(bridge, look.frame, width=0.013)
    if look.has_earrings and look.hair_style != "curly":
        for side in (-1, 1):
            ear = (look.x + side * (look.width + 0.012), look.eye_y + 0.15)
            pen.ellipse(ear, (0.014, 0.018), colour=(222, 184, 92))
