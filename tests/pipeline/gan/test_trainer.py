"""One training step of the DCGAN: it learns, averages, shares its random numbers between ranks, and can be captured."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import partial
from threading import Barrier

import pytest
import torch

from models.gan_losses import LOSSES
from pipeline.data.random_streams import seeded_generator
from pipeline.data.sampler import SINGLE_RANK, RankSlice
from pipeline.gan import trainer as trainer_module
from pipeline.gan.cuda_graph import CapturedStep
from pipeline.gan.networks import step_memory
from pipeline.gan.options import REGULARIZERS, GanOptions
from pipeline.gan.trainer import GanTrainer, step_flop
from pipeline.training import checkpoint
from tests.pipeline.gan.helpers import CPU, TINY, is_equal


def test_discriminator_and_generator_both_learn():
    trainer, untrained = GanTrainer(TINY, CPU), GanTrainer(TINY, CPU)
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8, generator=seeded_generator("cpu", 1))
    losses = torch.stack([trainer.step(i, images) for i in range(60)])
    assert losses[-10:, 0].mean() < losses[:10, 0].mean() - 0.2
    with torch.no_grad():  # the trained discriminator compares the trained generator with the untrained one
        z = trainer.latents(0, 64)
        after, before = (trainer.networks.d(t.networks.g(z)).mean() for t in (trainer, untrained))
    assert after > before


def test_ranks_together_use_the_latents_and_flips_of_one_process(monkeypatch):
    latents, mirrored = [], []
    monkeypatch.setattr(trainer_module, "average_across_ranks", lambda tensors, rank_slice: None)
    for rank_slice in (SINGLE_RANK, RankSlice(0, 2), RankSlice(1, 2)):
        trainer = GanTrainer(TINY, CPU, rank_slice=rank_slice)
        update = trainer.update

        def record(images, z, flips, labels, augmentations, update=update):
            latents.append(z)
            mirrored.append(flips)
            return update(images, z, flips, labels, augmentations)

        trainer.update = record
        trainer.step(7, torch.zeros(16 // rank_slice.world_size, 32, 32, 3, dtype=torch.uint8))
    assert torch.equal(latents[0], torch.cat(latents[1:]))
    assert torch.equal(mirrored[0], torch.cat(mirrored[1:]))


def test_labels_condition_the_generated_images():
    trainer = GanTrainer(replace(TINY, conditional="gender", lr=1e-3, ema=0.9), CPU, classes=2)
    labels = torch.arange(16) % 2
    dark = torch.randint(0, 60, (16, 32, 32, 3), dtype=torch.uint8, generator=seeded_generator("cpu", 1))
    images = dark + 190 * labels[:, None, None, None].byte()
    for step in range(150):
        trainer.step(step, images, labels)
    requested = torch.arange(64) % 2
    with torch.no_grad():
        generated = trainer.networks.ema.eval()(trainer.latents(0, 64), requested)
    assert generated[requested == 1].mean() > generated[requested == 0].mean() + 0.2


def test_the_moving_average_follows_the_generator():
    trainer = GanTrainer(replace(TINY, ema=0.5, ema_start=2), CPU)
    images = torch.zeros(16, 32, 32, 3, dtype=torch.uint8)
    name = "net.0.weight"
    for step in range(2):
        trainer.step(step, images)
        assert torch.equal(trainer.networks.ema.state_dict()[name], trainer.networks.g.state_dict()[name])
    before = trainer.networks.ema.state_dict()[name].clone()
    trainer.step(2, images)
    expected = torch.lerp(before, trainer.networks.g.state_dict()[name], 0.5)
    assert torch.allclose(trainer.networks.ema.state_dict()[name], expected)
    running_mean = trainer.networks.ema.state_dict()["net.1.running_mean"]
    assert not torch.equal(running_mean, torch.zeros(TINY.width_g * 4))


RELATIVISTIC = replace(TINY, loss="relativistic", regularizer="r1", penalty_every=2)


def test_the_long_average_has_four_times_the_half_life():
    trainer = GanTrainer(replace(TINY, ema_half_life=16.0, ema_start=1), CPU)
    images = torch.zeros(16, 32, 32, 3, dtype=torch.uint8)
    name = "net.0.weight"
    trainer.step(0, images)
    before = trainer.networks.ema.state_dict()[name].clone()
    trainer.step(1, images)
    now = trainer.networks.g.state_dict()[name]
    for average, decay in ((trainer.networks.ema, 0.5), (trainer.networks.ema_long, 0.5**0.25)):
        assert torch.allclose(average.state_dict()[name], torch.lerp(now, before, decay), atol=1e-7)


def test_a_gradient_penalty_updates_the_discriminator_alone_and_lazily():
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8, generator=seeded_generator("cpu", 1))
    trainer, twin = (GanTrainer(replace(RELATIVISTIC, penalty_every=every), CPU) for every in (2, 3))
    for step in (1, 2):  # the first without a penalty in either, the second with one in `trainer`
        trainer.step(step, images)
        twin.step(step, images)
        equal_d = is_equal(trainer.networks.d.state_dict(), twin.networks.d.state_dict())
        assert equal_d == (step == 1)
        assert is_equal(trainer.networks.g.state_dict(), twin.networks.g.state_dict())


def test_a_gradient_penalty_flattens_the_discriminator():
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8, generator=seeded_generator("cpu", 1))
    trainer = GanTrainer(RELATIVISTIC, CPU)
    penalties = [trainer.penalize(images, trainer.latents(0, 16), None, None, None) for _ in range(20)]
    assert penalties[-1] < 0.8 * penalties[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_every_recipe_trains_conditionally_with_augmentation(loss, regularizer):
    options = replace(
        TINY, loss=loss, regularizer=regularizer, penalty_every=1, conditional="gender", diff_augment=True
    )
    trainer = GanTrainer(options, CPU, classes=2)
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8)
    before = deepcopy(trainer.networks.state())
    for step in range(2):
        assert trainer.step(step, images, torch.arange(16) % 2).isfinite().all()
    after = trainer.networks.state()
    for network in ("g", "d"):
        assert not is_equal(before[network], after[network])


def test_compiled_and_eager_steps_agree():
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8)
    trainers = [GanTrainer(replace(TINY, compile=compiled), CPU) for compiled in (False, True)]
    losses = [torch.stack([trainer.step(step, images) for step in range(3)]) for trainer in trainers]
    assert torch.allclose(*losses, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        {"loss": "relativistic", "regularizer": "r1r2", "penalty_every": 2, "diff_augment": True},
        {"loss": "hinge", "regularizer": "spectral"},
    ],
)
def test_the_step_of_every_recipe_is_one_graph(more, monkeypatch):
    """`fullgraph=True` raises at a graph break; the backend does not matter, and this one needs no compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8)
    trainers = [GanTrainer(replace(TINY, compile=compiled, **more), CPU) for compiled in (False, True)]
    losses = [torch.stack([trainer.step(step, images) for step in range(3)]) for trainer in trainers]
    assert torch.allclose(*losses, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [0, 3])
