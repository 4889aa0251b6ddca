"""`rlhf-bench compare`: arms of several runs side by side, and why some may not be compared."""

import json

import numpy as np
import pytest

from rlhf_bench.cli import main as cli
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.summary import summarize
from tests.support.recorded import LIMIT, record

PROMPTS = 60
BASE = (np.full(PROMPTS, 0.4), np.full(PROMPTS, 0.4))
RECIPE = {"task": {"kind": "slogan"}, "model": {"max_length": 64}, "evaluation": {"prompts": PROMPTS}}


def scores(*means):
    rng = np.random.default_rng(1)  # prompts differ in the same way for everyone
    hard = rng.normal(0, 0.02, PROMPTS)
    return np.array([mean + hard for mean in means])


def made(directory, arms, base=BASE, **recipe):
    directory.mkdir(parents=True)
    return record(directory, {name: (scores(*means),) * 2 for name, means in arms.items()}, base, {}, **RECIPE | recipe)


def command(capsys, *arguments):
    code = cli.exit_code(lambda: cli.app(["compare", *map(str, arguments)], standalone_mode=False))
    said = capsys.readouterr()
    return code, said.out, said.err.splitlines()


@pytest.fixture
def two(tmp_path):
    """One run's DPO is far ahead of the other's; PPO is equal in both."""
    first = made(tmp_path / "first" / "out", {"dpo": (0.5, 0.51, 0.52), "ppo": (0.6, 0.61, 0.62)})
    second = made(tmp_path / "second" / "out", {"dpo": (0.7, 0.71, 0.72), "ppo": (0.6, 0.61, 0.62)})
    return first, second


def differences(out):
    """(arm, against) -> the rest of its line."""
    lines = out[out.index("Arms of different directories") :].splitlines()
    found = {}
    for line in lines:
        words = line.split()
        if len(words) > 5 and words[0].endswith(":"):
            found[" ".join(words[:2]), " ".join(words[2:4])] = words[4:]
    return found


def test_arms_of_two_runs_stand_in_one_table_and_are_tested_as_one_family(two, capsys):
    code, out, err = command(capsys, *two)
    assert code == 0 and not err
    rows = [line.split()[:2] for line in out.splitlines() if line.split()[:1] in (["first/out"], ["second/out"])]
    best, *middle, last = map(tuple, rows)
    assert best == ("second/out", "dpo") and last == ("first/out", "dpo")
    assert set(middle) == {("first/out", "ppo"), ("second/out", "ppo")}
    found = differences(out)
    assert len(found) == 4  # two by two; arms of one run are its own report's
    assert (
        found["second/out: dpo", "first/out: dpo"][0] == "+0.200"
        and found["second/out: dpo", "first/out: dpo"][-1] == "yes"
    )
    assert (
        found["first/out: ppo", "second/out: ppo"][0] == "+0.000"
        and found["first/out: ppo", "second/out: ppo"][-1] == "no"
    )
    assert "corrected by Holm for the 10 differences" in out  # six of four arms, and four with the base policy


def test_a_run_with_itself_twice_is_no_comparison(two, capsys):
    code, out, (line,) = command(capsys, two[0], two[0] / ".." / "out")
    assert code == 2 and not out and "two directories or more" in line


def test_intervals_are_wider_than_those_of_one_run_alone(two, capsys):
    """The family is larger."""
    alone = summarize(read_recorded(two[1])).standing.difference("dpo", "ppo").adjusted.p
    _, out, _ = command(capsys, *two)
    assert float(differences(out)["second/out: dpo", "first/out: ppo"][3].replace("<", "")) >= alone


def test_budgets_that_differ_are_said(tmp_path, two, capsys):
    third = made(tmp_path / "third", {"dpo": (0.5, 0.5, 0.5)}, compute={"column": "flops", "limit": 2 * LIMIT})
    code, out, _ = command(capsys, two[0], third)
    assert (
        code == 0
        and "Budgets differ (out 1 TFLOP, third 2 TFLOP per seed), so differences are also those of compute." in out
    )


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        ({"task": {"kind": "poem", "lines": 4}}, 'task.kind is "slogan" in the first, and "poem" in the second'),
        ({"model": {"max_length": 32}}, "model.max_length is 64 in the first, and 32 in the second"),
        ({"evaluation": {"prompts": PROMPTS, "temperature": 0.5}}, "evaluation.temperature is null in the first, and 0.5 in the second"),
        ({"compute": {"column": "generated_tokens", "limit": 5}}, 'compute.column is "flops" in the first, and "generated_tokens" in the'),
    ],
)  # fmt: skip
def test_what_means_something_else_is_refused_key_by_key(recipe, line, tmp_path, two, capsys):
    other = made(tmp_path / "other", {"dpo": (0.5, 0.5, 0.5)}, **recipe)
    if "compute" in recipe:
        results = json.loads((other / "results.json").read_text())
        for seed in results["arms"]["dpo"]["seeds"]:
            seed["spent"]["generated_tokens"] = 1
        (other / "results.json").write_text(json.dumps(results))
    code, out, (said,) = command(capsys, two[0], other)
    assert code == 2 and not out and said.startswith(f"error: out and other cannot be compared: {line}"), said


def test_another_start_and_other_prompts_are_refused(tmp_path, two, capsys):
    better = made(tmp_path / "better", {"dpo": (0.5, 0.5, 0.5)}, base=(np.full(PROMPTS, 0.41), BASE[1]))
    code, _, (said,) = command(capsys, two[0], better)
    assert code == 2 and "their base policies score 0.4 and 0.41" in said
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    half = (BASE[0][:30], BASE[1][:30])
    record(fewer, {"dpo": (scores(0.5, 0.5, 0.5)[:, :30],) * 2}, half, {}, **RECIPE)
    code, _, (said,) = command(capsys, two[0], fewer)
    assert code == 2 and "not scored on the same held-out prompts" in said
