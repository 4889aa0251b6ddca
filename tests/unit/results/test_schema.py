"""The schema describes all that is written, and nothing else: files, tables, keys, and the numbers of methods and diagnostics."""

import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch

from rlhf_bench.core.types import DESIRABLE, HELD_OUT_SPLITS, OWN, Group, Prompt, PromptScore, Row, Sample, SplitResult
from rlhf_bench.diagnostics.gradients import gradient_numbers, partials
from rlhf_bench.diagnostics.likelihood import kl_numbers, pair_numbers, probe_numbers
from rlhf_bench.diagnostics.probes import PROBE_SETS
from rlhf_bench.diagnostics.reward_models import ScoredSamples
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import Outputs, PairLogprobs, SideGradients
from rlhf_bench.results.benchmarks import add_benchmarks
from rlhf_bench.results.metrics import COMPARED, EVALUATION, METRICS, TRAIN, described, mlflow_name
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.schema import (
    ARCHIVED_UPDATE_COLUMNS,
    FILES,
    JSON_FILES,
    METRICS_TABLE,
    TABLES,
    TUNING,
)
from rlhf_bench.results.summary import summarize
from rlhf_bench.results.summary_json import SummaryFile, summary_schema, to_json
from rlhf_bench.results.tracked import note_tracked
from rlhf_bench.training.rollouts import sample_metrics
from tests.support.benchmarks import measurement
from tests.support.side_by_side import ARMS, RECIPE, Made

ROOT = Path(__file__).parents[3]
RECORDED = sorted(path.parent for path in (ROOT / "docs" / "results" / "data").rglob("results.json"))
WORDS = {"ARM": r"[^.\[]+(\.\w+=[^\[]*?)?", "SPLIT": "|".join(HELD_OUT_SPLITS), "TEMPERATURE": r"[\d.]+"}
"""What stands for a word in capitals in paths of keys; any other one stands for a key without a dot."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The directory of a comparison whose engines are scripted; it ends without a report."""
    made = {"steps": 1, "start_policy_prompts": 4}
    run = Made(
        tmp_path_factory.mktemp("made"),
        arms=ARMS | {"scored": {**ARMS["online"], "feedback": "reward_model"}},
        reward_model=made,
        gold_reward_model=made,
        tuning={"trials": [{"learning_rate": 1e-4}, {"learning_rate": 1e-3}], "prompts": 2},
    )
    run.run()
    add_benchmarks(run.directory, [measurement()])
    note_tracked(run.directory, "http://127.0.0.1:5000", ["metrics of dpo · seed 1, step 1: no such name"])
    return run.directory


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The same of one where each seed has a base policy of its own."""
    sft = RECIPE["sft"] | {"seed_follows": True}
    run = Made(tmp_path_factory.mktemp("followed"), sft=sft, arms={"offline": ARMS["offline"]})
    run.run()
    return run.directory


def pattern(name):
    """A name with words in capitals, as a regular expression."""
    escaped = re.escape(name)
    return re.sub(r"[A-Z]{2,}", lambda word: f"({WORDS.get(word[0], r'[^.]+')})", escaped)


def paths(data, at=""):
    """The path of every value in JSON data."""
    entries = (
        data.items() if isinstance(data, dict) else (("[]", value) for value in data) if isinstance(data, list) else ()
    )
    for key, value in entries:
        joined = at + key if key == "[]" or not at else f"{at}.{key}"
        yield from paths(value, joined)
    if not isinstance(data, dict | list):
        yield at


def columns(directory, table):
    return list(pd.read_parquet(directory / TABLES[table].file).columns)


def recorded_metrics(directory, phase):
    metrics = pd.read_parquet(directory / METRICS_TABLE.file)
    own = metrics[metrics["phase"] == phase].dropna(axis="columns", how="all")
    return {column for column in own.columns if column not in METRICS_TABLE.keys} | (
        {"score"} if phase == EVALUATION else set()
    )


def outputs(**more):
    """A forward pass over two pairs of two tokens a response."""
    index, numbers = torch.arange(4).repeat_interleave(2), torch.linspace(-2, -1, 8)
    return Outputs(response_index=index, responses=4, extras={"reference_logprob": torch.linspace(-3, -2, 4), **more},
                   logprobs=numbers, entropy=-numbers, values=numbers, scores=torch.linspace(0, 1, 4))  # fmt: skip


def of_pair_method(method):
    settings = method.settings().resolve_at(0.0, {"beta_rejected": 0.1})
    _, numbers = method.objectives[0].loss(outputs(), settings)
    rows = [Row("a", (1,), ((2, 3), (4, 5)))]
    measured = {name: [(np.zeros(2), np.zeros(2))] for name in method.measures}
    prepared = method.prepare(rows, [(1.0, 0.0)], measured, settings, {"beta_rejected": 0.1})
    return {*numbers, *prepared.metrics, *(f"state/{key}" for key in prepared.state)}


def of_single_responses():
    """KTO's, with labels in place of pairs."""
    method = METHODS["kto"]
    settings = method.settings(unpaired=True)
    rows = [Row(str(i), (1,), ((2, 3),), {DESIRABLE: (np.array([float(i)]),)}) for i in range(2)]
    measured = {name: [(np.zeros(2),)] * 2 for name in method.measures}
    prepared = method.prepare(rows, [(1.0,), (0.0,)], measured, settings, {})
    labels = {DESIRABLE: torch.tensor([1.0, 0.0, 1.0, 0.0])} | dict.fromkeys(
        ("of_chosen", "of_rejected"), torch.ones(4)
    )
    _, numbers = method.objectives[0].loss(outputs(**labels), settings)
    return {*numbers, *prepared.metrics}


