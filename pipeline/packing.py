"""Packs a user's images, or synthetic faces by default, into the shards of a workspace."""

from pathlib import Path

from shards import distributed, pack
from shards.documents import load_shards_json
from shards.errors import FairfaceError
from shards.plan import PackConfig
from shards.synthetic import dataset
from shards.workspace import SYNTHETIC_MARKER, Workspace


def pack_images(
    workspace: Workspace,
    data: Path | None,
    *,
    config: PackConfig | None = None,
    tables: list[Path] | None = None,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> pack.PackResult:
    """Pack the images below `data`, or synthetic faces if it is None, with all ranks of a torchrun job.

    The other parameters and errors are those of `shards.pack.pack` and `find_or_render_faces`.
    """
    with distributed.process_group():
        progress = progress and distributed.rank() == 0
        root = data or distributed.run_on_rank0(
            lambda: find_or_render_faces(workspace, workers=workers, force=force, progress=progress)
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


def find_or_render_faces(workspace: Workspace, *, workers: int | None, force: bool, progress: bool) -> Path:
    """The folder of synthetic faces: existing ones of `fairface synth`, otherwise newly rendered ones.

    Raises FairfaceError if the shards contain other images, which synthetic ones must not replace without `force`.
    """
    packed = load_shards_json(workspace.shards) if workspace.shards.document.exists() and not force else None
    if packed and not packed.synthetic:
        raise FairfaceError(
            f"{workspace.shards.folder} holds {packed.images:,} images of {packed.root}: name that folder with --data "
            "to continue with them, or pack synthetic faces into another folder with --out"
        )
    if not (workspace.synthetic / SYNTHETIC_MARKER).exists():
        dataset.write_dataset(workspace.synthetic, workers=workers, progress=progress)
        print(f"{workspace.synthetic}: rendered synthetic faces because --data was not given", flush=True)
    return workspace.synthetic
