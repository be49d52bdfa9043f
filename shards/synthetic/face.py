"""The definition of a synthetic face: its annotated classes and a seed."""

from dataclasses import dataclass

VERSION = 2  # bumped when the rendered images change, so that older folders are rendered again
MONK = "f6ede4 f3e7db f7ead0 eadaba d7bd96 a07e56 825c43 604134 3a312a 292420"

Colour = tuple[int, int, int]  # sRGB, 0-255
TONES: dict[int, Colour] = {
    tone: (int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)) for tone, code in enumerate(MONK.split(), 1)
}


@dataclass(frozen=True)
class Face:
    """The annotated classes of one face; the rest of its appearance follows from `seed`."""

    gender: str  # 'female', 'male'
    age: str  # 'child', 'young', 'adult', 'middle', 'senior'
    skin_tone: int  # Monk 1-10
    seed: int  # of hair, glasses, beard, brows, eyes, shape, pose, light and background
