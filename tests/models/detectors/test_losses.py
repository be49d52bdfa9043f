"""The detectors' losses, checked against their definitions by an independent computation."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.detectors import Labels, losses
from models.detectors.objectives import GroupCvarBce, cvar_bce

ALPHAS = (0.05, 0.5, 0.9, 1.0)


def cvar_by_search(values: np.ndarray, alpha: float) -> float:
    """min over l of l + mean(max(values - l, 0)) / alpha, by golden section: the objective is convex."""
    return minimum(lambda level: level + np.maximum(values - level, 0).mean() / alpha, values)


def minimum(objective: Callable[[float], float], values: np.ndarray) -> float:
    low, high, golden = values.min() - 10, values.max() + 1, (np.sqrt(5) - 1) / 2
    for _ in range(200):
        one, other = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, other) if objective(one) < objective(other) else (one, high)
    return objective((low + high) / 2)


def test_cvar_by_hand():
    assert losses.cvar(torch.tensor([1.0, 4.0, 2.0, 3.0]), 0.5) == pytest.approx(3.5)
    assert losses.cvar(torch.tensor([1.0, 3.0, 2.0]), 0.5) == pytest.approx((3 + 0.5 * 2) / 1.5)
    assert losses.cvar(torch.tensor([7.0]), 0.5) == pytest.approx(7)
    assert losses.cvar(torch.tensor([7.0, 9.0]), 0.5, mask=torch.tensor([True, False])) == pytest.approx(7)
    assert losses.cvar(torch.tensor([7.0, 9.0]), 0.5, mask=torch.tensor([False, False])) == 0


@pytest.mark.parametrize("alpha", ALPHAS)
def test_cvar_is_the_minimum_of_its_dual(alpha):
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 8, 17):
        values = rng.exponential(size=n)
        assert losses.cvar(torch.tensor(values), alpha) == pytest.approx(cvar_by_search(values, alpha), abs=1e-5), n


def test_the_gradient_of_cvar_is_that_of_the_minimum():
    values = torch.tensor([0.3, 2.0, 1.1, 0.9, 1.7], requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.cvar(values, 0.5), values)
    for i in range(5):
        step = np.eye(5)[i] * 1e-4
        ends = [cvar_by_search(values.detach().numpy().astype(float) + sign * step, 0.5) for sign in (1, -1)]
        assert gradient[i] == pytest.approx((ends[0] - ends[1]) / 2e-4, abs=1e-3)


def labels(target: list[int], group: list[int]) -> Labels:
    targets = torch.tensor(target)
    return Labels(targets, torch.zeros_like(targets), torch.tensor(group))


def bce_by_definition(logits, target) -> np.ndarray:
    p = 1 / (1 + np.exp(-np.asarray(logits, float)))
    return np.where(np.asarray(target) == 1, -np.log(p), -np.log(1 - p))


def test_dag_fdd_by_hand_and_by_search():
    logits, target = [2.0, -1.0, 0.5, -3.0], [1, 1, 0, 0]
    face_losses = bce_by_definition(logits, target)  # 0.127, 1.313, 0.974, 0.049
    loss = cvar_bce(torch.tensor(logits), labels(target, [0] * 4)).item()
    assert loss == pytest.approx((1.3132617 + 0.9740770) / 2, abs=1e-6)
    assert loss == pytest.approx(cvar_by_search(face_losses, 0.5), abs=1e-6)


def test_daw_fdd_by_search_within_and_over_groups():
    rng = np.random.default_rng(1)
    for n in (3, 8, 40):
        logits, target, group = rng.normal(size=n), rng.integers(0, 2, n), rng.integers(-1, 4, n)
        face_losses = bce_by_definition(logits, target)
        group_losses = np.array([cvar_by_search(face_losses[group == g], 0.9) for g in np.unique(group)])
        loss = GroupCvarBce(6)(torch.tensor(logits), labels(target.tolist(), group.tolist())).item()
        assert loss == pytest.approx(cvar_by_search(group_losses, 0.5), abs=1e-5)


def test_the_smoothed_cvar_of_pg_fdd_by_search():
    rng, temperature, penalty = np.random.default_rng(2), 1e-3, 1e-4
    for mask in ([True] * 6, [True, False, True, True, False, False], [True] + [False] * 5):
        values = rng.exponential(size=6)
        selected = values[mask]

        def objective(level, selected=selected):
            excess = temperature * np.logaddexp(0, (selected - level) / temperature)
            return level + penalty / (2 * 0.5) * level**2 + excess.mean() / 0.5

        loss = losses.smoothed_cvar(
            torch.tensor(values), torch.tensor(mask), alpha=0.5, temperature=temperature, penalty=penalty
        )
        assert loss.item() == pytest.approx(minimum(objective, selected), abs=2e-6)


def test_am_softmax_subtracts_the_margin_from_the_true_class():
    cosines, target = torch.tensor([[0.9, -0.2], [0.1, 0.3]]), torch.tensor([0, 1])
    expected = [np.log1p(np.exp(30 * (-0.2 - (0.9 - 0.45)))), np.log1p(np.exp(30 * (0.1 - (0.3 - 0.45))))]
    assert losses.additive_margin(cosines, target).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_ldam_gives_rarer_groups_larger_margins_and_ignores_unknown_groups():
    logits, counts = torch.tensor([[0.2, 0.1, 0.0], [0.2, 0.1, 0.0]]), torch.tensor([10_000, 16, 0])

    def ldam(logits, target):
        return losses.label_distribution_aware(logits, torch.tensor(target), counts=counts).item()

    rare = ldam(logits[:1], [1])
    expected = F.cross_entropy(30 * torch.tensor([[0.2, 0.1 - 0.5, 0.0]]), torch.tensor([1])).item()
    assert rare == pytest.approx(expected, rel=1e-5)  # the rarest that occurs: a group without images does not count
    margin = 0.5 * (16 / 10_000) ** 0.25
    expected = F.cross_entropy(30 * torch.tensor([[0.2 - margin, 0.1, 0.0]]), torch.tensor([0])).item()
    assert ldam(logits[:1], [0]) == pytest.approx(expected, rel=1e-5)
    assert ldam(logits, [1, -1]) == pytest.approx(rare)
    assert ldam(logits, [-1, -1]) == 0


def test_partners_are_of_the_same_family():
    family = torch.tensor([0, 0, 0, 0, 1, 2, 1, 2, -1, 1])
    permutations = set()
    for seed in range(50):
        torch.manual_seed(seed)
        partners = losses.shuffle_within_groups(family)
        assert torch.equal(family[partners], family)
        assert sorted(partners.tolist()) == list(range(10))
        permutations.add(tuple(partners.tolist()))
    assert len(permutations) > 20


def test_the_contrastive_loss_pulls_fakes_towards_fakes():
    """Features that are apart by more than the margin cost nothing; equal features cost the margin four times."""
    family = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
    assert losses.contrastive(apart, apart, family=family).item() == pytest.approx(0, abs=1e-4)
    assert losses.contrastive(0 * apart, 0 * apart, family=family).item() == pytest.approx(12, abs=1e-4)


def test_the_consistency_loss_depends_on_directions_only():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert losses.consistency(a, 3 * a).item() == pytest.approx(0, abs=1e-6)
    assert losses.consistency(a, -a).item() == pytest.approx(4, abs=1e-5)
