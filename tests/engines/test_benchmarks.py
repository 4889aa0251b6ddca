"""`rlhf-bench evaluate` with lm-eval itself, on tiny policies and on prompts from a file."""

import json
import math
import sys

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from rlhf_bench.cli import main as cli
from rlhf_bench.cli.options import open_cache
from rlhf_bench.results.benchmarks import read_benchmarks
from rlhf_bench.results.schema import BASE, BENCHMARKS
from tests.support.benchmarks import add_policies, complete
from tests.support.mlflow_store import history, runs
from tests.support.recorded import record

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: ["1", "2", "3"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


def main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["rlhf-bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


@pytest.fixture
def made(tmp_path, monkeypatch):
    """DIR of one arm with two finished seeds, and a folder with a task of eight sums."""
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    directory, tasks = tmp_path / "out" / "made", tmp_path / "tasks"
    directory.mkdir(parents=True)
    tasks.mkdir()
    scores = np.random.default_rng(0).uniform(size=(2, 4))
    complete(record(directory, {"dpo": (scores, scores)}, (scores[0], scores[1]), {}))
    add_policies(directory, open_cache())
    data = tasks / "sums.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}+1=", "answer": n % 3}) + "\n" for n in range(8)))
    (tasks / "sums.yaml").write_text(TASK.format(data=data))
    return directory, tasks


def test_policies_and_base_are_measured_once_and_the_numbers_reach_summary_report_and_mlflow(made, monkeypatch, capsys):
    directory, tasks = made
    asked = ("evaluate", directory, "--tasks", "sums", "--include-path", tasks)
    assert main(monkeypatch, *asked) == 0
    rows = read_benchmarks(directory)
    assert [one.policy for one in rows] == [(BASE, 0), ("dpo", 1), ("dpo", 2)]
    assert all(one.prompts == 8 and 8 * one.value == round(8 * one.value) for one in rows)
    for one in rows:  # of a share p of 8 prompts: √(p (1 − p) / 7)
        assert one.standard_error == pytest.approx(math.sqrt(one.value * (1 - one.value) / 7))
    (entry,) = json.loads((directory / "summary.json").read_text())["benchmarks"]
    assert entry["arms"]["dpo"]["mean"] == pytest.approx((rows[1].value + rows[2].value) / 2)
    assert "Outside benchmarks" in (directory / "report.html").read_text()
    uri = f"sqlite:///{directory.parent / 'mlflow.db'}"
    told = runs(uri, "made")
    assert history(uri, told["dpo · seed 2"], "benchmark/sums/acc") == [(8, rows[2].value)]
    assert history(uri, told["comparison"], "benchmark/sums/acc") == [(8, rows[0].value)]
    first = (directory / BENCHMARKS).read_bytes()
    capsys.readouterr()

    assert main(monkeypatch, *asked) == 0  # nothing is left to do
    said = capsys.readouterr().out
    assert said.count("sums was measured before") == 3 and "point" not in said  # of metrics, to MLflow
    assert (directory / BENCHMARKS).read_bytes() == first

    assert main(monkeypatch, *asked, "--limit", 3, "--arm", "base") == 0  # other prompts: a number of its own
    assert [(one.policy, one.prompts) for one in read_benchmarks(directory)][3:] == [((BASE, 0), 3)]
    data = tasks / "sums.jsonl"
    data.write_text(data.read_text().replace("7+1=", "8+1="))
    assert main(monkeypatch, *asked, "--arm", "dpo", "--seed", 2) == 0  # and so are prompts that have changed
    assert [one.policy for one in read_benchmarks(directory)][4:] == [("dpo", 2)]


def test_all_that_is_wrong_is_said_at_once_before_a_policy_is_loaded(made, monkeypatch, capsys):
    directory, tasks = made
    (tasks / "gone.yaml").write_text(TASK.format(data=tasks / "gone.jsonl").replace("task: sums", "task: gone"))
    (tasks / "codes.yaml").write_text(
        TASK.format(data=tasks / "sums.jsonl").replace("task: sums", "task: codes\nunsafe_code: true")
    )
    for file in (directory / "checkpoints" / "dpo" / "seed-1").glob("*.safetensors"):
        file.unlink()
    (file,) = (directory / "checkpoints" / "dpo" / "seed-2").glob("*.safetensors")
    file.write_bytes((next(open_cache().folder.glob("base-*")) / "model.safetensors").read_bytes())
    told = ("--tasks", "sumz,gone,codes,sums", "--include-path", tasks)
    assert main(monkeypatch, "evaluate", directory, *told) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for line, words in zip(
        lines,
        ("policy of dpo, seed 1 is not there", "other weights than those with which dpo, seed 2", "no task sumz; near it are ",
         "gone cannot be loaded", "codes would run code"),
        strict=True,
    ):  # fmt: skip
        assert words in line
    assert not (directory / BENCHMARKS).exists()
