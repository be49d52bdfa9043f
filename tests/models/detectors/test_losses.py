"""The detectors' losses against what their definitions say, found another way."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.detectors import Labels, losses
from models.detectors.base import GroupAwareDetector, agnostic

ALPHAS = (0.05, 0.5, 0.9, 1.0)


def by_search(losses_: np.ndarray, alpha: float) -> float:
    """min over l of l + mean(max(losses - l, 0)) / alpha, by golden section: the objective is convex."""
    return searched(lambda level: level + np.maximum(losses_ - level, 0).mean() / alpha, losses_)


def searched(objective, losses_: np.ndarray) -> float:
    low, high, golden = losses_.min() - 10, losses_.max() + 1, (np.sqrt(5) - 1) / 2
    for _ in range(200):
        one, other = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, other) if objective(one) < objective(other) else (one, high)
    return objective((low + high) / 2)


def test_the_worst_half_by_hand():
    assert losses.cvar(torch.tensor([1.0, 4.0, 2.0, 3.0]), 0.5) == pytest.approx(3.5)
    assert losses.cvar(torch.tensor([1.0, 3.0, 2.0]), 0.5) == pytest.approx((3 + 0.5 * 2) / 1.5)
    assert losses.cvar(torch.tensor([7.0]), 0.5) == pytest.approx(7)
    assert losses.cvar(torch.tensor([7.0, 9.0]), 0.5, torch.tensor([True, False])) == pytest.approx(7)
    assert losses.cvar(torch.tensor([7.0, 9.0]), 0.5, torch.tensor([False, False])) == 0


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_worst_losses_are_the_minimum_of_the_dual(alpha):
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 8, 17):
        values = rng.exponential(size=n)
        assert losses.cvar(torch.tensor(values), alpha) == pytest.approx(by_search(values, alpha), abs=1e-5), n


def test_the_gradient_is_that_of_the_minimum():
    values = torch.tensor([0.3, 2.0, 1.1, 0.9, 1.7], requires_grad=True)
    (slope,) = torch.autograd.grad(losses.cvar(values, 0.5), values)
    for i in range(5):
        step = np.eye(5)[i] * 1e-4
        ends = [by_search(values.detach().numpy().astype(float) + sign * step, 0.5) for sign in (1, -1)]
        assert slope[i] == pytest.approx((ends[0] - ends[1]) / 2e-4, abs=1e-3)


def labels(target, group):
    target = torch.tensor(target)
    return Labels(target, torch.zeros_like(target), torch.tensor(group))


def each_loss(logits, target):
    """Binary cross entropy by its definition."""
    p = 1 / (1 + np.exp(-np.asarray(logits, float)))
    return np.where(np.asarray(target) == 1, -np.log(p), -np.log(1 - p))


def test_dag_fdd_by_hand_and_by_search():
    logits, target = [2.0, -1.0, 0.5, -3.0], [1, 1, 0, 0]
    each = each_loss(logits, target)  # 0.127, 1.313, 0.974, 0.049
    ours = agnostic(torch.tensor(logits), labels(target, [0] * 4)).item()
    assert ours == pytest.approx((1.3132617 + 0.9740770) / 2, abs=1e-6)
    assert ours == pytest.approx(by_search(each, 0.5), abs=1e-6)


def test_daw_fdd_by_search_within_and_over_groups():
    rng = np.random.default_rng(1)
    for n in (3, 8, 40):
        logits, target, group = rng.normal(size=n), rng.integers(0, 2, n), rng.integers(-1, 4, n)
        each = each_loss(logits, target)
        of_groups = np.array([by_search(each[group == g], 0.9) for g in np.unique(group)])
        ours = GroupAwareDetector(6)(torch.tensor(logits), labels(target.tolist(), group.tolist())).item()
        assert ours == pytest.approx(by_search(of_groups, 0.5), abs=1e-5)


def test_pg_fdds_smooth_worst_by_search():
    rng, tau, weight = np.random.default_rng(2), 1e-3, 1e-4
    for there in ([True] * 6, [True, False, True, True, False, False], [True] + [False] * 5):
        values = rng.exponential(size=6)
        among = values[there]

        def objective(level, among=among):
            soft = tau * np.logaddexp(0, (among - level) / tau)
            return level + weight / (2 * 0.5) * level**2 + soft.mean() / 0.5

        ours = losses.smoothed_cvar(torch.tensor(values), torch.tensor(there), 0.5, tau, weight).item()
        assert ours == pytest.approx(searched(objective, among), abs=2e-6)


def test_margins_are_taken_from_the_true_class():
    cosines, target = torch.tensor([[0.9, -0.2], [0.1, 0.3]]), torch.tensor([0, 1])
    wanted = [np.log1p(np.exp(30 * (-0.2 - (0.9 - 0.45)))), np.log1p(np.exp(30 * (0.1 - (0.3 - 0.45))))]
    assert losses.additive_margin(cosines, target).item() == pytest.approx(np.mean(wanted), rel=1e-5)


def test_rarer_groups_get_larger_margins_and_unknown_ones_none():
    logits, counts = torch.tensor([[0.2, 0.1, 0.0], [0.2, 0.1, 0.0]]), torch.tensor([10_000, 16, 0])
    rare = losses.label_distribution_aware(logits[:1], torch.tensor([1]), counts).item()
    wanted = F.cross_entropy(30 * torch.tensor([[0.2, 0.1 - 0.5, 0.0]]), torch.tensor([1])).item()
    assert rare == pytest.approx(wanted, rel=1e-5)  # the rarest that there is: one without images is none
    common = losses.label_distribution_aware(logits[:1], torch.tensor([0]), counts).item()
    margin = 0.5 * (16 / 10_000) ** 0.25
    wanted = F.cross_entropy(30 * torch.tensor([[0.2 - margin, 0.1, 0.0]]), torch.tensor([0])).item()
    assert common == pytest.approx(wanted, rel=1e-5)
    both = losses.label_distribution_aware(logits, torch.tensor([1, -1]), counts).item()
    assert both == pytest.approx(rare)
    assert losses.label_distribution_aware(logits, torch.tensor([-1, -1]), counts).item() == 0


def test_partners_are_of_the_same_family():
    family = torch.tensor([0, 0, 0, 0, 1, 2, 1, 2, -1, 1])
    seen = set()
    for seed in range(50):
        torch.manual_seed(seed)
        partners = losses.shuffled_within(family)
        assert torch.equal(family[partners], family)
        assert sorted(partners.tolist()) == list(range(10))
        seen.add(tuple(partners.tolist()))
    assert len(seen) > 20


def test_contrast_wants_fakes_near_fakes():
    """Features apart by more than the margin cost nothing; features of one place cost the margin four times."""
    family = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
    assert losses.contrastive(apart, apart, family).item() == pytest.approx(0, abs=1e-4)
    assert losses.contrastive(0 * apart, 0 * apart, family).item() == pytest.approx(12, abs=1e-4)


def test_consistency_is_of_directions():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert losses.consistency(a, 3 * a).item() == pytest.approx(0, abs=1e-6)
    assert losses.consistency(a, -a).item() == pytest.approx(4, abs=1e-5)
