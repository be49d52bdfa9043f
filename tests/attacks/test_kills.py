"""A stage that is killed at any moment and run again ends with the same bytes as an undisturbed one."""

import random
from itertools import islice

import pytest

from tests.attacks.helpers import KILLED, STAGES, Stage, copy_tree, differences, lost_files, own_files, read_tree

pytestmark = pytest.mark.attack  # a finished job takes a minute to prepare

MOMENTS = 50  # of every stage, in all of the attacks
REPEATED_MOMENTS = 10  # of every stage that replaces what is there
SUCCESSIVE = (1, 3, 6)  # kills in a single test: of one run after the other, until the command may end
TEST_MOMENTS = sum(SUCCESSIVE)
KILLS = {name: REPEATED_MOMENTS if stage.replaces else MOMENTS for name, stage in STAGES.items()}
TRIED = {f"kills of `fairface {STAGES[name].title}`": count for name, count in KILLS.items() if count == MOMENTS}
TRIED["kills of the same commands while they replace results"] = sum(KILLS.values()) - sum(TRIED.values())


def kill_moments(changes: int, seconds: float, count: int) -> list[dict[str, float]]:
    """`count` moments of a stage: half of them before its changes to the file system, the others at random times."""
    rng = random.Random(count)
    chosen = rng.sample(range(changes), min(changes, (count + 1) // 2))
    moments = [{"change": number} for number in chosen]
    moments += [{"seconds": rng.uniform(0.05, seconds)} for _ in range(count - len(moments))]
    rng.shuffle(moments)
    return moments


@pytest.fixture(scope="module")
def undisturbed(server, base):
    """What a stage leaves behind, its own files, its changes to the file system and its seconds; each runs once."""
    results = {}

    def run(name: str):
        if name not in results:
            stage, out = STAGES[name], base / "out"
            copy_tree(base / stage.after, out)
            result = server.finish(*stage.command(out), root=out)
            own = own_files(stage, base / stage.after, out)
            results[name] = read_tree(out), own, result.changes, result.seconds
        return results[name]

    return run


def check_kills(
    server, base, stage: Stage, *, expected: dict[str, str], own: set[str], moments: list[dict[str, float]]
) -> None:
    """Kill a stage at each of the moments, each time in the state that the last kill left, and run it again."""
    out = base / "out"
    copy_tree(base / stage.after, out)
    before = read_tree(out)
    for moment in moments:
        killed = server.run(*stage.command(out), root=out, **moment)
        assert killed.code in (KILLED, 0), (moments, killed.output)
        assert not lost_files(before, own, read_tree(out)), moments
    server.finish(*stage.command(out), root=out)
    found = read_tree(out)
    if stage.name == "labeller":  # other processes may be writing theirs to the same cache
        found = {path: content for path, content in found.items() if not path.endswith(".partial")}
    assert not differences(expected, found), moments


@pytest.mark.parametrize(
    ("name", "part"),
    [(name, part) for name, count in KILLS.items() for part in range(count // TEST_MOMENTS)],
)
def test_a_killed_stage_is_repaired_by_the_same_command(server, base, undisturbed, name, part):
    expected, own, changes, seconds = undisturbed(name)
    moments = iter(kill_moments(changes, seconds, KILLS[name])[part * TEST_MOMENTS :])
    for successive in SUCCESSIVE:
        batch = list(islice(moments, successive))
        check_kills(server, base, STAGES[name], expected=expected, own=own, moments=batch)
