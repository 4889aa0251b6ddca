"""Does a run give what was recorded: what is compared, what is said of it, and what counts."""

import pytest

from rlhf_bench.cli.verify import report_lines
from rlhf_bench.results.reproduction import Check, arm_checks, base_checks, made_with

DIGEST = "ab" * 32
BASE = {"score": {"in_distribution": 0.5, "unseen": 0.25}, "greedy_score": {"in_distribution": 0.75}, "weights": DIGEST}
WITH = {
    "commit": "c1",
    "machine": "1 node: 2 CPU (x), 21 GiB for Ray, no GPU",
    "threads": {"learner": "2", "scorer": "2"},
    "versions": {"torch": "2.1"},
}


def results(**seeds):
    return {"arms": {"dpo": {"method": "dpo", "seeds": list(seeds.values())}}, **WITH}


ONE = {"seed": 1, "status": "done", "updates": 7, "score": 0.6, "kl": 1.5, "weights": DIGEST}


def outcomes(checks):
    return {check.name: check.outcome for check in checks}


def test_what_is_the_same_to_the_last_bit_is_the_same():
    checks = base_checks(BASE, BASE) + arm_checks(results(one=ONE), results(one=ONE)) + made_with(WITH, WITH)
    assert set(outcomes(checks).values()) == {"same"}
    assert report_lines(checks)[-2:] == [
        "same: commit, machine, threads and versions", "9 of 9 numbers are the same to the last bit",
    ]  # fmt: skip


def test_a_number_that_differs_in_its_last_bit_differs():
    almost = BASE | {"score": {"in_distribution": 0.5 + 2**-53, "unseen": 0.25}}
    (one,) = [check for check in base_checks(BASE, almost) if check.outcome == "differs"]
    assert one.line.startswith(
        "DIFFERS: base policy, score in_distribution: recorded 0.5, now 0.5000000000000001, differs by +1.11e-16"
    )


def test_what_older_runs_did_not_record_is_said_and_proves_nothing():
    older = {"score": {"in_distribution": 0.5}}
    checks = base_checks(older, BASE) + made_with({"commit": "c1"}, WITH)
    lines = report_lines(checks)
    assert lines[-1] == "1 of 1 numbers are the same to the last bit; 3 more were not recorded"
    assert f"not recorded: base policy, weights; now {DIGEST[:16]}…" in lines
    assert (
        "not recorded: threads of learner; now 2" in lines
        and "not recorded: machine; now 1 node: 2 CPU (x), no GPU" in lines
    )


def test_what_the_numbers_were_made_with_is_named_where_it_differs():
    now = WITH | {
        "commit": "c2",
        "machine": "1 node: 2 CPU (x), 23 GiB for Ray, no GPU",
        "threads": {"learner": "1"},
        "versions": {"torch": "2.2", "numpy": "2"},
    }
    found = outcomes(made_with(WITH, now))
    assert found == {
        "commit": "differs", "machine": "same", "threads of learner": "differs",  # no scorer works now: no arm needs one
        "version of torch": "differs", "version of numpy": "not recorded",
    }  # fmt: skip
    assert Check("threads of learner", "2", "1").line == "DIFFERS: threads of learner: recorded 2, now 1"


def test_only_arms_and_seeds_that_ran_again_are_compared():
    other = ONE | {"seed": 2, "score": 0.1}
    found = arm_checks(results(one=ONE, two=other), results(two=other | {"score": 0.2}))
    assert outcomes(found)["dpo · seed 2, score"] == "differs" and len(found) == 5
    assert arm_checks(results(one=ONE), results()) == []


def test_base_policies_of_seeds_are_compared_seed_by_seed():
    recorded = {"score": {"in_distribution": 0.4}, "seeds": {"1": BASE, "2": BASE | {"weights": "cd" * 32}}}
    found = base_checks(recorded, {"score": {"in_distribution": 0.5}, "seeds": {"2": BASE}})
    assert outcomes(found)["base policy of seed 2, weights"] == "differs"
    assert all("seed 2" in check.name for check in found) and len(found) == 4
    assert set(outcomes(base_checks({}, {"seeds": {"2": BASE}})).values()) == {"not recorded"}


@pytest.mark.parametrize(("one", "said"), [
    (Check("n", 1.0, None), "DIFFERS: n: recorded 1.0, now none"),
    (Check("n", "done", "diverged"), "DIFFERS: n: recorded done, now diverged"),
    (Check("n", 3, 5), "DIFFERS: n: recorded 3, now 5, differs by +2"),
])  # fmt: skip
def test_lines(one, said):
    assert one.line == said
