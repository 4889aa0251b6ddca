"""`rlhf-bench evaluate` before lm-eval is asked: what is missing, and what is not there."""

import sys

import numpy as np
import pytest

from rlhf_bench.cli import main as cli
from rlhf_bench.core.errors import BadInput
from rlhf_bench.experiment.harness import Benchmark, measurements
from rlhf_bench.experiment.policies import Policy, policies
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.schema import BASE
from rlhf_bench.training.cache import Cache
from tests.support.benchmarks import complete
from tests.support.recorded import record


@pytest.fixture
def directory(tmp_path):
    scores = np.random.default_rng(0).uniform(size=(2, 4))
    made = tmp_path / "made"
    made.mkdir()
    complete(record(made, {"dpo": (scores, scores), "ppo": (scores, scores)}, (scores[0], scores[1]), {}))
    return made


def test_without_lm_eval_one_line_says_how_to_install_it(directory, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not there
    monkeypatch.setattr(sys, "argv", ["rlhf-bench", "evaluate", str(directory), "--tasks", "ifeval"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: evaluate needs the package lm-eval") and "'.[benchmarks]'" in line


def refused(directory, cache, *chosen):
    with pytest.raises(BadInput) as found:
        policies(read_recorded(directory), cache, *chosen)
    return found.value.problems


def test_every_policy_that_cannot_be_had_is_named_with_the_remedy(directory, tmp_path):
    lines = refused(directory, Cache(tmp_path / "cache"))
    assert len(lines) == 5 and "older run" in lines[0] and "choose arms by --arm" in lines[0]
    assert ["dpo, seed 1", "dpo, seed 2", "ppo, seed 1", "ppo, seed 2"] == [
        next(name for name in ("dpo, seed 1", "dpo, seed 2", "ppo, seed 1", "ppo, seed 2") if name in line)
        for line in lines[1:]
    ]


def test_arms_and_seeds_that_are_not_there_are_refused_by_name(directory, tmp_path):
    lines = refused(directory, Cache(tmp_path / "cache"), ["dpq"], [7])
    assert lines[0].startswith("--arm dpq: no such arm") and "base, dpo and ppo" in lines[0]
    assert lines[1].startswith("--seed 7: no arm has finished with it") and "there are 1 and 2" in lines[1]


RESULTS = {
    "results": {
        "ifeval": {
            "name": "ifeval", "alias": "ifeval", "sample_len": 4,
            "prompt_level_strict_acc,none": 0.25, "prompt_level_strict_acc_stderr,none": 0.25,
            "inst_level_strict_acc,none": 0.5, "inst_level_strict_acc_stderr,none": "N/A", "bypass,none": None,
        },
        "first": {"alias": " - first", "acc,none": 0.5, "acc_stderr,none": 0.1},
    },
    "groups": {"both": {"alias": "both", "acc,none": 0.75, "acc_stderr,none": 0.05}},
    "group_subtasks": {"both": ["first", "second"]},
    "n-samples": {
        "ifeval": {"original": 541, "effective": 4}, "first": {"original": 9, "effective": 3}, "second": {"original": 9, "effective": 2},
    },
    "n-shot": {"ifeval": 0, "first": 5, "both": 5}, "versions": {"ifeval": 4.0},
    "higher_is_better": {"ifeval": {"prompt_level_strict_acc": True}},
}  # fmt: skip
"""As lm_eval.simple_evaluate 0.4.13 returns it, shortened."""


def test_numbers_of_lm_eval_are_read_with_their_errors_and_prompts(tmp_path):
    policy = Policy(BASE, 0, tmp_path, "w", tmp_path)
    found = list(measurements(RESULTS, policy, Benchmark("asked", "d"), "0.4.13"))
    assert [(one.task, one.metric, one.value, one.standard_error, one.prompts, one.shots) for one in found] == [
        ("ifeval", "prompt_level_strict_acc", 0.25, 0.25, 4, 0),
        ("ifeval", "inst_level_strict_acc", 0.5, None, 4, 0),
        ("first", "acc", 0.5, 0.1, 3, 5),
        ("both", "acc", 0.75, 0.05, 5, 5),
    ]
    assert [one.higher_is_better for one in found] == [True, None, None, None]
    assert found[0].version == "4.0" and {one.benchmark for one in found} == {"asked"}
