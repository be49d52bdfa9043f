"""Writes synthetic faces with known attributes in AI-Face's folder layout."""

import hashlib
import json
import math
import random
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from io import BytesIO
from itertools import starmap
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from tqdm import tqdm

from shards.annotations import AGES, GENDERS, SKIN_TONES
from shards.atomic_io import atomic_write, read_json, write_json
from shards.attributes import built_in_attributes
from shards.concurrency import available_cpus, map_in_order
from shards.errors import FairfaceError
from shards.locks import exclusive_lock
from shards.processes import worker_pool
from shards.synthetic import fakes
from shards.synthetic.face import VERSION, Face
from shards.synthetic.files import (
    TABLE,
    UNDIVIDED,
    check_content,
    discard_rendering,
    finish_replacement,
    image_path,
    is_whole,
    removable_files,
    replace_files,
    start_rendering,
    write_checksums,
)
from shards.synthetic.look import choose_look
from shards.synthetic.render import render
from shards.workspace import SYNTHETIC_MARKER, SyntheticFolder

Class = TypeVar("Class", str, int)

CLASSES: dict[str, tuple[Any, ...]] = {"gender": GENDERS, "age": AGES, "skin_tone": SKIN_TONES}
COLUMNS = "Image Path,Predicted Gender,Predicted Age,Skin Tone,Target,Skin Tone Group,Intersection,Glasses,Hair"
TABLE_VERSION = 2  # bumped when the annotations change, so that older folders are written again
BATCH = 32  # images that a process renders at a time
ONE_PROCESS_IMAGES = 300  # up to this number, starting more processes takes longer than it saves

# Gender and tone (per cent) as in AI-Face's GAN subset, with plausible ages. The subset has only 0.22 % of tone 1, a
# dozen of 6,000 faces: too few for a small model to learn what the tone looks like. Hence the floor of 3.
SUBSET_TONES = (0.22, 1.0, 0.58, 9.76, 37.87, 28.98, 12.94, 5.27, 2.06, 1.33)
DEFAULT_GENDER = {"female": 0.525, "male": 0.475}
DEFAULT_AGE = {"child": 0.07, "young": 0.28, "adult": 0.39, "middle": 0.16, "senior": 0.10}
DEFAULT_TONE = {tone: max(share, 3.0) for tone, share in enumerate(SUBSET_TONES, 1)}


def normalised(shares: dict[Class, float]) -> dict[Class, float]:
    """`shares` divided by their sum, to six digits so that they are equal after a round trip through JSON."""
    total = sum(shares.values())
    return {name: round(share / total, 6) for name, share in shares.items()}


@dataclass(frozen=True)
class Shares:
    """The share of each class by attribute; attributes are sampled independently."""

    gender: dict[str, float] = field(default_factory=lambda: normalised(DEFAULT_GENDER))
    age: dict[str, float] = field(default_factory=lambda: normalised(DEFAULT_AGE))
    skin_tone: dict[int, float] = field(default_factory=lambda: normalised(DEFAULT_TONE))


@dataclass(frozen=True)
class SyntheticConfig:
    """The options that determine the images and their annotations. Raises FairfaceError for a value out of range."""

    count: int = 6000  # faces
    seed: int = 0
    size: int = 128  # pixels of a side, 32-1024
    shares: Shares = field(default_factory=Shares)
    quality: int = 90  # of the JPEGs, 1-95
    fake_share: float = 0.0  # of faces that are fakes of several generators, the others being real; 0: undivided faces

    def __post_init__(self) -> None:
        if not 0 <= self.fake_share < 1:
            raise FairfaceError(f"the share of fakes is {self.fake_share}, and must be 0 or more and less than 1")
        if self.count < 1 or not 32 <= self.size <= 1024 or not 1 <= self.quality <= 95:
            raise FairfaceError(
                f"count {self.count} must be 1 or more, size {self.size} 32-1024, quality {self.quality} 1-95"
            )

    def to_json(self) -> dict[str, Any]:
        """The options and the renderer's version as JSON, with text as keys; `fake_share` only if it is not 0."""
        values = asdict(self) | {"version": VERSION, "table_version": TABLE_VERSION}
        if self.fake_share:
            values["fakes_version"] = fakes.VERSION
        else:
            del values["fake_share"]
        return json.loads(json.dumps(values))

    @property
    def folders(self) -> list[str]:
        """The folder of each face, which names its family and method."""
        if not self.fake_share:
            return [UNDIVIDED] * self.count
        return fakes.sample_folders(self.count, self.seed, fake_share=self.fake_share)


@dataclass(frozen=True)
class SyntheticResult:
    """The synthetic faces that `write_dataset` wrote or found."""

    config: SyntheticConfig
    unchanged: bool  # whether the folder already held exactly these images


def parse_shares(text: str, attribute: str) -> dict[Any, float]:
    """Shares of `attribute` ('gender', 'age', 'skin_tone') from text such as 'female=0.7,male=0.3'.

    Classes that are not named get share 0, and the sum is scaled to 1. Raises FairfaceError for invalid text.
    """
    classes = {str(name): name for name in CLASSES[attribute]}
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, _, number = (part.strip() for part in item.partition("="))
        if name not in classes:
            raise FairfaceError(f"{attribute} shares: '{item}' does not name one of {', '.join(classes)}")
        if name in shares:
            raise FairfaceError(f"{attribute} shares: '{name}' is named twice")
        try:
            shares[name] = float(number)
        except ValueError:
            raise FairfaceError(f"{attribute} shares: '{item}' has no number; write {name}=0.5") from None
        if not 0 <= shares[name] < math.inf:
            raise FairfaceError(f"{attribute} shares: '{item}' must have a number of 0 or more")
    if not sum(shares.values()):
        raise FairfaceError(f"{attribute} shares: at least one class needs a share above 0")
    return normalised({value: shares.get(name, 0.0) for name, value in classes.items()})


