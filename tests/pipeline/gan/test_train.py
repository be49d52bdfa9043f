"""Training: it learns, repeats, resumes to the bit, and stops with a word."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from pipeline.data.random_streams import seeded_generator
from pipeline.data.sampler import SINGLE_RANK, RankSlice
from pipeline.data.shard_set import ShardSet
from pipeline.gan import trainer as steps_module
from pipeline.gan.sample import sample
from pipeline.gan.train import (
    ConditionClasses,
    clear_run,
    default_run_name,
    default_steps,
    order_of,
    preset_for,
    resolve_auto,
    train,
)
from pipeline.gan.trainer import CapturedStep, GanOptions, GanTrainer, step_flop
from pipeline.training import checkpoint
from shards.atomic_io import exclusive_lock, read_json
from shards.errors import FairfaceError

TINY = GanOptions(
    image_size=32, latent_dim=16, width_g=8, width_d=8, batch_size=16, ema_start=5, precision="fp32", compile=False
)
CPU = torch.device("cpu")


@pytest.fixture
def out(packed, tmp_path) -> Path:
    (tmp_path / "shards").symlink_to(packed / "shards")
    return tmp_path


def weights(out: Path, run: str, step: int) -> dict:
    return checkpoint.load(checkpoint.checkpoint_path(out / "runs" / run / "checkpoints", step))["nets"]


def same(a, b) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def run(out: Path, steps: int, options: GanOptions = TINY, **more) -> dict:
    return train(out, options, "sketch", steps=steps, progress=False, **more)


def test_a_run_leaves_what_the_contract_says(out):
    config = run(out, 40, sample_every=20)
    folder = out / "runs" / config["run"]
    assert (config["status"], config["unchanged"], config["data"]["images"]) == ("finished", False, 240)
    assert read_json(folder / "config.json")["options"]["precision"] == "fp32"
    steps = pl.read_parquet(folder / "steps.parquet")
    assert steps["step"].to_list() == [20, 40]
    assert steps["images"].to_list() == [320, 640]
    assert steps["epoch"].to_list() == [2, 3]
    assert steps.select((pl.col("images_per_s") > 0) & pl.col("data_wait").is_between(0, 1)).to_series().all()
    assert sorted(path.name for path in (folder / "grids").iterdir()) == ["step_000000020.png", "step_000000040.png"]
    assert list((folder / "tensorboard").iterdir())
    assert run(out, 40)["unchanged"]


def test_the_discriminator_learns_to_tell_and_the_generator_to_fool(out):
    trainer, still = GanTrainer(TINY, CPU), GanTrainer(TINY, CPU)
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8, generator=seeded_generator("cpu", 1))
    losses = torch.stack([trainer.step(i, images) for i in range(60)])
    assert losses[-10:, 0].mean() < losses[:10, 0].mean() - 0.2
    with torch.no_grad():  # against the untrained one, by the trained judge
        z = trainer.latents(0, 64)
        ours, theirs = (trainer.nets.d(t.nets.g(z)).mean() for t in (trainer, still))
    assert ours > theirs


@pytest.mark.parametrize("feed", ["resident", "streaming"])
def test_stopping_and_continuing_equals_going_on(out, feed):
    options = replace(TINY, feed=feed)
    run(out, 24, options, run="whole")
    run(out, 9, options, run="parts")
    run(out, 24, options, run="parts")
    assert same(weights(out, "whole", 24), weights(out, "parts", 24))
    rows = [pl.read_parquet(out / "runs" / name / "steps.parquet") for name in ("whole", "parts")]
    assert [frame["step"].to_list() for frame in rows] == [[20, 24], [9, 20, 24]]
    assert rows[0].filter(step=24)["loss_g"].item() == rows[1].filter(step=24)["loss_g"].item()


def test_the_seed_decides_the_weights(out):
    run(out, 3, run="a")
    run(out, 3, run="b")
    run(out, 3, replace(TINY, seed=1), run="c")
    assert same(weights(out, "a", 3), weights(out, "b", 3))
    assert not same(weights(out, "a", 3), weights(out, "c", 3))


def command(out: Path, steps: int) -> list[str]:
    words = f"train --out {out} --steps {steps} --image-size 32 --width-g 8 --width-d 8 --batch-size 16 --run killed"
    return [sys.executable, "-m", "pipeline.cli", *words.split(), "--save-every-epoch", "1"]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(600):
        if list(path.glob("step_*.pt")) or process.poll() is not None:
            return
        time.sleep(0.1)


def test_a_killed_run_continues_to_the_same_weights(out):
    subprocess.run([*command(out, 450), "--run", "whole"], check=True)
    folder = out / "runs" / "killed" / "checkpoints"
    process = subprocess.Popen(command(out, 450))
    wait_for(folder, process)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert checkpoint.checkpoint_step(checkpoint.list_checkpoints(folder)[-1]) < 450
    subprocess.run(command(out, 450), check=True)
    assert same(weights(out, "whole", 450), weights(out, "killed", 450))


def torchrun(out: Path, steps: int, name: str) -> list[str]:
    # "--": else it takes our --run for the beginning of an option of its own
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    return [*words, *command(out, steps)[2:], "--run", name, "--feed", "streaming" if name == "killed" else "resident"]


def test_two_processes_train_one_network_and_continue_after_a_kill_to_the_same_bits(out):
    done = subprocess.run(torchrun(out, 300, "whole"), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 300 steps") == 1
    folder = out / "runs" / "killed" / "checkpoints"
    process = subprocess.Popen(torchrun(out, 300, "killed"), start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for(folder, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()  # in sessions of their own
    for number in (process.pid, *map(int, workers)):
        os.kill(number, signal.SIGKILL)
    process.wait()
    assert checkpoint.checkpoint_step(checkpoint.list_checkpoints(folder)[-1]) < 300
    subprocess.run(torchrun(out, 300, "killed"), check=True, capture_output=True, timeout=200)
    assert same(weights(out, "whole", 300), weights(out, "killed", 300))  # of both feeds, at that
    rows = pl.read_parquet(out / "runs" / "whole" / "steps.parquet")
    assert rows["images"].to_list()[-1] == 300 * 16
    single = subprocess.run([*command(out, 320), "--run", "whole"], capture_output=True, text=True)
    assert single.returncode == 0, single.stderr  # another number of processes goes on where two were
    assert "trained 320 steps" in single.stdout


def test_ranks_take_the_mean_of_what_each_has(monkeypatch):
    ours, theirs = [torch.arange(6.0).view(2, 3), torch.tensor(5.0)], [torch.full((2, 3), 2.0), torch.tensor(1.0)]
    other = torch.cat([tensor.flatten() for tensor in theirs])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(other))
    steps_module.average_across_ranks(ours, RankSlice(0, 2))
    assert ours[0].tolist() == [[1.0, 1.5, 2.0], [2.5, 3.0, 3.5]]
    assert ours[1].item() == 3.0


def test_ranks_draw_their_own_share_of_a_steps_latents_and_flips(monkeypatch):
    """Together they draw what one process draws."""
    seen = []
    monkeypatch.setattr(steps_module, "average_across_ranks", lambda tensors, part: None)
    for part in (SINGLE_RANK, RankSlice(0, 2), RankSlice(1, 2)):
        trainer = GanTrainer(TINY, CPU, part)
        trainer.generate = lambda z, labels, trainer=trainer: (seen.append(z), trainer.nets.g(z, labels))[1]
        trainer.step(7, torch.zeros(16 // part.world, 32, 32, 3, dtype=torch.uint8))
    assert torch.equal(seen[0], torch.cat(seen[1:]))


def test_a_batch_that_the_processes_cannot_share_is_said(out):
    with pytest.raises(FairfaceError, match="can't be shared by 3 processes"):
        order_of(TINY, ShardSet.open(out / "shards"), pl.DataFrame(), None, RankSlice(0, 3))


def test_balanced_training_draws_the_groups_alike_for_both_feeds(out):
    options = replace(TINY, balance={"female": 0.25, "male": 0.75}, balance_by="gender")
    for feed in ("resident", "streaming"):
        run(out, 12, replace(options, feed=feed), run=feed)
    assert same(weights(out, "resident", 12), weights(out, "streaming", 12))
    shards = ShardSet.open(out / "shards")
    images = pl.read_parquet(out / "shards" / "images.parquet")
    drawn = images[order_of(options, shards, images, None, SINGLE_RANK).epoch(0).numpy()]["gender"].value_counts()
    assert dict(drawn.iter_rows()) == {"female": 60, "male": 180}
    run(out, 14, options, run="resident")  # the same shares, read back from JSON
    with pytest.raises(FairfaceError, match="another balance"):
        run(out, 14, TINY, run="resident")
    with pytest.raises(FairfaceError, match="no image is of nobody"):
        run(out, 3, replace(options, balance={"nobody": 1.0}))


def test_a_conditional_run_is_told_the_labels_and_sampled_by_them(out):
    options = replace(TINY, conditional="gender")
    config = run(out, 30, options, run="told")
    images = pl.read_parquet(out / "shards" / "images.parquet")
    counts = dict(images["gender"].value_counts().iter_rows())
    assert config["classes"] == {name: counts[name] / 240 for name in ("female", "male")}
    run(out, 9, options, run="parts")
    run(out, 30, options, run="parts")
    assert same(weights(out, "told", 30), weights(out, "parts", 30))
    done = sample(out, "told", count=200, device="cpu", progress=False)
    samples = pl.read_parquet(Path(done["folder"]) / "samples.parquet")
    assert abs((samples["requested"] == "female").mean() - counts["female"] / 240) < 0.12
    sample(out, "told", count=20, device="cpu", progress=False, groups=("male",))
    assert set(pl.read_parquet(Path(done["folder"]) / "samples.parquet")["requested"]) == {"male"}
    with pytest.raises(FairfaceError, match="the generator knows female, male"):
        sample(out, "told", count=2, device="cpu", progress=False, groups=("child",))
    with pytest.raises(FairfaceError, match="the same label"):
        run(out, 3, replace(options, balance="uniform", balance_by="age"))
    with pytest.raises(FairfaceError, match="no image has that label"):
        run(out, 3, replace(options, conditional="race"))


def test_labels_change_what_conditional_networks_do():
    trainer = GanTrainer(replace(TINY, conditional="gender", lr=1e-3, ema=0.9), CPU, classes=2)
    labels = torch.arange(16) % 2
    dim = torch.randint(0, 60, (16, 32, 32, 3), dtype=torch.uint8, generator=seeded_generator("cpu", 1))
    images = dim + 190 * labels[:, None, None, None].byte()
    for step in range(150):
        trainer.step(step, images, labels)
    with torch.no_grad():
        drawn = trainer.nets.ema.eval()(trainer.latents(0, 64), asked := torch.arange(64) % 2)
    assert drawn[asked == 1].mean() > drawn[asked == 0].mean() + 0.2


def test_images_without_the_label_are_left_out(out):
    images = pl.read_parquet(out / "shards" / "images.parquet")
    gender = pl.when(pl.col("key") < "00000100").then("gender")
    images = images.with_columns(gender)
    options, shards = replace(TINY, conditional="gender"), ShardSet.open(out / "shards")
    classes = ConditionClasses.of(images, options)
    order = order_of(options, shards, images, classes, SINGLE_RANK)
    assert sorted(order.epoch(3).tolist()) == list(range(100))
    assert set(classes.numbers.tolist()) == {-1, 0, 1}
    assert order.left_out == 140
    balanced = order_of(replace(TINY, balance="uniform", balance_by="gender"), shards, images, None, SINGLE_RANK)
    assert (balanced.left_out, balanced.length) == (140, 100)


def test_sigterm_saves_and_exits_with_its_own_code(out):
    folder = out / "runs" / "killed" / "checkpoints"
    process = subprocess.Popen(command(out, 100_000), stderr=subprocess.PIPE, text=True)
    wait_for(folder, process)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    assert read_json(out / "runs" / "killed" / "config.json")["status"] == "stopped"


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(out, monkeypatch):
    with pytest.raises(FairfaceError, match="--lr"):
        run(out, 80, replace(TINY, lr=1e30), run="never")
    assert not (out / "runs" / "never").exists()  # no run that later commands would take for the newest
    real = GanTrainer.step
    monkeypatch.setattr(GanTrainer, "step", lambda self, step, *given: real(self, step, *given) / (step != 33))
    with pytest.raises(FairfaceError):
        run(out, 80, run="late", save_every_epoch=1)
    assert checkpoint.checkpoint_step(checkpoint.list_checkpoints(out / "runs" / "late" / "checkpoints")[-1]) == 30
    assert read_json(out / "runs" / "late" / "config.json")["status"] == "stopped"


def test_force_replaces_a_run_only_once_all_is_ready(out):
    run(out, 3, run="mine")
    with pytest.raises(FairfaceError, match="--batch-size"):
        run(out, 3, replace(TINY, batch_size=500), run="mine", force=True)
    before = weights(out, "mine", 3)
    run(out, 3, replace(TINY, seed=5), run="mine", force=True)
    assert not same(before, weights(out, "mine", 3))


def test_a_run_takes_neither_other_options_nor_other_images(out, packed, tmp_path):
    run(out, 3, run="mine")
    with pytest.raises(FairfaceError, match="another lr"):
        run(out, 5, replace(TINY, lr=1e-3), run="mine")
    (out / "shards").unlink()
    shutil.copytree(packed / "shards", out / "shards")
    changed = read_json(out / "shards" / "shards.json") | {"manifest": "other"}
    (out / "shards" / "shards.json").write_text(json.dumps(changed))
    with pytest.raises(FairfaceError, match="other images"):
        run(out, 5, run="mine")
    config = run(out, 5, run="mine", other_data=True)  # unless told
    assert (config["data"]["manifest"], len(config["data_before"])) == ("other", 1)
    assert (
        checkpoint.load(checkpoint.checkpoint_path(out / "runs" / "mine" / "checkpoints", 5))["data"] == config["data"]
    )
    assert not run(out, 3, run="mine", force=True)["unchanged"]


def test_a_run_that_was_told_groups_takes_no_images_of_other_groups(out):
    told = replace(TINY, conditional="gender")
    run(out, 3, told, run="mine")
    config = read_json(out / "runs" / "mine" / "config.json")
    (out / "runs" / "mine" / "config.json").write_text(json.dumps(config | {"classes": {"female": 1.0}}))
    with pytest.raises(FairfaceError, match="was told of the genders female, and"):
        run(out, 5, told, run="mine", other_data=True)
    with pytest.raises(FairfaceError, match="another conditional"):
        run(out, 5, replace(TINY, conditional="age"), run="mine")


def test_two_trainings_of_one_run_at_once_are_refused(out):
    with (
        exclusive_lock(out / "runs" / "mine", "training"),
        pytest.raises(FairfaceError, match="another process is at work"),
    ):
        run(out, 3, run="mine")
    assert run(out, 3, run="mine")["steps"] == 3


def test_force_keeps_the_lock(out):
    run(out, 3, run="mine")
    with exclusive_lock(out / "runs" / "mine", "training"):
        clear_run(out / "runs" / "mine")
        with pytest.raises(FairfaceError, match="another process is at work"):
            run(out, 3, run="mine", force=True)


def test_a_run_of_imported_labels_cannot_be_trained(out):
    (out / "runs" / "mine").mkdir(parents=True)
    (out / "runs" / "mine" / "config.json").write_text('{"status": "imported", "imported": "theirs.csv"}')
    with pytest.raises(FairfaceError, match=r"labels imported from theirs\.csv.*choose another --run"):
        run(out, 3, run="mine")


@pytest.mark.parametrize("damage", ["cut", "foreign", "pickle"])
def test_a_broken_checkpoint_is_named_with_the_last_good_one(out, damage):
    run(out, 32, run="mine", save_every_epoch=1)
    folder = out / "runs" / "mine" / "checkpoints"
    path = checkpoint.list_checkpoints(folder)[-1]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        torch.save({"code": os.system}, path)
    with pytest.raises(FairfaceError, match="step_000000030"):
        run(out, 40, run="mine")


def test_too_few_images_for_a_batch_is_said(out):
    with pytest.raises(FairfaceError, match="--batch-size"):
        run(out, 3, replace(TINY, batch_size=500))


def test_the_average_follows_the_generator():
    trainer = GanTrainer(replace(TINY, ema=0.5, ema_start=2), CPU)
    images = torch.zeros(16, 32, 32, 3, dtype=torch.uint8)
    name = "net.0.weight"
    for step in range(2):
        trainer.step(step, images)
        assert torch.equal(trainer.nets.ema.state_dict()[name], trainer.nets.g.state_dict()[name])
    before = trainer.nets.ema.state_dict()[name].clone()
    trainer.step(2, images)
    expected = torch.lerp(before, trainer.nets.g.state_dict()[name], 0.5)
    assert torch.allclose(trainer.nets.ema.state_dict()[name], expected)
    running = "net.1.running_mean"
    assert not torch.equal(trainer.nets.ema.state_dict()[running], torch.zeros(TINY.width_g * 4))


def test_compiled_and_eager_agree():
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8)
    trainers = [GanTrainer(replace(TINY, compile=compiled), CPU) for compiled in (False, True)]
    losses = [torch.stack([trainer.step(step, images) for step in range(3)]) for trainer in trainers]
    assert torch.allclose(*losses, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [0, 3])
def test_what_a_capture_warms_up_with_is_undone(steps):
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8)
    trainer, twin = GanTrainer(TINY, CPU), GanTrainer(TINY, CPU)
    for net in (trainer, twin):
        for step in range(steps):
            net.step(step, images)
    before = deepcopy(trainer.nets.state())
    trainer.update(images, trainer.latents(9, 16), None, None)
    CapturedStep(trainer.update, trainer.nets).undo(before)
    assert same(trainer.step(steps, images), twin.step(steps, images))
    assert same(trainer.nets.state(), twin.nets.state())


def test_a_runs_name_follows_what_decides_its_weights():
    names = {default_run_name(options, "m") for options in (TINY, replace(TINY, feed="streaming"))}
    assert names == {default_run_name(TINY, "m")}
    assert default_run_name(replace(TINY, cuda_graphs=True), "m") in names  # a way to the same weights, too
    assert default_run_name(replace(TINY, seed=1), "m") not in names
    assert default_run_name(TINY, "other") not in names


def test_automatic_choices_are_settled_and_told(packed):
    shards = ShardSet.open(packed / "shards")
    options, said = resolve_auto(replace(TINY, precision="auto", compile=None), 100, shards, CPU)
    assert options.precision in ("bf16", "fp32")
    assert options.compile is False
    assert options.feed == "resident"
    assert len(said) == 3
    assert resolve_auto(replace(TINY, compile=None), 10**9, shards, CPU)[0].compile is True


def test_flop_of_the_published_network():
    # 2.28 GFLOP an image: G forward and backward, D on two images forward and backward, D once more for G
    assert step_flop(GanOptions()) == pytest.approx(2.28e9, rel=0.02)


def test_default_lengths():
    assert default_steps("sketch", 375) == 3000
    assert default_steps("faces", 135_766 // 128) == 10 * 1060


def test_the_preset_follows_data_and_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [preset_for({"drawn": drawn}, "auto") for drawn in (True, False)] == ["sketch", "faces"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [preset_for({"drawn": drawn}, "auto") for drawn in (True, False)] == ["sketch", "sketch"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_a_compiled_bf16_run_on_a_gpu(out):
    config = train(out, replace(TINY, precision="auto", compile=None), "faces", steps=60, progress=False)
    assert (config["options"]["precision"], config["options"]["compile"]) == ("bf16", True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_step_is_the_step(compiled):
    device = torch.device("cuda")
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8, device=device)
    options = replace(TINY, compile=compiled)
    trainers = [GanTrainer(replace(options, cuda_graphs=captured), device) for captured in (False, True)]
    losses = [torch.stack([trainer.step(step, images) for step in range(5)]) for trainer in trainers]
    assert torch.allclose(*losses, rtol=1e-3, atol=1e-4)
    statistics = [dict(trainer.nets.d.named_buffers()) for trainer in trainers]
    assert all(
        torch.allclose(statistics[0][name].float(), statistics[1][name].float(), rtol=1e-3, atol=1e-4)
        for name in statistics[0]
    )
