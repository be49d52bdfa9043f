"""Draws annotated faces in AI-Face's own folder layout: the embedded default, whose truth is known."""

import json
import math
import multiprocessing
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from shards.annotations import AGES, GENDERS, SKIN_TONES
from shards.atomic_io import atomic_write, read_json
from shards.concurrency import available_cpus
from shards.errors import FairfaceError
from shards.synthetic.face import VERSION, Face, render

CLASSES = {"gender": GENDERS, "age": AGES, "skin_tone": SKIN_TONES}
COLUMNS = "Image Path,Predicted Gender,Predicted Age,Skin Tone,Target,Skin Tone Group,Intersection"

# Gender and tone (per cent) as in AI-Face's GAN subset, ages as plausible for it. It has 0.22 % of tone 1, a
# dozen faces among 6,000, from which no small model learns what the tone looks like: hence the floor of 3.
SUBSET_TONES = (0.22, 1.0, 0.58, 9.76, 37.87, 28.98, 12.94, 5.27, 2.06, 1.33)
DEFAULT_GENDER = {"female": 0.525, "male": 0.475}
DEFAULT_AGE = {"child": 0.07, "young": 0.28, "adult": 0.39, "middle": 0.16, "senior": 0.10}
DEFAULT_TONE = {tone: max(share, 3.0) for tone, share in enumerate(SUBSET_TONES, 1)}


def normalised(shares: dict) -> dict:
    """`shares` divided by their sum, to six digits so that they read the same from JSON."""
    total = sum(shares.values())
    return {name: round(share / total, 6) for name, share in shares.items()}


@dataclass(frozen=True)
class Shares:
    """The share of each class, attribute by attribute; the attributes are independent of each other."""

    gender: dict[str, float] = field(default_factory=lambda: normalised(DEFAULT_GENDER))
    age: dict[str, float] = field(default_factory=lambda: normalised(DEFAULT_AGE))
    skin_tone: dict[int, float] = field(default_factory=lambda: normalised(DEFAULT_TONE))


def parse_shares(text: str, attribute: str) -> dict:
    """Shares of `attribute` ('gender', 'age', 'skin_tone') from 'female=0.7,male=0.3'.

    Classes left out get share 0 and the sum is scaled to 1. Raises FairfaceError with one line for bad text.
    """
    classes = {str(name): name for name in CLASSES[attribute]}
    given = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in classes:
            raise FairfaceError(f"{attribute} shares: '{part}' does not name one of {', '.join(classes)}")
        if name in given:
            raise FairfaceError(f"{attribute} shares: '{name}' is given twice")
        try:
            given[name] = float(number)
        except ValueError:
            raise FairfaceError(f"{attribute} shares: '{part}' has no number; write {name}=0.5") from None
        if not 0 <= given[name] < math.inf:
            raise FairfaceError(f"{attribute} shares: '{part}' must be a number from 0 up")
    if not sum(given.values()):
        raise FairfaceError(f"{attribute} shares: at least one class needs a share above 0")
    return normalised({value: given.get(name, 0.0) for name, value in classes.items()})


def sample_faces(count: int, seed: int, shares: Shares | None = None) -> list[Face]:
    """`count` faces drawn independently from `shares`; the first n are the same whatever the count."""
    shares, rng = shares or Shares(), random.Random(seed)
    tables = [(list(table), list(table.values())) for table in (shares.gender, shares.age, shares.skin_tone)]
    return [Face(*(rng.choices(*table)[0] for table in tables), rng.getrandbits(32)) for _ in range(count)]


def image_path(index: int) -> str:
    return f"GANs/Drawn/{index // 1000:03d}/{index:06d}.jpg"


def row(index: int, face: Face) -> str:
    """One line of AI-Face's released annotations."""
    gender, group = GENDERS.index(face.gender), (face.skin_tone > 3) + (face.skin_tone > 6)
    codes = gender, AGES.index(face.age), face.skin_tone, 1, group, 3 * gender + group
    return ",".join(["AI_Face_imagesV2/" + image_path(index), *map(str, codes)])


def save(item: tuple[int, Face], root: Path, size: int, quality: int) -> None:
    render(item[1], size).save(root / image_path(item[0]), quality=quality)


def map_in_processes(work: Callable, items: list, workers: int) -> Iterable:
    """`work` over `items`, here or in fresh processes (a fork could inherit a lock that a thread holds)."""
    if workers == 1:
        yield from map(work, items)
    else:
        with multiprocessing.get_context("spawn").Pool(min(workers, len(items))) as pool:
            yield from pool.imap_unordered(work, items, chunksize=32)


def write_dataset(
    root: Path,
    count: int = 6000,
    seed: int = 0,
    size: int = 128,
    shares: Shares | None = None,
    workers: int | None = None,
    quality: int = 90,
    progress: bool = True,
) -> dict:
    """Draws `count` faces under `root`: GANs/Drawn/*/*.jpg, train.csv and, last, drawn.json with the options.

    Returns drawn.json's content and `unchanged`, true where the folder already held just this. The bytes do
    not depend on `workers` (default: one a core). Raises FairfaceError for a wrong option or a folder with other
    content, OSError for a full disk; what was drawn so far is removed then.
    """
    root = Path(root)
    if count < 1 or not 32 <= size <= 1024 or not 1 <= quality <= 95:
        raise FairfaceError(f"count {count} must be 1 or more, size {size} 32-1024, quality {quality} 1-95")
    options = json.loads(
        json.dumps(
            {
                "count": count,
                "size": size,
                "seed": seed,
                "quality": quality,
                "version": VERSION,
                "shares": asdict(shares or Shares()),
            }
        )
    )
    mark = root / "drawn.json"
    if mark.exists() and read_json(mark) == options:
        return options | {"unchanged": True}
    ours = any(root.glob("*drawn.json*"))  # the mark, or what `replacing` left of it
    if not ours and root.exists() and any(root.iterdir()):
        raise FairfaceError(f"{root} holds other files than drawn faces: name an empty or a new folder")
    mark.unlink(missing_ok=True)
    faces = sample_faces(count, seed, shares)
    if workers is None:
        workers = available_cpus() if count > 300 else 1  # a process takes a moment to start
    try:
        with atomic_write(mark) as file:
            render_all(root, faces, partial(save, root=root, size=size, quality=quality), workers, progress)
            file.write(json.dumps(options, indent=2).encode())
    except BaseException:
        shutil.rmtree(root / "GANs", ignore_errors=True)
        (root / "train.csv").unlink(missing_ok=True)
        raise
    return options | {"unchanged": False}


def render_all(root: Path, faces: list[Face], work: Callable, workers: int, progress: bool) -> None:
    """Draws every face, then writes their table."""
    shutil.rmtree(root / "GANs", ignore_errors=True)
    for index in range(0, len(faces), 1000):
        (root / image_path(index)).parent.mkdir(parents=True)
    done = map_in_processes(work, list(enumerate(faces)), workers)
    for _ in tqdm(done, total=len(faces), desc="drawing", unit=" faces", disable=not progress):
        pass
    with atomic_write(root / "train.csv") as file:
        file.write("\n".join([COLUMNS, *map(row, range(len(faces)), faces), ""]).encode())
