"""Every AI-Face layout, from its CSV and files to the same bytes in every reader of tars."""

import csv
import tarfile
from pathlib import Path

import polars as pl
import pytest
import webdataset

from shards import annotations, tar
from shards.containers import is_plainly_safe
from shards.image_check import inspect_and_convert
from shards.synthetic.dataset import sample_faces
from tests.shards.packing import pack_into
from tests.shards.sample_images import BAD, GOOD

FACES = sample_faces(40, seed=5)
FOLDERS = ("GANs/STYLE-GAN2", "DMs/DCFACe/7856", "Real/FF HQ's", 'deepfakes/Ü "q"\n', "GANs/AttGAN")
AGES = {"readme": (0, 1, 3, 4, 5), "released": range(5), "trimmed": range(5), "first": (3, 0, 0, 1, 2)}
HEADERS = {
    "readme": ("Image Path", "Gender", "Age", "Skin Tone", "Intersection", "Target"),
    "released": (
        "Image Path",
        "Predicted Gender",
        "Predicted Age",
        "Skin Tone",
        "Target",
        "Skin Tone Group",
        "Intersection",
    ),
    "first": (
        "Image Path",
        *(f"Uncertainty Score {name}" for name in ("Gender", "Age", "Race")),
        *(f"Ground Truth {name}" for name in ("Gender", "Age", "Race")),
        "Intersection",
        "Target",
    ),
}
HEADERS["trimmed"] = HEADERS["released"]
PREFIXES = {"readme": "", "released": "AI_Face_imagesV2/", "first": "/home/somebody/AI-Face/", "trimmed": None}


def image_path(number: int) -> str:
    """Where face `number` lies: the same few names in every folder."""
    return f"{FOLDERS[number % 5]}/{number // 5}.jpg"


def cells(layout: str, number: int, root: Path) -> dict[str, object]:
    """A face's row in that layout."""
    face = FACES[number]
    gender, group = int(face.gender == "male"), (face.skin_tone > 3) + (face.skin_tone > 6)
    age = AGES[layout][annotations.AGES.index(face.age)]
    written = image_path(number).replace("STYLE-GAN2", "StyleGAN2_FFHQ")
    prefix = PREFIXES[layout] if PREFIXES[layout] is not None else f"{root}/"
    if layout == "trimmed":
        written = image_path(number)
    return {
        "Image Path": prefix + written,
        **{f"{kind}Gender": gender for kind in ("", "Predicted ", "Ground Truth ")},
        **{f"{kind}Age": age for kind in ("", "Predicted ", "Ground Truth ")},
        "Ground Truth Race": number % 4,
        "Skin Tone": face.skin_tone,
        "Skin Tone Group": group,
        "Intersection": 3 * gender + group,
        "Target": int(not image_path(number).startswith("Real")),
    }


@pytest.fixture(params=["readme", "released", "first", "trimmed"])
def tree(request, tmp_path) -> tuple[str, Path]:
    """Forty faces in five folders, two of them missing; a folder of every kind of image; a table."""
    layout, root = request.param, tmp_path / "AI Face"
    kinds = [*GOOD.values()]
    for number in range(len(FACES)):
        if number not in (3, 7):
            (root / image_path(number)).parent.mkdir(parents=True, exist_ok=True)
            (root / image_path(number)).write_bytes(kinds[number % len(kinds)][1])
    (root / "DMs" / "broken").mkdir()
    for reason, data in BAD.items():
        (root / "DMs" / "broken" / f"{reason}.png").write_bytes(data)
    with open(root / "train_gan_subset.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, HEADERS[layout], restval=0.5, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(cells(layout, number, root) for number in range(len(FACES)))
    return layout, root


def test_every_layout_labels_the_right_images(tree, tmp_path):
    layout, root = tree
    document = pack_into(root, tmp_path / "shards", shard_images=16)
    assert (document.images, document.matched, document.rows, document.rows_disagreeing) == (38, 38, 40, 0)
    assert document.unmatched == {"missing_rows": 2, "missing_images": len(BAD)}
    assert document.rejected == dict.fromkeys(BAD, 1)
    images = pl.read_parquet(tmp_path / "shards" / "images.parquet").filter(status="packed")
    rows = {row["path"]: row for row in images.iter_rows(named=True)}
    for number, face in enumerate(FACES):
        if number in (3, 7):
            continue
        row = rows[image_path(number)]
        first = layout == "first"
        age = {"child": None, "young": "young", "adult": "young"}.get(face.age, face.age) if first else face.age
        tone = None if first else face.skin_tone
        assert (row["gender"], row["age"], row["skin_tone"]) == (face.gender, age, tone)
        assert row["race"] == (annotations.RACES[number % 4] if first else None)
        assert row["target"] == ("real" if image_path(number).startswith("Real") else "fake")
        assert (row["family"], row["subset"], row["split"]) == (*image_path(number).split("/")[:2], "train")


def read_by_dali(paths: list[Path]) -> list[bytes]:
    """Every member by DALI's reader, in order."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        kinds = [";".join(("jpg", "png", "webp", "bmp", "tif"))]
        names = [str(path) for path in paths]
        return fn.readers.webdataset(paths=names, index_paths=[n[:-3] + "idx" for n in names], ext=kinds, name="reader")

    running = pipeline()
    running.build()
    return [bytes(running.run()[0].at(0)) for _ in range(running.reader_meta("reader")["epoch_size"])]


def test_tar_webdataset_dali_and_the_index_read_the_same(tree, tmp_path):
    _, root = tree
    folder = tmp_path / "shards"
    pack_into(root, folder, shard_images=16)
    paths, ours = sorted(folder.glob("*.tar")), {}
    for path in paths:
        ours |= tar.read_members(path, tar.read_index(path))
        with tarfile.open(path) as file:
            assert {
                member.name.split(".")[0]: file.extractfile(member).read() for member in file
            }.items() <= ours.items()
    samples = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False)
    loaded = {s["__key__"]: next(v for k, v in s.items() if not k.startswith("__")) for s in samples}
    table = pl.read_parquet(folder / "images.parquet").filter(status="packed")
    assert loaded == ours
    assert list(loaded) == table["key"].to_list()
    assert read_by_dali(paths) == list(ours.values())
    for key, path in table.select("key", "path").iter_rows():
        data = (root / path).read_bytes()
        assert ours[key] == (data if is_plainly_safe(data) else inspect_and_convert(data)[1])