def of_method_on_samples(method):
    settings = method.settings(rollouts_ahead=1)
    zeros = (np.zeros(2), np.ones(2))
    rows = [Row("a", (1,), ((2, 3), (4, 5)), {"sampler_logprobs": zeros})]
    prepared = method.prepare(rows, [(1.0, 0.0)], {name: [zeros] for name in method.measures}, settings, {})
    read = ("old_logprobs", "advantages", "importance", "old_values", "returns", "weight", "reference_gap")
    found = {*prepared.metrics, *(f"state/{key}" for key in prepared.state)}
    for objective in method.objectives:
        prefix = "" if objective.model == "policy" else "critic_"
        _, numbers = objective.loss(outputs(**dict.fromkeys(read, torch.ones(8))), settings)
        found |= {prefix + key for key in numbers}
    return found


def of_method(method):
    return of_pair_method(method) if method.consumes == "pairs" else of_method_on_samples(method)


def of_learner():
    """What the learner and the loop add, which only engines produce: the source names it."""
    files = [file for folder in ("actors/learner", "rlhf_bench/training") for file in (ROOT / folder).glob("*.py")]
    source = "".join(file.read_text() for file in files)
    found = {name for name in ("loss", "grad_norm", "skipped", "sample_logprob") if f'"{name}"' in source}
    return found | {f"critic_{name}" for name in ("loss", "grad_norm", "skipped")}


def of_samples():
    samples = (Sample("s", (1, 2), (-1.0, -1.0), True, 0, reward=1.0, gold=1.0),)
    return {*sample_metrics([Group(Prompt("p", "1+1=", "2"), samples)], 0), "pairs"}


def of_diagnostics():
    ones = np.ones((2, 2))
    found = {*pair_numbers(ones, ones), *kl_numbers(ones), *gradient_numbers([SideGradients(1.0, 1.0, 0.5)])}
    found |= set(SplitResult((PromptScore("p", 1.0, 1.0, 1.0),), {}, 1.0, ()).scores)
    scored = ScoredSamples.of([Row("r", (1,), ((2,), (3, 4)))], np.zeros(2), np.zeros(2)).numbers(1.0)
    found |= {f"{key}/{name}" for key in ("reward_model", "gold_reward_model") for name in scored}
    for name in PROBE_SETS:
        found |= set(probe_numbers(name, ones[0], ones[0]))
    pairs = PairLogprobs(*(torch.tensor([x], dtype=torch.float64) for x in (-1.0, -2.0, -1.5, -1.5, 2.0, 2.0)))
    derived = set(partials(METHODS["dpo"].pair_loss, pairs, METHODS["dpo"].settings()))
    return found | derived | {f"{OWN}{name}" for name in derived | set(pair_numbers(ones, ones))}


PRODUCED = {
    TRAIN: set().union(of_learner(), of_samples(), of_single_responses(), *map(of_method, METHODS.values())),
    EVALUATION: of_diagnostics(),
}  # fmt: skip


@pytest.mark.parametrize("phase", METRICS)
def test_every_number_of_methods_diagnostics_and_records_is_described(phase, made):
    found = PRODUCED[phase].union(*(recorded_metrics(directory, phase) for directory in (made, *RECORDED)))
    assert [name for name in sorted(found) if described(name, phase) is None] == []


