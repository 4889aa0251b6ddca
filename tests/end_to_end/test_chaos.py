"""A run whose processes are killed, frozen and starved goes on, and ends as one that was left alone (all faults: `make chaos`)."""

import pytest

from tests.chaos.compare import differences
from tests.chaos.faults import SAMPLE
from tests.chaos.runs import undisturbed, with_faults, write_recipe


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    recipe = write_recipe(folder, updates=3 * len(SAMPLE))
    alone = undisturbed(folder, recipe)
    return alone, *with_faults(folder, recipe, SAMPLE, seconds=900)


def test_every_fault_came_and_was_survived(disturbed):
    _, _, outcomes = disturbed
    assert [o.fault for o in outcomes] == list(SAMPLE)
    assert all(o.noticed for o in outcomes if o.fault.kind != "exhaust"), outcomes


def test_nothing_is_lost_doubled_or_different(disturbed):
    alone, directory, _ = disturbed
    assert differences(directory, alone, ["ppo"]) == []
