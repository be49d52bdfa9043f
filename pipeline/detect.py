"""Trains a detector of generated faces, and writes down what it says of the test faces and of our own samples."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor
from tqdm import tqdm

from models.detectors import DETECTORS, Detector, Labels
from models.precision import bf16_pays
from pipeline import checkpoint
from pipeline.detector import DetectorTrainer, Options, frozen_mark, logits_of, make, take
from pipeline.feed import FEEDS, Decoding, Joined, Shards, choose, fetch
from pipeline.loop import Loop, Signals
from pipeline.machine import command_line, device_name, device_of, now, tune_allocator, versions
from pipeline.order import POST, Natural, Paired, Part, batches_from, generator
from pipeline.pool import Pool, pool
from pipeline.postprocess import BY_CHANCE, CHANCES, CHANGES, CROP, MILD, STRONG
from pipeline.train import Begun, compiler, ended, ready
from shards import ranks
from shards.files import alone, fingerprint, read_json, read_parquet, whole_parquet, write_json, write_parquet
from shards.verify import finished

SKETCH_STEPS = 300
WAYS = ("feed",)  # how the same steps are come by: a training may go on in another


@dataclass
class Judging:
    """How a detector is looked at when it is trained."""

    batch_size: int = 32
    changes: tuple[str, ...] = ()  # of postprocess.CHANGES, beside the faces as they are


def sketched(options: Options) -> Options:
    """The same for a minute of a laptop's time: small images and batches."""
    kind = options.kind
    return replace(options, image_size=-(-64 // kind.step) * kind.step, batch_size=16, epochs=1, lr=5e-3)


def options_of(out: Path, model: str, preset: str, given: dict) -> Options:
    """The options of a detector: the preset's, and what was `given` beside them."""
    options = replace(Options(model), image_size=DETECTORS[model].size)
    if preset == "sketch":
        options = sketched(options)
    if finished(out / "shards").get("drawn") and "pretrained" not in given:  # photographs teach nothing of drawn faces
        options = replace(options, from_scratch=True)
    return replace(options, **given)


def preset_for(out: Path, name: str, device: str) -> str:
    """That of the detector `name`, if it is there; else `benchmark` for real faces on a GPU, and `sketch` elsewhere."""
    if begun := read_json(out / "detectors" / name / "config.json"):
        return begun["preset"]
    real = not finished(out / "shards").get("drawn")
    return "benchmark" if device_of(device).type == "cuda" and real else "sketch"


def detect(
    out: Path,
    options: Options,
    name: str,
    preset: str = "benchmark",
    steps: int | None = None,
    short: bool = False,
    fakes: str = "auto",
    run: str | None = None,
    judging: Judging | None = None,
    device: str = "auto",
    decoding: Decoding | None = None,
    force: bool = False,
    progress: bool = True,
) -> dict:
    """Trains, or continues, the detector `name`, and judges it; returns its config.json with `counts` and `unchanged`.

    Without `steps`, the options' epochs are trained, but where it is to be `short` no more than SKETCH_STEPS. A
    detector goes on with the samples that it began with, whatever run is the newest now.

    Raises ValueError for faces that can't be learnt from and for a detector of other options or faces, ClickException
    where pretrained weights can't be had, FloatingPointError for a loss that is not finite, Stopped on SIGTERM or
    SIGINT, after saving.
    """
    if name != Path(name).name or name.startswith(".") or name == "all":
        raise ValueError(f"--name {name}: a detector's name is the name of one folder, and not `all`")
    with ranks.group(), ExitStack() as stack:
        target = device_of(device)
        if target.index:
            torch.cuda.set_device(target)
        tune_allocator()
        torch.backends.cudnn.benchmark = True
        folder, part = out / "detectors" / name, Part(ranks.rank(), ranks.world())
        if fakes == "auto" and not run and not force:
            run = ((read_json(folder / "config.json") or {}).get("data") or {}).get("run")
        faces = pool(out, "samples" if run and fakes == "auto" else fakes, run)
        decoding = replace(decoding or Decoding(), through=faces.image_size)
        share = faces.share(part)
        order = ranks.together(lambda: order_of(options, share, part.world))
        order.length = min(ranks.gathered(order.length))  # the same on every rank
        per_epoch = order.length // (options.images // part.world)
        steps = steps or min(options.epochs * per_epoch, SKETCH_STEPS if short else sys.maxsize)
        begun = ranks.from_first(lambda: begin(folder, options, preset, steps, faces, per_epoch, target, force))
        ranks.from_first(lambda: stack.enter_context(alone(folder, "training")), lambda _: None)
        shown = progress and part.rank == 0
        if not begun.finished:
            learn(begun, share, order, part, target, decoding, shown, force)
        config = ranks.from_first(lambda: read_json(folder / "config.json"))
        judged = judge(out, folder, config, faces, judging or Judging(), target, decoding, shown)
        done = checkpoint.step_of(checkpoint.saved(folder / "checkpoints")[-1])
        return config | {
            "steps": done,
            "counts": faces.counts(),
            "unchanged": begun.finished and not judged,
            "grouped_by": faces.grouped_by,
        }


def order_of(options: Options, faces: Pool, world: int) -> Natural | Paired:
    """The order in which a rank's share of the faces is learnt from. ValueError where that fills no batch."""
    images, paired = options.images, options.kind.paired
    if images % (world * (2 if paired else 1)):
        raise ValueError(f"a batch of {images} can't be shared by {world} processes: give another --train-batchsize")
    local = images // world
    if paired:
        order = Paired(faces.sizes, options.seed, local, faces.mask(False), faces.mask(True))
    else:
        order = Natural(faces.sizes, options.seed, kept=faces.mask(False) | faces.mask(True))
    if order.length < local:
        raise ValueError(
            f"there are fewer faces to learn from than a batch of {images}: give a smaller --train-batchsize"
        )
    return order


def begin(
    folder: Path,
    options: Options,
    preset: str,
    steps: int,
    faces: Pool,
    per_epoch: int,
    device: torch.device,
    force: bool,
) -> Begun:
    """Finds the training in `folder`, or settles what a new one is; nothing is written yet."""
    old = None if force else read_json(folder / "config.json")
    if not force and "imported" in (read_json(folder / "predictions.json") or {}):
        raise ValueError(
            f"{folder} has predictions that were imported: choose another --name, or replace them with --force"
        )
    if options.kind.by_group and not sum(faces.groups()):
        raise ValueError(
            f"{options.kind.title} learns from groups, and no face has one: run `fairface label`, or pack annotated "
            "faces"
        )
    if old:
        refuse_another(old, options, faces, folder)
        feed = choose(faces.shards, options.image_size, device) if options.feed == "auto" else options.feed
        config = old | {"options": old["options"] | {"feed": feed}}
    else:
        config = {
            "run": folder.name,
            "detector": folder.name,
            "status": "running",
            "started": now(),
            "finished": None,
            "command": command_line(),
            "asked": asdict(options),
            "options": asdict(settled(options, faces, device)),
            "data": {
                "manifest": faces.manifest,
                "run": faces.run,
                "grouped_by": faces.grouped_by,
                "groups": faces.group_mark() if options.kind.by_group else None,
            }
            | faces.counts(),
            "groups": faces.groups(),
            "classes": None,
            "versions": versions(),
            "device": device_name(device),
            "preset": preset,
            "steps": steps,
            "per_epoch": per_epoch,
        }
    saved = checkpoint.saved(folder / "checkpoints") if old else []
    done = bool(saved) and checkpoint.step_of(saved[-1]) >= steps
    if not done:
        config |= {"status": "running", "steps": steps}
    return Begun(folder, config, saved, done)


def settled(options: Options, faces: Pool | None, device: torch.device) -> Options:
    """The options with every `auto` chosen for this machine, the feed's by the faces."""
    if options.precision == "auto":
        options = replace(options, precision="bf16" if bf16_pays(device) else "fp32")
    if options.compile is None:  # on a CPU convolutions are all of it, and compiled ones are slower
        options = replace(options, compile=device.type == "cuda" and compiler())
    if options.feed == "auto":
        options = replace(options, feed=choose(faces.shards, options.image_size, device))
    return options


def refuse_another(config: dict, options: Options, faces: Pool, folder: Path) -> None:
    """A detector's folder takes no other options and no other faces."""
    if config["data"]["manifest"] != faces.manifest:
        of = f", the samples of run {config['data']['run']} among them" if config["data"]["run"] else ""
        raise ValueError(
            f"{folder} learnt from other faces than these{of}: choose another --name, or replace it with --force"
        )
    if options.kind.by_group and config["data"]["groups"] != faces.group_mark():
        raise ValueError(
            f"{folder} learnt from faces that were labelled otherwise: choose another --name, or replace it with "
            "--force"
        )
    asked = {f.name: config["asked"].get(f.name, f.default) for f in fields(Options)}
    if differing := [n for n, value in asked.items() if n not in (*WAYS, "epochs") and value != getattr(options, n)]:
        raise ValueError(
            f"{folder} was trained with another {', '.join(differing)}: choose another --name, or replace it with "
            "--force"
        )


def learn(
    begun: Begun,
    faces: Pool,
    order: Natural | Paired,
    part: Part,
    device: torch.device,
    decoding: Decoding,
    progress: bool,
    force: bool,
) -> None:
    """Takes the steps that are left.

    ClickException where pretrained weights can't be had; nothing is replaced then.
    """
    config = begun.config
    options = Options(**config["options"])

    def start() -> tuple[DetectorTrainer, int, list[dict], Iterator]:
        trainer = DetectorTrainer(options, config["groups"], device, config["per_epoch"], part, bool(begun.saved))
        same_frozen(trainer.net, config)
        done, rows = restore(trainer, begun.saved)
        local, size = trainer.batch // part.world, options.image_size
        feed = FEEDS[options.feed](faces.shards, order, size, local, device, how=decoding, progress=progress)
        return trainer, done, rows, zip(feed(done), labels(faces, order, local, done, device), strict=False)

    trainer, done, rows, batches = ranks.together(start)
    config |= {"parameters": sum(weight.numel() for weight in trainer.net.parameters())}
    config |= {"frozen": config.get("frozen") or frozen_mark(trainer.net)}
    ranks.from_first(lambda: ready(begun.folder, config, force))
    if part.rank == 0:
        data, how = config["data"], "compiled" if options.compile else "eager"
        print(
            f"{begun.folder.name}: {options.kind.title}, {data['train_real']:,} real faces and {data['train_fake']:,} "
            f"fakes, {config['steps']:,} steps of {options.images} at {options.image_size} pixels on "
            f"{config['device']}; {options.precision}, {how}, {options.feed} feed",
            flush=True,
        )
    often = 20 if device.type == "cuda" else 1
    loop = Loop(
        trainer,
        begun.folder,
        config,
        rows,
        config["per_epoch"],
        None,
        None,
        1,
        progress,
        save_every=300,
        log_every=often,
    )
    try:
        with Signals() as signals:
            loop.run(batches, done, config["steps"], signals)
    except BaseException:
        ended(begun.folder, config, part)
        raise
    ranks.from_first(
        lambda: write_json(begun.folder / "config.json", config | {"status": "finished", "finished": now()})
    )


def same_frozen(net: Detector, config: dict) -> None:
    """ValueError where the weights that no checkpoint holds are others than those that were trained on."""
    if config.get("frozen") and config["frozen"] != frozen_mark(net):
        raise ValueError(
            f"{config['detector']} was trained on other weights of its backbone than --pretrained names now: give "
            "those, or replace it with --force"
        )


def restore(trainer: DetectorTrainer, saved: list[Path]) -> tuple[int, list[dict]]:
    """Loads the newest checkpoint, if any; returns the steps done and the rows logged until then."""
    if not saved:
        return 0, []
    state = checkpoint.load(saved[-1], trainer.device)
    trainer.load(state["nets"])
    rows = read_parquet(saved[-1].parent.parent / "steps.parquet").filter(pl.col("step") <= state["step"])
    return state["step"], rows.to_dicts()


def labels(faces: Pool, order: Natural | Paired, batch: int, step: int, device: torch.device) -> Iterator[Labels]:
    """What is known of the faces of `step` and of every later step."""
    known = [
        torch.from_numpy(faces.rows[column].cast(pl.Int64).fill_null(-1).to_numpy().copy()).to(device)
        for column in ("fake", "family", "group")
    ]
    for numbers in batches_from(order, batch, step):
        chosen = numbers.to(device)
        yield Labels(*(column[chosen] for column in known))


@dataclass
class Sight:
    """Faces that a trained detector is asked about, once."""

    part: str  # test, or samples that it did not learn from
    shards: Shards | Joined
    numbers: Tensor  # of the faces, in tar order
    about: pl.DataFrame  # source, run, key, fake of each
    change: str  # none, or one of postprocess.CHANGES
    mark: str  # changes when the answers may


def sights(out: Path, faces: Pool) -> Iterator[Sight]:
    """The test faces as they are and changed, and the samples of every run that are not among the pool's."""
    columns = ["source", "run", "key", "fake"]
    test = torch.from_numpy(faces.rows["test"].arg_true().to_numpy().astype("int64"))
    test = test[torch.from_numpy(faces.rows["fake"].is_not_null().to_numpy())[test]]
    for change in ("none", *CHANGES):
        mark = fingerprint([faces.manifest, faces.run])
        yield Sight("test", faces.shards, test, faces.rows.select(columns)[test.numpy()], change, mark)
    for path in sorted((out / "runs").glob("*/samples.json")):
        if path.parent.name != faces.run:
            samples, keys = read_json(path), read_parquet(path.with_name("samples.parquet")).select("key")
            about = keys.select(source=pl.lit("samples"), run=pl.lit(path.parent.name), key="key", fake=pl.lit(True))
            shards = Shards.of_samples(path.with_name("samples"), samples["shards"])
            yield Sight(
                "samples",
                shards,
                torch.arange(len(keys)),
                about,
                "none",
                fingerprint([path.parent.name, samples["fingerprint"]]),
            )


def judge(
    out: Path,
    folder: Path,
    config: dict,
    faces: Pool,
    judging: Judging,
    device: torch.device,
    decoding: Decoding,
    progress: bool,
) -> bool:
    """Writes predictions.parquet: key, detector, target, logit of every face asked about; each is looked at once.

    Answers are kept by themselves until the detector or the faces change: what was asked before is not asked again.
    Returns whether anything was new.
    """
    options, newest = Options(**config["options"]), checkpoint.saved(folder / "checkpoints")
    if not newest:
        raise ValueError(f"{folder} has no checkpoint: train it again with --force")
    net, parts, kept = None, [], folder / "answers"
    for sight in sights(out, faces):
        deciding = {key: value for key, value in config["options"].items() if key not in WAYS}
        who = [config["started"], newest[-1].name, deciding, decoding.through]
        path = kept / f"{fingerprint([who, sight.part, sight.change, sight.mark])}.parquet"
        known = ranks.from_first(lambda path=path: whole_parquet(path))
        if known or sight.change in ("none", *judging.changes):
            parts.append(path)
        if known or path not in parts:
            continue
        net = net or trained(options, config, newest[-1], device)
        asked = (net, options, sight, judging.batch_size, device, decoding, progress)
        said = ranks.together(lambda asked=asked: answers(*asked))
        ranks.from_first(lambda path=path, s=sight, said=said: write_parquet(path, table(folder.name, s, said, faces)))
    return ranks.from_first(lambda: gather(folder, parts))


def trained(options: Options, config: dict, path: Path, device: torch.device) -> Detector:
    """The detector of a checkpoint, in evaluation mode."""
    net = ranks.together(lambda: make(options, config["groups"], True))
    same_frozen(net, config)
    take(net, checkpoint.load(path)["nets"]["net"])
    return net.to(device).eval()


def answers(
    net: Detector, options: Options, sight: Sight, batch: int, device: torch.device, decoding: Decoding, progress: bool
) -> np.ndarray:
    """The logits of a sight's faces, float64 [N]; each rank asks about its share of them."""
    mine = sight.numbers[slice(*(len(sight.numbers) * (ranks.rank() + i) // ranks.world() for i in (0, 1)))]
    chances = None
    if sight.change in BY_CHANCE:
        place = generator("cpu", 0, POST, list(CHANGES).index(sight.change))
        chances = torch.rand(sight.shards.images, CHANCES, generator=place).numpy()
    found = []
    if len(mine):
        numbers = chain(mine.split(batch), repeat(mine[:1]))  # what is read ahead of the end is thrown away
        size, resize = options.image_size, True
        change = CHANGES.get(sight.change)
        if change:
            change = partial(change, MILD if options.kind.mild else STRONG)
        if sight.change == "random_crop":
            # those that the benchmark shows 224 pixels get them out of 256, and keep them as they are
            size = round(size / CROP) if options.kind.mild else size
            resize = options.kind.fixed and not options.kind.mild
        images = fetch(sight.shards, numbers, size, device, decoding, True, change, chances)
        what = (
            f"{sight.part} faces, {sight.change.replace('_', ' ')}" if sight.change != "none" else f"{sight.part} faces"
        )
        with tqdm(total=len(mine), unit="img", desc=what, disable=not progress, leave=False) as bar:
            for some, _ in zip(images, range(-(-len(mine) // batch)), strict=False):
                found.append(logits_of(net, options, some, resize).cpu())
                bar.update(len(some))
    everyone = ranks.gathered(torch.cat(found).double().numpy() if found else np.empty(0))
    return np.concatenate(everyone)


def table(detector: str, sight: Sight, logits: np.ndarray, faces: Pool) -> pl.DataFrame:
    """Rows of predictions.parquet."""
    if not np.isfinite(logits).all():
        raise FloatingPointError("the detector's logits are not finite: train it again with a lower --lr")
    return sight.about.select(
        "key",
        detector=pl.lit(detector),
        part=pl.lit(sight.part),
        source="source",
        run="run",
        change=pl.lit(sight.change),
        grouped_by=pl.lit(faces.grouped_by if sight.part == "test" else "labelled"),
        target=pl.when("fake").then(pl.lit("fake")).otherwise(pl.lit("real")),
        logit=pl.Series(logits),
    )


def gather(folder: Path, parts: list[Path]) -> bool:
    """Puts the answers together, if they are others than before; those that no longer count go."""
    marks, done = [path.stem for path in parts], read_json(folder / "predictions.json") or {}
    written = folder / "predictions.parquet"
    if done.get("answers") == marks and whole_parquet(written):
        return False
    (folder / "detection.parquet").unlink(missing_ok=True)  # it described others
    found = pl.concat([read_parquet(path) for path in parts])
    write_parquet(written, found)
    counts = dict(found.filter(part="test", change="none")["target"].value_counts().iter_rows())
    about = {"answers": marks, "when": now(), "command": command_line(), "images": len(found)}
    write_json(folder / "predictions.json", about | {"real": counts.get("real", 0), "fake": counts.get("fake", 0)})
    for path in parts[0].parent.glob("*.parquet"):
        if path not in parts:
            path.unlink()
    return True