@pytest.mark.parametrize("phase", METRICS)
def test_no_number_is_described_that_nothing_produces(phase, made):
    found = PRODUCED[phase].union(*(recorded_metrics(directory, phase) for directory in (made, *RECORDED)))
    assert [metric.name for metric in METRICS[phase] if not any(metric.is_called(name) for name in found)] == []


def test_every_recorded_column_is_in_its_table_and_every_tables_column_is_written(made):
    for table in ("samples", "ledger", "pairs"):
        assert columns(made, table) == list(TABLES[table].keys)
        for directory in RECORDED:  # older runs lack what was not recorded then
            known, found = TABLES[table], columns(directory, table)
            assert found == [key for key in known.keys if key in found] and set(known.required) <= set(found), directory
    assert columns(made, "scores") == list(TABLES["scores"].keys)
    for directory in (made, *RECORDED):
        known = columns(directory, "metrics")[: len(METRICS_TABLE.keys)]
        assert known == list(METRICS_TABLE.keys), directory


def test_what_is_archived_of_an_update_is_recorded_of_one(made):
    assert set(ARCHIVED_UPDATE_COLUMNS) <= {*METRICS_TABLE.keys, *PRODUCED[TRAIN], *recorded_metrics(made, TRAIN)}


@pytest.mark.parametrize("file", JSON_FILES, ids=lambda file: file.name)
def test_every_key_of_a_json_file_is_described_and_no_other_one_is(file, made, followed):
    found = set()
    for directory in (
        made,
        followed,
        *RECORDED,
        *(path.parent for path in (ROOT / "docs" / "results" / "data").rglob("series.json")),
    ):
        if (directory / file.name).exists():
            found |= set(paths(json.loads((directory / file.name).read_text())))
    patterns = {key.name: pattern(key.name) for key in file.keys}
    assert found
    assert [at for at in sorted(found) if not any(re.fullmatch(known, at) for known in patterns.values())] == []
    unseen = {name for name, known in patterns.items() if not any(re.fullmatch(known, at) for at in found)}
    # No arm failed in these, no recipe asked for the best of n, and where each seed has a base policy, none had a reward model
    # or left anything out.
    assert unseen <= {
        "arms.ARM.seeds[].cause",
        "best_of_score.SPLIT",
        "seeds.SEED.best_of_score.SPLIT",
        "seeds.SEED.reward_model.accuracies.SPLIT",
        "seeds.SEED.reward_model.scale",
        "seeds.SEED.gold_reward_model.accuracy",
        "seeds.SEED.gold_reward_model.accuracies.SPLIT",
        "seeds.SEED.gold_reward_model.scale",
        "seeds.SEED.setup.notes[]",
    }


def test_every_file_that_a_run_leaves_is_described(made):
    known = [
        *(file.path for file in FILES),
        *(file.name for file in JSON_FILES),
        *(table.file for table in TABLES.values()),
    ]
    patterns = [pattern(path) + (".*" if path.endswith("/") else "") for path in known]
    left = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert {TUNING, "events.log", "metrics.parquet", "parts/online-seed1/result.json"} <= left
    assert [path for path in sorted(left) if not any(re.fullmatch(one, path) for one in patterns)] == []


def test_a_number_has_one_name_in_mlflow():
    assert mlflow_name("kl", EVALUATION) == "evaluation/kl" and mlflow_name("kl", TRAIN) == "train/kl"
    assert mlflow_name("score", EVALUATION, "unseen") == "score/unseen"
    assert mlflow_name("flops", TRAIN) == "budget/flops" and mlflow_name("fraction", EVALUATION) == "budget/fraction"
    assert COMPARED == {TRAIN: {"reward", "gold", "margin"}, EVALUATION: {"score", "kl"}}


@pytest.mark.parametrize("name", ["verse", "transfer", "sft_quality/sft.steps=400"])
def test_the_summary_of_a_recorded_comparison_obeys_its_closed_schema(name):
    schema = summary_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    summary = json.loads(
        json.dumps(
            to_json(summarize(read_recorded(ROOT / "docs" / "results" / "data" / name)), "in words"), allow_nan=False
        )
    )
    validator.validate(summary)
    assert list(summary) == list(SummaryFile.model_fields)
    assert not validator.is_valid(summary | {"more": 1})
    arm = next(iter(summary["arms"].values()))
    arm["seeds"][0]["more"] = 1
    assert not validator.is_valid(summary)


def test_every_object_of_the_schema_is_closed_or_names_its_values():
    for name, model in summary_schema()["$defs"].items():
        assert model["additionalProperties"] is False, name
