"""What is charged to an arm, and that no arm ever passes its budget."""

from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.costs import COLUMNS, Cost


def test_costs_add_up_column_by_column():
    total = Cost(flops=1, generated_tokens=2, judge_queries=5) + Cost(flops=10, trained_tokens=3, device_seconds=0.5)
    assert total == Cost(11, 2, 3, 0, 5, 0.5)
    assert sum([total, Cost()], Cost()) == total
    assert Cost().as_dict() == dict.fromkeys(COLUMNS, 0.0)
    assert list(total.as_dict()) == list(COLUMNS)


@pytest.mark.parametrize("column", COLUMNS)
def test_any_column_can_be_the_budget(column):
    ledger = Ledger(column, 10)
    ledger.charge("learning", Cost(**(dict.fromkeys(COLUMNS, 100.0) | {column: 4.0})))
    assert (ledger.spent, ledger.fraction) == (4, 0.4)
    assert ledger.has_room_for(Cost(**(dict.fromkeys(COLUMNS, 100.0) | {column: 6.0})))
    assert not ledger.has_room_for(Cost(**{column: 6.001}))


def test_phases_are_kept_apart_and_every_role_is_charged():
    ledger = Ledger("flops", 100)
    for phase in ("reward_model", "rollout", "scoring", "judging", "measuring", "learning", "sync", "learning"):
        ledger.charge(phase, Cost(flops=1, trained_tokens=2))
    assert ledger.total() == Cost(flops=8, trained_tokens=16)
    assert ledger.by_phase["learning"] == Cost(flops=2, trained_tokens=4)


@pytest.mark.parametrize("phase", ["evaluation", "shared", "tuning"])
def test_evaluation_trials_and_shared_stages_are_metered_but_charged_to_nobody(phase):
    ledger = Ledger("flops", 10)
    ledger.charge(phase, Cost(flops=1e9))
    assert ledger.spent == 0 and ledger.total() == Cost() and ledger.begin_update()
    assert ledger.by_phase[phase].flops == 1e9


def test_what_was_spent_before_the_first_update_counts():
    ledger = Ledger("flops", 10)
    ledger.charge("reward_model", Cost(flops=11))
    assert not ledger.begin_update()


def test_an_arm_ends_before_an_update_as_dear_as_its_dearest():
    ledger = Ledger("flops", 10)
    for flops in (4.0, 1.0):
        assert ledger.begin_update()
        ledger.charge("learning", Cost(flops=flops))
        ledger.end_update()
    assert ledger.begin_update()  # 5 spent, 4 at most to come
    ledger.charge("learning", Cost(flops=2.0))
    ledger.end_update()
    assert not ledger.begin_update()  # 7 spent


def test_the_whole_budget_may_be_used():
    ledger = Ledger("flops", 10)
    for _ in range(2):
        assert ledger.begin_update() and ledger.has_room_for(Cost(flops=5))
        ledger.charge("learning", Cost(flops=5))
        ledger.end_update()
    assert ledger.spent == ledger.limit and not ledger.begin_update()


@settings(deadline=None)
@given(
    limit=st.integers(1, 500),
    before=st.integers(0, 200),
    rollout=st.integers(0, 40),
    learning=st.lists(st.integers(1, 60), min_size=1, max_size=20),
)
def test_an_arm_never_passes_its_limit_and_stops_within_one_update_of_it(limit, before, rollout, learning):
    """As the loop goes: sampling is paid as it happens and costs the same each time, learning is known before."""
    ledger = Ledger("flops", limit)
    ledger.charge("reward_model", Cost(flops=before))
    updates = cycle(learning)
    dearest = rollout + max(learning)
    if before + dearest > limit:
        return  # refused before the start: no update fits
    while ledger.begin_update():
        ledger.charge("rollout", Cost(flops=rollout))
        step = Cost(flops=next(updates))
        if not ledger.has_room_for(step):
            break
        ledger.charge("learning", step)
        ledger.end_update()
    assert ledger.spent <= limit
    assert limit - ledger.spent < dearest