def test_the_warm_up_of_a_capture_is_undone(steps):
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8)
    trainer, twin = GanTrainer(TINY, CPU), GanTrainer(TINY, CPU)
    for each in (trainer, twin):
        for step in range(steps):
            each.step(step, images)
    before = deepcopy(trainer.networks.state())
    trainer.update(images, trainer.latents(9, 16), None, None, None)
    CapturedStep(trainer.update, trainer.networks).undo(before)
    assert is_equal(trainer.step(steps, images), twin.step(steps, images))
    assert is_equal(trainer.networks.state(), twin.networks.state())


def test_ranks_have_the_same_state_after_a_step_with_a_penalty_on_generated_images(monkeypatch):
    barrier, sent = Barrier(2, timeout=30), {}

    @torch.no_grad()
    def average(tensors, rank_slice):
        sent[rank_slice.rank] = [tensor.clone() for tensor in tensors]
        barrier.wait()
        means = [(first + second) / 2 for first, second in zip(sent[0], sent[1], strict=True)]
        barrier.wait()
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean)

    monkeypatch.setattr(trainer_module, "average_across_ranks", average)
    options = replace(RELATIVISTIC, regularizer="r1r2")
    trainers = [GanTrainer(options, CPU, rank_slice=RankSlice(rank, 2)) for rank in range(2)]
    images = torch.randint(0, 255, (2, 8, 32, 32, 3), dtype=torch.uint8)
    with ThreadPoolExecutor(2) as ranks:
        list(ranks.map(lambda trainer, batch: trainer.step(0, batch), trainers, images))
    assert is_equal(*[trainer.networks.state() for trainer in trainers])


def test_flop_of_the_published_network():
    # 2.28 GFLOP an image: G forward and backward, D on two images forward and backward, D once more for G
    assert step_flop(GanOptions()) == pytest.approx(2.28e9, rel=0.02)


def test_flop_of_a_step_do_not_depend_on_its_gradient_penalty():
    assert step_flop(replace(RELATIVISTIC, penalty_every=1)) == step_flop(RELATIVISTIC)


def test_the_memory_of_a_step_is_not_overestimated():
    """By the tensors that are alive when the step has computed its losses: weights, averages and activations."""
    options = replace(TINY, width_g=16, width_d=24, image_size=64, batch_size=32)
    trainer = GanTrainer(options, CPU)
    images = torch.zeros(32, 64, 64, 3, dtype=torch.uint8)
    trainer.step(0, images)
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fake = trainer._generate(trainer.latents(0, 32), None)
        trainer._d_loss(trainer_module.to_unit_range(images), fake.detach(), None, None)
    weights = 4 * trainer.networks.parameters()["generator"] + 3 * trainer.networks.parameters()["discriminator"]
    estimate = step_memory(options, images=32)
    assert 0.25 * estimate < estimate - 4 * weights < sum(sizes.values())
    assert step_memory(options, images=10**6) > 10**10
    assert step_memory(replace(options, width_g=10**5), images=1) > 10**12  # nothing is allocated


def test_the_size_of_a_checkpoint_is_known_before_the_first_step(tmp_path):
    trainer = GanTrainer(replace(TINY, conditional="gender"), CPU, classes=2)
    expected = trainer.networks.checkpoint_bytes()
    trainer.step(0, torch.zeros(16, 32, 32, 3, dtype=torch.uint8), torch.zeros(16, dtype=torch.long))
    size = checkpoint.save(tmp_path, 1, {"networks": trainer.state()}, keep=1).stat().st_size
    assert size == pytest.approx(expected, rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("base", [TINY, RELATIVISTIC], ids=["published", "relativistic"])
def test_a_captured_step_equals_an_ordinary_one(compiled, base):
    device = torch.device("cuda")
    images = torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8, device=device)
    options = replace(base, compile=compiled)
    trainers = [GanTrainer(replace(options, cuda_graphs=captured), device) for captured in (False, True)]
    losses = [torch.stack([trainer.step(step, images) for step in range(5)]) for trainer in trainers]
    assert torch.allclose(*losses, rtol=1e-3, atol=1e-4)
    statistics = [dict(trainer.networks.d.named_buffers()) for trainer in trainers]
    for name, ordinary in statistics[0].items():
        assert torch.allclose(ordinary.float(), statistics[1][name].float(), rtol=1e-3, atol=1e-4)
