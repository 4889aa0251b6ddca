"""`load_results`: what notebooks get, and the example notebook."""

import json
import math
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import rlhf_bench
from rlhf_bench import load_results
from rlhf_bench.core.errors import BadInput
from rlhf_bench.report import write_report
from tests.support.recorded import record

NOTEBOOK = Path(__file__).parents[3] / "docs" / "notebooks" / "results.ipynb"
FRAMES = ("arms", "finals", "curves", "updates", "scores", "pairs", "samples", "ledger", "verdicts")
BASE = (np.full(8, 0.25), np.full(8, 0.5))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    def seeds(*means):
        return np.array([np.full(8, mean) + np.tile([0.1, -0.1], 4) for mean in means])

    arms = {"low": (seeds(0.2, 0.3),) * 2, "high": (seeds(0.7, 0.9),) * 2}
    return record(tmp_path_factory.mktemp("made"), arms, BASE, {})


def test_frames_are_tidy_and_say_what_was_recorded(directory):
    found = load_results(directory)
    for name in FRAMES:
        frame = getattr(found, name)
        assert isinstance(frame.index, pd.RangeIndex) and frame.columns.is_unique, name
    assert list(found.arms["arm"]) == ["high", "low"] and list(found.arms["score"]) == pytest.approx([0.8, 0.25])
    assert (found.arms["score_low"] <= found.arms["score"]).all() and (
        found.arms["score"] <= found.arms["score_high"]
    ).all()
    assert list(found.finals["seed"]) == [1, 2, 1, 2] and list(found.finals["status"]) == ["done"] * 4
    assert found.finals.set_index(["arm", "seed"]).loc[("high", 2), "score"] == pytest.approx(0.9)
    last = found.scores[found.scores["mark"] == 1.0].groupby(["arm", "seed"])["score"].mean()
    assert last.to_dict() == pytest.approx({("low", 1): 0.2, ("low", 2): 0.3, ("high", 1): 0.7, ("high", 2): 0.9})
    assert set(found.curves["mark"]) == {0.0, 1.0} and found.curves["phase"].eq("evaluation").all()


def test_verdicts_are_those_of_summary_and_report(directory):
    found, summary = load_results(str(directory)), write_report(directory)
    written = json.loads((directory / "summary.json").read_text())
    assert found.verdict == written["verdict"]["text"] and found.name == summary.name
    assert len(found.verdicts) == 3  # of two arms with each other, and of each with the base policy
    (between,) = found.verdicts[found.verdicts["against"] == "low"].to_dict("records")
    assert between["arm"] == "high" and between["difference"] == pytest.approx(0.55)
    assert not between["settled"] and math.isnan(between["p_holm"])  # two seeds, and a test needs three


def test_a_directory_that_holds_none_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        load_results(tmp_path)


def test_the_example_notebook_runs_as_it_stands(monkeypatch):
    monkeypatch.chdir(NOTEBOOK.parent)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    with plt.rc_context({"backend": "Agg"}):
        names = {}
        for one in codes:
            exec(compile(one, NOTEBOOK.name, "exec"), names)
        plt.close("all")
    assert not any(cell.get("outputs") for cell in cells)  # numbers in it would grow old
    assert len(names["likelihood"]) > 1 and len(names["by_prompt"]) > 1
    assert all(" rlhf_bench." not in one for one in codes)  # no private imports


def test_what_python_finds_in_the_package():
    assert set(rlhf_bench.__all__) <= set(dir(rlhf_bench)) | {"Results", "load_results"}
    assert isinstance(load_results(NOTEBOOK.parent / "../results/data/quickstart"), rlhf_bench.Results)
    with pytest.raises(AttributeError, match="nothing_there"):
        _ = rlhf_bench.nothing_there
    loaded = "import sys, rlhf_bench; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded]).returncode == 0  # the command line need not wait for it