def sample_faces(count: int, seed: int, shares: Shares | None = None) -> list[Face]:
    """Sample `count` faces independently from `shares`; the first N are the same for any count."""
    shares, rng = shares or Shares(), random.Random(seed)
    genders, ages, tones = ((list(table), list(table.values())) for table in vars(shares).values())
    return [
        Face(rng.choices(*genders)[0], rng.choices(*ages)[0], rng.choices(*tones)[0], rng.getrandbits(32))
        for _ in range(count)
    ]


def table_row(path: str, face: Face) -> str:
    """One line of the annotation table, coded as in AI-Face's release; glasses and hair are named."""
    groups = built_in_attributes()["skin_group"].classes
    (group,) = [number for number, item in enumerate(groups) if str(face.skin_tone) in item.of]
    gender = GENDERS.index(face.gender)
    is_fake = not path.startswith(fakes.REAL)
    codes = gender, AGES.index(face.age), face.skin_tone, int(is_fake), group, len(groups) * gender + group
    look = choose_look(face)
    glasses = "glasses" if look.has_glasses else "no glasses"
    return ",".join(["AI_Face_imagesV2/" + path, *map(str, codes), glasses, look.hair_name])


def write_dataset(
    root: Path, config: SyntheticConfig | None = None, *, workers: int | None = None, progress: bool = True
) -> SyntheticResult:
    """Render the faces of `config` under `root`: GANs/Synthetic/*/*.jpg, train.csv, synthetic.json, synthetic.sha256.

    With fakes, the images are in Real/Synthetic, and in a folder for each family and method.
    Nothing is written if the folder already contains exactly these images. Other synthetic faces are replaced when the
    new ones are finished; files that were not rendered stay. The bytes do not depend on `workers`, which is the number
    of processes: by default one per core. Raises FairfaceError for a folder with other content, for a rendered file
    that was changed, and if another process is using the folder.
    """
    config, files = config or SyntheticConfig(), SyntheticFolder(root)
    check_content(files)
    with exclusive_lock(files.lock, "rendering faces"):
        check_content(files)
        finish_replacement(files)
        if files.document.exists() and read_json(files.document) == config.to_json() and is_whole(files):
            return SyntheticResult(config, unchanged=True)
        new = [*map(image_path, range(config.count), config.folders), TABLE, SYNTHETIC_MARKER]
        removable_files(files, new)  # before the work
        start_rendering(files.rendering)
        try:
            render_all(files.rendering, config, workers=workers, progress=progress)
            replaced = removable_files(files, new)  # a file may have been changed since
        except BaseException:
            discard_rendering(files.rendering)
            raise
        replace_files(files, replaced)
    return SyntheticResult(config, unchanged=False)


def render_all(
    files: SyntheticFolder, config: SyntheticConfig, *, workers: int | None = None, progress: bool = True
) -> None:
    """Render every face, then write the annotation table, the document and the checksums."""
    faces = sample_faces(config.count, config.seed, config.shares)
    paths = list(map(image_path, range(config.count), config.folders))
    for folder in dict.fromkeys((files.folder / path).parent for path in paths):
        folder.mkdir(parents=True)
    placed = list(zip(paths, faces, strict=True))
    batches = ((files.folder, placed[start : start + BATCH], config) for start in range(0, len(faces), BATCH))
    if workers is None:
        workers = available_cpus() if config.count > ONE_PROCESS_IMAGES else 1
    digests: list[str] = []
    rendered: Iterable[list[str]]
    with tqdm(total=len(faces), desc="rendering", unit=" faces", disable=not progress) as bar, ExitStack() as stack:
        if workers > 1:
            pool = stack.enter_context(worker_pool(workers, preload=save_images.__module__))
            rendered = (found for _, found in map_in_order(pool, save_images, batches, ahead=4 * workers))
        else:
            rendered = starmap(save_images, batches)
        for found in rendered:
            digests += found
            bar.update(len(found))
    with atomic_write(files.table) as file:
        file.write("\n".join([COLUMNS, *starmap(table_row, placed), ""]).encode())
    write_json(files.document, config.to_json())
    write_checksums(files, dict(zip(paths, digests, strict=True)))


def save_images(root: Path, placed: list[tuple[str, Face]], config: SyntheticConfig) -> list[str]:
    """Render faces and save them as JPEGs at their paths below `root`; returns their SHA-256."""
    return [save_image(root, path, face, config=config) for path, face in placed]


def save_image(root: Path, path: str, face: Face, *, config: SyntheticConfig) -> str:
    """Render one face and save it as a JPEG; returns its SHA-256."""
    buffer = BytesIO()
    render_into(path, face, config.size).save(buffer, "JPEG", quality=config.quality)
    (root / path).write_bytes(buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def render_into(path: str, face: Face, size: int) -> Image.Image:
    """Render a face as its folder requires."""
    folder = "/".join(path.split("/")[:2])
    if folder == UNDIVIDED:
        return render(face, size)
    return fakes.render_real(face, size) if folder == fakes.REAL else fakes.render_fake(face, size, folder=folder)
