"""Real faces and fakes among the synthetic ones: their folders, their annotations, and the traces of each generator."""

import csv
import shutil

import numpy as np
import polars as pl
import pytest

from shards.errors import FairfaceError
from shards.pack import pack
from shards.plan import PackConfig
from shards.synthetic import fakes
from shards.synthetic.dataset import SyntheticConfig, sample_faces, write_dataset
from shards.synthetic.fakes import FAKES, REAL, render_fake, render_real, sample_folders
from shards.workspace import Workspace
from tests.shards.synthetic.test_dataset import folder_hash

SMALL = SyntheticConfig(count=60, seed=4, size=32, fake_share=0.5)
FACES = sample_faces(24, 0)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("fakes")
    write_dataset(root, SMALL, workers=1, progress=False)
    return root


def test_faces_are_packed_with_their_target_family_and_method(rendered, tmp_path):
    workspace = Workspace(tmp_path)
    pack(rendered, workspace.shards, PackConfig(), progress=False)
    images = pl.read_parquet(workspace.shards.images)
    assert (len(images), set(images["status"])) == (60, {"packed"})
    assert set((images["family"] + "/" + images["subset"]).unique()) <= {REAL, *FAKES}
    assert images.filter(family="Real")["target"].unique().to_list() == ["real"]
    assert images.filter(pl.col("family") != "Real")["target"].unique().to_list() == ["fake"]
    assert images["gender"].null_count() == images["skin_tone"].null_count() == 0
    assert 15 < (images["target"] == "fake").sum() < 45


def test_the_attributes_are_those_of_the_same_faces_without_fakes(rendered, tmp_path):
    write_dataset(tmp_path, SyntheticConfig(count=60, seed=4, size=32), workers=1, progress=False)
    tables = []
    for root in (rendered, tmp_path):
        with (root / "train.csv").open() as file:
            tables.append([{**row, "Image Path": "", "Target": ""} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]


def test_the_bytes_do_not_depend_on_the_workers(rendered, tmp_path):
    write_dataset(tmp_path, SMALL, workers=2, progress=False)
    assert folder_hash(tmp_path) == folder_hash(rendered)
    assert write_dataset(tmp_path, SMALL, progress=False).unchanged


def test_faces_without_fakes_are_described_as_before():
    values = SyntheticConfig().to_json()
    assert list(values) == ["count", "seed", "size", "shares", "quality", "version", "table_version"]
    assert SMALL.to_json().keys() - values.keys() == {"fake_share", "fakes_version"}


def test_faces_with_fakes_replace_others_and_the_reverse(rendered, tmp_path):
    shutil.copytree(rendered, tmp_path, dirs_exist_ok=True)
    plain = SyntheticConfig(count=5, size=32)
    write_dataset(tmp_path, plain, workers=1, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["GANs"]
    assert len(list(tmp_path.rglob("*.jpg"))) == 5
    write_dataset(tmp_path, SMALL, workers=1, progress=False)
    assert folder_hash(tmp_path) == folder_hash(rendered)


def test_generators_are_equally_frequent_and_a_shorter_sample_is_a_prefix():
    folders = sample_folders(6000, 1, fake_share=0.5)
    counts = {name: folders.count(name) for name in FAKES}
    chi2 = sum((count - 500) ** 2 / 500 for count in counts.values())
    assert chi2 < 21  # the 0.999 quantile for 5 degrees of freedom
    assert sample_folders(50, 1, fake_share=0.5) == folders[:50]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(FairfaceError, match="share of fakes"):
        SyntheticConfig(fake_share=share)


def pixels(folder: str, size: int = 64) -> np.ndarray:
    """FACES as `folder` shows them, float64 [faces, size, size, 3]."""
    images = [render_real(face, size) if folder == REAL else render_fake(face, size, folder=folder) for face in FACES]
    return np.stack([np.asarray(image, dtype=float) for image in images])


def spectrum(images: np.ndarray) -> np.ndarray:
    """The mean power of each frequency of the light, [size, size / 2 + 1]."""
    light = images.mean(3)
    return (np.abs(np.fft.rfft2(light - light.mean((1, 2), keepdims=True))) ** 2).mean(0)


@pytest.mark.parametrize("folder", FAKES)
def test_a_fake_is_a_pure_function_of_its_face_at_any_size(folder):
    for size in (32, 100):
        first = render_fake(FACES[0], size, folder=folder)
        assert (first.size, first.mode) == ((size, size), "RGB")
        assert first.tobytes() == render_fake(FACES[0], size, folder=folder).tobytes()
        assert first.tobytes() != render_real(FACES[0], size).tobytes()


@pytest.mark.parametrize("folder", ["deepfakes/Recoloured", "deepfakes/Seam"])
def test_deepfakes_change_the_features_and_leave_the_rest(folder):
    changed = np.abs(pixels(folder) - pixels(REAL)).sum(3) > 0
    features = np.stack([fakes.inner_face(face, 64)[..., 0] > 0 for face in FACES])
    assert 0.1 < features.mean() < 0.4
    assert not changed[~features].any()
    assert changed[features].mean() > 0.3


@pytest.mark.parametrize(
    ("folder", "peaks"), [("GANs/Checkerboard", {(16, 16), (48, 16)}), ("GANs/Stripes", {(16, 0), (48, 0), (0, 16)})]
)
def test_gans_leave_peaks_in_the_spectrum(folder, peaks):
    trace = spectrum(pixels(folder) - pixels(REAL))
    assert np.unravel_index(trace.argmax(), trace.shape) in peaks
    assert sum(trace[peak] for peak in peaks) > 0.2 * trace.sum()


@pytest.mark.parametrize("folder", ["DMs/Denoised", "DMs/Latents"])
def test_diffusion_lacks_the_finest_detail(folder):
    gain = spectrum(pixels(folder)) / spectrum(pixels(REAL))
    assert gain[24:40, 24:].mean() < 0.5
    assert gain[:4, 1:4].mean() == pytest.approx(1, abs=0.1)


def test_noise_has_the_stated_deviation():
    noise = fakes.unit_noise(np.random.default_rng(0), 128)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
