"""The number of torch's threads: when and how it is measured, what is chosen, and when a slow rate is reported."""

import pytest
import torch

from pipeline import threads
from pipeline.threads import SlowdownWarning, choose_threads, requested_threads, restored_state, using_threads
from shards.documents import ThreadsRecord

IDLE, BUSY = {2: 0.1, 1: 0.17}, {2: 0.4, 1: 0.1}  # seconds of a step by number of threads


@pytest.fixture
def cores(monkeypatch):
    """Sets the number of cores of a machine without OMP_NUM_THREADS."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return lambda count: monkeypatch.setattr(threads, "available_cpus", lambda: count)


def choose(
    seconds: dict[int, float], *, steps: int = 10_000, on_all_ranks: bool = False
) -> tuple[ThreadsRecord, list[int]]:
    """Choose threads where a step takes `seconds` by number of threads; also returns the number used in each step."""
    taken: list[int] = []

    def time_step(count: int) -> float:
        taken.append(count)
        return seconds[count]

    return choose_threads(time_step, steps=steps, step_images=16, on_all_ranks=on_all_ranks), taken


@pytest.mark.parametrize(("seconds", "count"), [(IDLE, 2), (BUSY, 1), ({2: 0.1, 1: 0.105}, 1), ({2: 0.1, 1: 0.12}, 2)])
def test_the_fastest_number_is_chosen_and_fewer_threads_if_they_are_as_fast(cores, seconds, count):
    cores(2)
    record, taken = choose(seconds)
    assert record.count == count
    assert record.images_per_s == {str(n): round(16 / s, 1) for n, s in sorted(seconds.items())}
    assert record.rate == round(16 / seconds[count], 1)
    assert set(taken) == {1, 2}


def test_one_half_and_all_cores_are_measured(cores):
    cores(64)
    record, taken = choose({64: 0.1, 32: 0.06, 1: 0.11})
    assert (record.count, set(taken)) == (32, {64, 32, 1})


def test_a_single_thread_is_not_tried_where_half_the_cores_are_much_slower(cores):
    cores(64)
    record, taken = choose({64: 5, 32: 11})
    assert (record.count, taken.count(32)) == (64, 2)


def test_a_single_thread_is_tried_where_all_cores_are_much_slower_than_half(cores):
    cores(4)
    record, taken = choose({4: 0.5, 2: 0.1, 1: 0.06})
    assert (record.count, set(taken)) == (1, {4, 2, 1})


def test_a_measurement_takes_a_small_share_of_the_time(cores):
    cores(2)
    _, taken = choose(IDLE, steps=300)
    assert sum(IDLE[count] for count in taken) < 3
    assert choose(IDLE, steps=150) == (ThreadsRecord(count=2), [2, 2])  # 15 s: too short
    cores(16)
    # 16 blocks of samples, for example: a single thread would take longer for them than all cores for all samples
    assert choose({16: 1}, steps=40) == (ThreadsRecord(count=16), [16, 16])
    _, taken = choose({16: 1, 8: 2}, steps=400)
    assert set(taken) == {16, 8}
    cores(2)
    assert choose({2: 100}, steps=10) == (ThreadsRecord(count=2), [])


def test_a_requested_number_is_not_measured(cores, monkeypatch):
    cores(4)
    with using_threads(3), using_threads(None):
        assert choose({}) == (ThreadsRecord(count=3), [])
        assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert choose({}) == (ThreadsRecord(count=2), [])


def test_a_single_core_is_not_measured(cores):
    cores(1)
    assert choose({}) == (ThreadsRecord(count=1), [])


def test_all_ranks_take_the_steps_and_the_number_of_the_first(cores, monkeypatch):
    shared: list = []

    def send(work):
        shared.append(work())
        return shared[-1]

    def receive(_):
        return shared.pop(0)

    cores(2)
    results = []
    for seconds, exchange in ((IDLE, send), ({2: 9, 1: 0.01}, receive)):
        monkeypatch.setattr(threads.distributed, "run_on_rank0", exchange)
        results.append(choose(seconds, on_all_ranks=True))
    assert results[0] == results[1]
    assert results[0][0].count == 2
    assert not shared


def test_the_number_that_torchrun_sets_is_not_a_request(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert requested_threads() == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert requested_threads() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert requested_threads() is None
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert requested_threads() == 3


def test_the_state_before_the_steps_is_restored():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(module.parameters())
    before, random = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    with restored_state(module, optimizer):
        module(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(before["0.weight"], module[0].weight)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert torch.equal(random, torch.get_rng_state())
    assert not optimizer.state_dict()["state"]


def test_a_rate_that_stays_at_a_third_is_reported_once():
    warning = SlowdownWarning(ThreadsRecord(count=2, images_per_s={"1": 500, "2": 600}))
    assert [warning.update(rate, 15) for rate in (190, 610, 190)] == [None] * 3
    message = warning.update(190, 15)
    assert message is not None
    assert message.startswith("the rate fell from 600 to 190 img/s")
    assert "--threads 1" in message
    assert [warning.update(190, 15) for _ in range(3)] == [None] * 3


def test_without_a_measurement_the_first_rate_is_the_reference():
    warning = SlowdownWarning(ThreadsRecord(count=1))
    assert warning.update(300, 60) is None
    message = warning.update(90, 60)
    assert message is not None
    assert "from 300 to 90" in message
    assert "--threads" not in message  # it has a single one already
