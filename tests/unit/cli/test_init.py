"""`rlhf-bench init` on a model and data: what it writes is what `check` accepts, and what it took for granted is said."""

import json
import shutil

import pytest
import yaml

from rlhf_bench.cli import main as cli
from rlhf_bench.recipe import load_recipe, parse_recipe
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.first_recipe.proposal import budget_of
from rlhf_bench.training.first_recipe.task import measured_task
from rlhf_bench.training.inputs import lengths_of, prepare_inputs
from tests.support.given_models import write_weights

SMALL = {
    "name": "small", "task": {"kind": "arithmetic", "digits": 1}, "compute": {"limit": 1e12}, "sft": {"demonstrations": 2},
    "model": {"hidden_size": 32, "layers": 1, "heads": 1, "intermediate_size": 8, "max_length": 128},
    "data": {"train_prompts": 2, "off_policy_pairs": 1, "held_out_pairs": 1, "max_response_tokens": 6},
    "evaluation": {"prompts": 2, "splits": ["in_distribution"]}, "arms": {"a": {"method": "dpo"}},
}  # fmt: skip


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    fresh = prepare_inputs(parse_recipe(SMALL), Cache(tmp_path / "cache")).model
    return str(write_weights(shutil.copytree(fresh, tmp_path / "model")))


def command(capsys, *arguments):
    """Exit code, standard output and lines on standard error, in this process."""
    code = cli.exit_code(lambda: cli.app(list(map(str, arguments)), standalone_mode=False))
    said = capsys.readouterr()
    return code, said.out, said.err.splitlines()


