"""The definition of a synthetic face: its annotated classes and a seed."""

from dataclasses import dataclass

from shards.attributes import built_in_attributes

VERSION = 2  # bumped when the rendered images change, so that older folders are rendered again

Colour = tuple[int, int, int]  # sRGB, 0-255
TONES: dict[int, Colour] = {
    int(tone.name): (red, green, blue)
    for tone in built_in_attributes()["skin_tone"].classes
    for red, green, blue in [bytes.fromhex((tone.colour or "")[1:])]
}


@dataclass(frozen=True)
class Face:
    """The annotated classes of one face; the rest of its appearance follows from `seed`."""

    gender: str  # 'female', 'male'
    age: str  # 'child', 'young', 'adult', 'middle', 'senior'
    skin_tone: int  # Monk 1-10
    seed: int  # of hair, glasses, beard, brows, eyes, shape, pose, light and background
