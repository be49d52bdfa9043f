"""Packs a user's images, or synthetic faces by default, into the shards of a workspace."""

from collections.abc import Callable
from pathlib import Path

from shards import distributed, pack
from shards.documents import load_shards_json
from shards.errors import FairfaceError
from shards.plan import PackConfig
from shards.synthetic import dataset
from shards.synthetic.files import is_replacement_unfinished
from shards.workspace import SyntheticFolder, Workspace


def pack_images(
    workspace: Workspace,
    data: Path | None,
    *,
    config: PackConfig | None = None,
    tables: list[Path] | None = None,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
    announce: Callable[[str], None] = print,
) -> pack.PackResult:
    """Pack the images below `data`, or synthetic faces if it is None, with all ranks of a torchrun job.

    `announce` is called with a line that says that faces were rendered. The other parameters and errors are those of
    `shards.pack.pack` and `find_or_render_faces`.
    """
    with distributed.process_group():
        progress = progress and distributed.rank() == 0
        root = data or distributed.run_on_rank0(
            lambda: find_or_render_faces(workspace, workers=workers, force=force, progress=progress, announce=announce)
        )
        return pack.pack(
            root,
            workspace.shards,
            config or PackConfig(),
            tables=tables,
            workers=workers,
            force=force,
            progress=progress,
        )


def find_or_render_faces(
    workspace: Workspace, *, workers: int | None, force: bool, progress: bool, announce: Callable[[str], None]
) -> Path:
    """The folder of synthetic faces: existing ones of `fairface synth`, otherwise newly rendered ones.

    Raises FairfaceError if the shards contain other images, which synthetic ones must not replace without `force`, and
    if `fairface synth` was stopped before it finished, because its options are not known here.
    """
    packed = load_shards_json(workspace.shards) if workspace.shards.document.exists() and not force else None
    if packed and not packed.synthetic:
        raise FairfaceError(
            f"{workspace.shards.folder} holds {packed.images:,} images of {packed.root}: name that folder with --data "
            "to continue with them, or pack synthetic faces into another folder with --out"
        )
    faces = SyntheticFolder(workspace.synthetic)
    if not faces.document.exists():
        if faces.checksums.exists() or is_replacement_unfinished(faces):
            raise FairfaceError(
                f"`fairface synth` was stopped before the faces in {faces.folder} were finished: run it again"
            )
        dataset.write_dataset(workspace.synthetic, workers=workers, progress=progress)
        announce(f"{workspace.synthetic}: rendered synthetic faces because --data was not given")
    return faces.folder
