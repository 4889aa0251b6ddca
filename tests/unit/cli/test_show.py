"""`rlhf-bench ls` and `rlhf-bench show`: what is where, how far it is, and how it ended."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlhf_bench.cli import main as cli
from rlhf_bench.core.lock import LOCK, Owner
from rlhf_bench.report import write_report
from rlhf_bench.results.schema import PARTS, RECIPE, RESULT, RESULTS, RUN_KEY
from tests.support.recorded import record

PROMPTS = 40
BASE = (np.full(PROMPTS, 0.4), np.full(PROMPTS, 0.4))


def scores(*means):
    """Of a seed for each mean: half of the prompts above it by 0.1, half below."""
    return np.array([mean + np.tile([0.1, -0.1], PROMPTS // 2) for mean in means])


def finished(directory, **recipe):
    directory.mkdir(parents=True)
    arms = {"dpo": (scores(0.3, 0.32, 0.31),) * 2, "ppo": (scores(0.6, 0.61, 0.62),) * 2}
    recipe = {"arms": {"dpo": {}, "ppo": {}}, "seeds": [1, 2, 3], "name": directory.name} | recipe
    return record(directory, arms, BASE, {}, **recipe)


def command(capsys, *arguments):
    code = cli.exit_code(lambda: cli.app(list(map(str, arguments)), standalone_mode=False))
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err.splitlines()


def row(lines, name):
    (found,) = [line.split() for line in lines if line.strip().startswith(f"{name} ")]
    return " ".join(found[1:])


def state_of_files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_ls_says_where_how_far_how_it_ended_and_who_leads(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_report(finished(tmp_path / "outputs" / "whole"))
    finished(tmp_path / "outputs" / "series" / "beta=0.1" / "low", seeds=[1, 2, 3, 4])
    failed = finished(tmp_path / "outputs" / "with_failed")
    results = json.loads((failed / RESULTS).read_text())
    results["arms"]["dpo"]["seeds"][0] |= {"status": "failed"}
    (failed / RESULTS).write_text(json.dumps(results))
    begun = tmp_path / "outputs" / "begun"
    (begun / PARTS / "dpo-seed1").mkdir(parents=True)
    (begun / PARTS / "dpo-seed1" / RESULT).write_text("{}")
    (begun / RECIPE).write_text(yaml.safe_dump({"name": "mine", "arms": {"dpo": {}, "ppo": {}}, "seeds": [1]}))
    (begun / RUN_KEY).write_text("0" * 12)
    (begun / LOCK).write_text(json.dumps(asdict(Owner.here())))
    (tmp_path / "outputs" / RECIPE).write_text("arms: {}")  # of a user, beside what it writes
    old = tmp_path / "outputs" / "old"
    old.mkdir()
    (old / RECIPE).write_text("one: 1")
    (old / RUN_KEY).write_text("1" * 12)

    before = state_of_files(tmp_path)
    code, out, err = command(capsys, "ls")
    assert code == 0 and not err and state_of_files(tmp_path) == before
    assert out[0].startswith("5 comparisons below outputs")
    assert row(out, "outputs/whole").startswith("whole 6 of 6 ppo 0.610 ") and row(out, "outputs/whole").endswith(
        "done"
    )
    low = row(out, "outputs/series/beta=0.1/low")
    assert "6 of 8" in low and low.endswith("stopped: the same `rlhf-bench run` goes on")
    assert row(out, "outputs/with_failed").endswith("done, 1 of them failed or diverged")
    assert "mine 1 of 2" in row(out, "outputs/begun") and f"at work: process {os.getpid()} on" in row(
        out, "outputs/begun"
    )
    assert row(out, "outputs/old").endswith("its recipe.yaml is no recipe of this version")


def test_who_is_gone_or_has_given_its_number_to_another_is_not_at_work(tmp_path, capsys):
    directory = finished(tmp_path / "run", seeds=[1, 2, 3, 4])
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = asdict(Owner.here())
    for owner, at_work in (
        (here, True),
        (here | {"process": gone.pid}, False),
        (here | {"since": "2020-01-01T00:00:00+00:00"}, False),  # this process is younger
        (here | {"host": "elsewhere", "process": gone.pid}, True),  # not to be told from here
    ):
        (directory / LOCK).write_text(json.dumps(owner))
        _, out, _ = command(capsys, "ls", tmp_path)
        (line,) = [line for line in out if "6 of 8" in line]
        assert ("at work" in line) == at_work and ("stopped" in line) != at_work, owner


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_comparisons_is_named(there, tmp_path, capsys):
    code, out, (line,) = command(capsys, "ls", tmp_path if there else tmp_path / "nowhere")
    assert code == 2 and not out and str(tmp_path) in line
    assert ("holds no comparison" if there else "no such folder") in line


def test_show_says_what_report_does_and_draws_the_scores(tmp_path, capsys):
    directory = finished(tmp_path / "run")
    before = state_of_files(directory)
    code, shown, err = command(capsys, "show", directory)
    assert code == 0 and not err and state_of_files(directory) == before
    _, reported, _ = command(capsys, "report", directory)
    assert shown[: len(reported) - 2] == reported[:-2] and reported[-1].startswith("report: ")
    assert any(line.startswith("At equal compute (1 TFLOP per seed), ppo has the highest mean score") for line in shown)
    ppo, dpo, axis = shown[-3:]
    assert ppo.startswith("ppo") and ppo.endswith("0.610") and dpo.startswith("dpo") and dpo.endswith("0.310")
    assert dpo.index("●") < dpo.index("┆") == ppo.index("┆") < ppo.index("●")
    low, high = map(float, axis.split())
    wide = ppo.rindex("0.610") - len("  ") - axis.index(axis.split()[0])
    for line, mean in ((ppo, 0.61), (dpo, 0.31)):  # where a ruler finds it
        at = (line.index("●") - axis.index(axis.split()[0])) / (wide - 1)
        assert low + at * (high - low) == pytest.approx(mean, abs=(high - low) / wide)
    assert ppo.index("├") < ppo.index("●") < ppo.index("┤")


def test_of_a_run_that_is_not_done_the_arms_are_shown_that_are(tmp_path, capsys):
    directory = finished(tmp_path / "run", seeds=[1, 2, 3, 4])
    code, out, _ = command(capsys, "show", directory)
    assert code == 0 and out[-1] == "6 of 8 runs have ended; stopped: the same `rlhf-bench run` goes on"
    (directory / RESULTS).unlink()
    code, out, (line,) = command(capsys, "show", directory)
    assert code == 2 and not out and "no arm has ended yet, 0 of 8 runs" in line


def test_a_directory_that_holds_none_is_refused(tmp_path, capsys):
    code, out, err = command(capsys, "show", Path(tmp_path))
    assert code == 2 and not out and any(RECIPE in line and "no such file" in line for line in err)
