"""A run whose processes are killed, frozen and starved, at last all at once, goes on, and ends as one that was left alone (all
faults: `make chaos`)."""

import pytest

from tests.chaos.compare import differences
from tests.chaos.faults import SAMPLE
from tests.chaos.runs import with_faults


@pytest.fixture(scope="module")
def disturbed(undisturbed):
    """Directory and outcomes of the same run with faults on the way, and after them the kill of its whole group."""
    folder = undisturbed.parents[1]
    return with_faults(folder, folder / "chaos.yaml", SAMPLE, seconds=900, group_kill=True)


def test_every_fault_came_and_was_survived(disturbed):
    _, outcomes = disturbed
    assert [o.fault for o in outcomes] == list(SAMPLE)
    assert all(o.noticed for o in outcomes if o.fault.kind != "exhaust"), outcomes


def test_it_resumes_after_the_kill_of_all_its_processes(disturbed):
    directory, _ = disturbed
    _, killed, resumed = (directory / "events.log").read_text().split("starting the engines")
    assert "ppo · seed 1: begins" in killed and "resuming from" in resumed


def test_nothing_is_lost_doubled_or_different(disturbed, undisturbed):
    directory, _ = disturbed
    assert differences(directory, undisturbed, ["ppo"]) == []