def rows(path, *found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path.name


def pairs(count):
    return [{"prompt": f"{n}+{n % 7}=", "chosen": f"{n + n % 7}", "rejected": "0"} for n in range(count)]


def test_a_recipe_on_preferences_is_one_that_check_accepts(model, tmp_path, capsys):
    data = rows(tmp_path / "pairs.jsonl", *pairs(90), {"prompt": "1+1=", "chosen": "2", "rejected": ""})
    code, out, err = command(capsys, "init", "my.yaml", "--model", model, "--data", data, "--budget", "1e10")
    assert code == 0, err
    recipe, written = load_recipe(tmp_path / "my.yaml"), (tmp_path / "my.yaml").read_text()
    assert recipe.sft is None and recipe.evaluation.splits == ("in_distribution",)
    assert {arm.data for arm in recipe.arms.values()} == {"online", "offline", "on_policy"}
    assert recipe.compute.limit == 1e10 and recipe.task.unusable == "leave_out"
    sentences = [line.split(": ", 2)[2] for line in out.splitlines() if line.startswith("assumed: ")]
    assert sentences and all(f"# {sentence}" in written for sentence in sentences)
    assert any("1 with an empty text (first pairs.jsonl:91)" in sentence for sentence in sentences)
    assert yaml.safe_load(written)["task"]["pairs"] == "./pairs.jsonl"  # as seen from the recipe's folder
    assert command(capsys, "check", "my.yaml", "--quiet")[0] == 0
    held_out = prepare_inputs(recipe, Cache(tmp_path / "cache"))
    trained = {p.prompt.text for p in held_out.pairs} | {p.text for p in held_out.train}
    assert trained.isdisjoint({p.prompt.text for p in held_out.held_out_pairs})
    assert trained.isdisjoint({p.text for p in held_out.held_out["in_distribution"]})


def test_of_many_pairs_those_are_used_that_the_budget_has_room_for(model, tmp_path, capsys):
    """The reference's log-probabilities of all of them are measured before an arm begins."""
    data = rows(tmp_path / "pairs.jsonl", *pairs(400))
    chosen = {}
    for budget in ("2e7", "1e12"):
        code, _, err = command(capsys, "init", f"{budget}.yaml", "--model", model, "--data", data, "--budget", budget)
        assert code == 0, err
        chosen[budget] = load_recipe(tmp_path / f"{budget}.yaml").data.off_policy_pairs
    assert chosen["2e7"] < 100 < chosen["1e12"]


def test_pairs_are_counted_at_their_own_length_as_check_counts_them(model, tmp_path, capsys):
    """Room for a response is what nine of ten of the data's longest answers need."""
    data = rows(tmp_path / "pairs.jsonl", *pairs(80), *(row | {"chosen": "1+" * 9 + "1"} for row in pairs(20)))
    code, _, err = command(capsys, "init", "my.yaml", "--model", model, "--data", data, "--budget", "1e10")
    assert code == 0, err
    cache = Cache(tmp_path / "cache")
    _, found = measured_task(data, None, {}, model, False, cache, print)
    recipe = load_recipe(tmp_path / "my.yaml")
    checked = lengths_of(recipe, prepare_inputs(recipe, cache))
    assert found.lengths.side == pytest.approx(checked.side, rel=0.2)
    assert found.lengths.side < found.lengths.response / 2 and found.lengths.response == checked.response


def test_without_pairs_no_arm_needs_any(model, tmp_path, capsys):
    data = rows(tmp_path / "own.jsonl", *[{"question": f"{n}+1=", "answer": f"so\n#### {n + 1}"} for n in range(90)])
    code, _, err = command(capsys, "init", "my.yaml", "--model", model, "--data", data, "--budget", "1e10")
    recipe = load_recipe(tmp_path / "my.yaml") if code == 0 else pytest.fail(str(err))
    assert {arm.data for arm in recipe.arms.values()} == {"online", "on_policy"} and recipe.task.judge == "number"
    assert prepare_inputs(recipe, Cache(tmp_path / "cache")).pairs == []


@pytest.mark.parametrize("apart", [True, False])
def test_labelled_completions_have_an_arm_that_learns_from_labels(apart, model, tmp_path, capsys):
    """`apart`: each of another prompt, so that no two make a pair."""
    given = [
        {"prompt": f"{n if apart else n // 2}+1=", "completion": str(n + n % 2), "label": n % 2 == 0}
        for n in range(160)
    ]
    data = rows(tmp_path / "own.jsonl", *given)
    code, out, err = command(capsys, "init", "my.yaml", "--model", model, "--data", data, "--budget", "1e10")
    recipe = load_recipe(tmp_path / "my.yaml") if code == 0 else pytest.fail(str(err))
    offline = {name for name, arm in recipe.arms.items() if arm.data == "offline"}
    assert offline == {"kto-unpaired"} if apart else {"kto-unpaired", "dpo-offline"}
    found = prepare_inputs(recipe, Cache(tmp_path / "cache"))
    assert {one.desirable for one in found.labelled} == {True, False} and bool(found.pairs) != apart
    code, out, err = command(capsys, "check", "my.yaml", "--quiet")
    assert code == 0, err
    assert command(capsys, "check", "my.yaml")[1].count(" labelled responses") >= 1


@pytest.mark.parametrize(("arguments", "keys"), [
    (["--data", "x.jsonl"], ["--model"]),
    (["--model", "MODEL"], ["--data"]),
    (["--budget", "1e12"], ["--model", "--data"]),
    (["--model", "MODEL", "--data", "x.jsonl", "--map", "prompt", "--map", "sort=x"], ["--map", "--map"]),
    (["--data", "x.jsonl", "--map", "prompt", "--budget", "soon"], ["--model", "--map", "--budget"]),
    (["--model", "MODEL", "--data", "x.jsonl", "--budget", "5s"], ["--budget"]),
    (["--model", "MODEL", "--data", "none.jsonl"], ["--data"]),
    (["--model", "MODEL", "--task", "gsm8k"], ["--task"]),
    (["--model", "MODEL", "--task", "poetry"], ["--task"]),
    (["--model", "MODEL", "--data", "x.jsonl", "--budget", "10"], ["--budget"] * 4),
])  # fmt: skip
def test_what_init_refuses_and_then_no_file_is_there(arguments, keys, model, tmp_path, capsys):
    rows(tmp_path / "x.jsonl", *pairs(60))
    code, _, err = command(capsys, "init", "my.yaml", *[model if a == "MODEL" else a for a in arguments])
    assert code == 2 and not (tmp_path / "my.yaml").exists()
    assert [line.removeprefix("error: ").partition(":")[0] for line in err] == keys


def test_budgets():
    assert budget_of("10min").seconds == 600 and budget_of("90s").seconds == 90 and budget_of("1.5h").seconds == 5400
    assert budget_of("1e14").flops == 1e14


def test_a_file_that_is_there_stays(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("mine")
    assert command(capsys, "init", tmp_path / "my.yaml")[0] == 2 and (tmp_path / "my.yaml").read_text() == "mine"
