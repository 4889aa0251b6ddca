"""Which responses a judge compares, and what its verdicts come to by arm."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from docs.generate_output_files import page
from rlhf_bench.core.contests import Contest, Judged
from rlhf_bench.core.errors import BadInput
from rlhf_bench.results.contests import contests
from rlhf_bench.results.judged import Place, judging, read_judged, write_judged
from rlhf_bench.results.judged_schema import JUDGED_JSON, JUDGED_TABLE
from rlhf_bench.results.reader import read_recorded
from tests.support.recorded import record, record_responses

PROMPTS = 6
ABOUT = {
    "model": "a-judge", "endpoint": "http://127.0.0.1:8000/v1", "prompt_sha256": "0" * 64, "constrained": False, "max_tokens": 64,
    "against": "base", "failures": {}, "stopped": "",
    "costs": {"queries": 4, "answers": 4, "prompt_tokens": 400, "completion_tokens": 20, "money": None},
}  # fmt: skip


def texts(who, count=PROMPTS):
    return [f"{who} answers {i}" for i in range(count)]


@pytest.fixture
def directory(tmp_path):
    """Two arms with two seeds each, and every response."""
    scores = (np.full((2, PROMPTS), 0.5), np.full((2, PROMPTS), 0.5))
    record(tmp_path, {"one": scores, "two": scores}, tuple(one[0] for one in scores), {})
    record_responses(
        tmp_path, {arm: {s: (texts("base"), texts(f"{arm} {s}")) for s in (1, 2)} for arm in ("one", "two")}
    )
    return tmp_path


def test_against_the_base_policy_every_arm_and_seed_answers_every_prompt(directory):
    found = contests(read_recorded(directory), "base")
    assert len(found) == 2 * 2 * PROMPTS
    assert found[Place("two", 2, "p3")] == Contest("prompt 3", "two 2 answers 3", "base answers 3")


def test_a_budget_that_ends_early_leaves_all_arms_the_same_prompts(directory):
    first = list(contests(read_recorded(directory), "base"))[:4]
    assert {place.prompt_id for place in first} == {"p0"} and len({(p.arm, p.seed) for p in first}) == 4


def test_against_an_arm_the_seeds_are_paired(directory):
    found = contests(read_recorded(directory), "two")
    assert {place.arm for place in found} == {"one"}
    assert found[Place("one", 2, "p1")].other == "two 2 answers 1"


def test_against_the_reference_answers(directory):
    assert contests(read_recorded(directory), "reference")[Place("one", 1, "p5")].other == "reference 5"


def test_a_seed_that_did_not_finish_is_not_judged(directory):
    results = json.loads((directory / "results.json").read_text())
    results["arms"]["one"]["seeds"][1]["status"] = "diverged"
    (directory / "results.json").write_text(json.dumps(results))
    assert {(p.arm, p.seed) for p in contests(read_recorded(directory), "base")} == {("one", 1), ("two", 1), ("two", 2)}


def test_an_opponent_that_is_not_there_is_refused(directory):
    with pytest.raises(
        BadInput, match="--against three: is no opponent; name base, reference or one of the arms one and two"
    ):
        contests(read_recorded(directory), "three")
    record_responses(directory, {})
    with pytest.raises(BadInput, match="keeps no responses"):
        contests(read_recorded(directory), "base")


def verdicts(found, choose):
    return {place: choose(place, contest) for place, contest in found.items()}


def written(directory, judged, **about):
    found = contests(read_recorded(directory), about.get("against", "base"))
    write_judged(directory, ABOUT | about, found, verdicts(found, judged))
    ((record, rows),) = read_judged(directory)
    return judging(record, rows, {"one": [1, 2], "two": [1, 2]})


WON, LOST, FIRST, TIE, NOTHING = (
    Judged("first", "second"), Judged("second", "first"), Judged("first", "first"), Judged("tie", "tie"), Judged(None, None)
)  # fmt: skip


def test_win_rates_by_hand(directory):
    outcomes = {"p0": WON, "p1": WON, "p2": WON, "p3": LOST, "p4": FIRST, "p5": TIE}
    found = written(directory, lambda place, _: outcomes[place.prompt_id] if place.arm == "one" else LOST)
    one, two = found.arms
    assert (one.win_rate, one.wins, one.ties, one.losses) == pytest.approx((4 / 6, 3 / 6, 2 / 6, 1 / 6))
    assert one.order.consistent == pytest.approx(5 / 6) and one.seeds == (1, 2) and one.prompts == PROMPTS
    assert one.interval.low < 4 / 6 < one.interval.high
    assert two.win_rate == 0 and two.adjusted is None  # two seeds are too few for a test
    assert found.complete


def test_a_prompt_counts_where_all_seeds_have_both_verdicts(directory):
    def judged(place, _):
        return NOTHING if place == ("one", 2, "p0") else LOST if place.prompt_id == "p0" else WON

    found = written(directory, judged)
    one, two = found.arms
    assert (one.prompts, one.win_rate) == (5, 1.0) and (two.prompts, two.win_rate) == (6, 5 / 6)
    assert found.missing == 1 and not found.complete


def test_an_arm_without_verdicts_is_there_without_numbers(directory):
    one, two = written(directory, lambda place, _: NOTHING if place.arm == "one" else WON).arms
    assert one.prompts == 0 and np.isnan(one.win_rate) and one.interval is None and two.win_rate == 1


def test_arms_and_seeds_that_finish_later_are_named(directory):
    found = contests(read_recorded(directory), "base")
    write_judged(directory, ABOUT, found, verdicts(found, lambda *_: WON))
    ((about, rows),) = read_judged(directory)
    assert judging(about, rows, {"one": [1, 2], "two": [1, 2, 3]}).later == (("two", 3),)


def rows_of(seeds, wins):
    """Verdicts of an arm that wins so many of ten prompts with every seed."""
    return [
        {"arm": arm, "seed": seed, "prompt_id": f"p{i}", "extra_length": (-1) ** i,
         "own_first": "first" if i < won else "second", "own_second": "second" if i < won else "first"}
        for arm, won in wins.items() for seed in range(1, seeds + 1) for i in range(10)
    ]  # fmt: skip


def test_settled_is_by_holm_over_the_arms_and_from_three_seeds_on():
    found = judging(ABOUT, pd.DataFrame(rows_of(3, {"best": 10, "even": 5})), {"best": [1, 2, 3], "even": [1, 2, 3]})
    best, even = found.arms
    assert best.settled and not even.settled and even.adjusted.p == pytest.approx(1.0)
    few = judging(ABOUT, pd.DataFrame(rows_of(2, {"best": 10})), {"best": [1, 2]})
    assert not few.arms[0].settled


def test_another_opponent_or_judge_has_files_of_its_own(directory):
    found = contests(read_recorded(directory), "base")
    for about in (ABOUT, ABOUT | {"model": "another"}, ABOUT | {"max_tokens": 9}, ABOUT):
        write_judged(directory, about, found, verdicts(found, lambda *_: WON))
    against = contests(read_recorded(directory), "two")
    write_judged(directory, ABOUT | {"against": "two"}, against, verdicts(against, lambda *_: WON))
    assert len(read_recorded(directory).judged) == 4


def test_an_agreement_that_was_measured_stays_until_it_is_measured_again(directory):
    written(directory, lambda *_: WON, agreement={"with": "some pairs", "pairs": 0, "missing": 3})
    assert written(directory, lambda *_: LOST).about["agreement"]["with"] == "some pairs"
    assert written(directory, lambda *_: LOST, agreement={"with": "others"}).about["agreement"] == {"with": "others"}


@pytest.mark.parametrize("damage", ["cut", "verdict", "json", "lost"])
def test_a_damaged_file_is_named(directory, damage):
    written(directory, lambda *_: WON)
    (table,) = (directory / "judged").glob("*.parquet")
    if damage == "cut":
        table.write_bytes(table.read_bytes()[:50])
    elif damage == "verdict":
        pd.read_parquet(table).assign(own_first="maybe").to_parquet(table)
    elif damage == "json":
        table.with_suffix(".json").write_text("{")
    else:
        table.unlink()
    with pytest.raises(
        BadInput,
        match=f"{table.stem}.json: cannot be read, or its table .*remove both, and `rlhf-bench judge` writes them again",
    ):
        read_recorded(directory)


def test_what_is_written_is_described(directory):
    agreement = {"with": "x", "pairs": 1, "missing": 0, "costs": {"queries": 2}, "share": 1.0, "ci95": [0.0, 1.0]}
    written(directory, lambda *_: WON, agreement=agreement)
    (table,) = (directory / "judged").glob("*.parquet")
    assert list(pd.read_parquet(table).columns) == list(JUDGED_TABLE.keys)
    known = {re.split(r"[.\[]", key.name)[0] for key in JUDGED_JSON.keys}
    assert known == json.loads(table.with_suffix(".json").read_text()).keys()
    assert all(f"`{key.name}`" in page() for key in (*JUDGED_JSON.keys, *JUDGED_TABLE.columns))
