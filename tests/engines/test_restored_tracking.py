"""A store that was set back to an older copy of itself, or is another one: what it lacks of a run is made anew from DIR's records."""

import json

import numpy as np
import pytest

from rlhf_bench.cli import main as cli
from rlhf_bench.core.contests import Contest, Judged
from rlhf_bench.core.types import EvalPoint, Evaluation, PromptScore, SplitResult
from rlhf_bench.experiment.tracking.metrics import evaluation_metrics, update_metrics
from rlhf_bench.experiment.tracking.recorded import Records
from rlhf_bench.experiment.tracking.tracker import Tracker
from rlhf_bench.results.judged import Place, judging_name, write_judged
from rlhf_bench.results.schema import METRICS_TABLE, TABLES
from rlhf_bench.results.store import ArmRecords, as_frame
from tests.engines.test_tracking import hasty, wait_until
from tests.support.mlflow_server import Server
from tests.support.mlflow_store import all_delivered, history, runs
from tests.support.recorded import record

__all__ = ["hasty"]
ARM, SEED, UPDATES = "dpo", 1, 12
TOLD = (
    "train/loss",
    "train/margin",
    "by_tokens/train/margin",
    "budget/flops",
    "evaluation/kl",
    "score/in_distribution",
)
"""A metric of each group."""


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.kill()


class Recorded:
    """A comparison of one arm, whose loop tells records and tracker alike."""

    def __init__(self, directory, name):
        scores = np.array([[0.5, 0.75]])
        record(directory, {ARM: (scores, scores)}, (scores[0], scores[0]), {}, name=name, seeds=[SEED])
        with (directory / "recipe.yaml").open("a") as recipe:
            print("arms: {dpo: {method: dpo}}", file=recipe)
        self.directory, self.name = directory, name
        self.records = ArmRecords(directory, ARM, "dpo", "offline", SEED)
        results = json.loads((directory / "results.json").read_text())
        results |= {"run_key": "0123456789ab", "commit": "abc", "machine": "here"}
        results["arms"][ARM]["seeds"][0]["updates"] = UPDATES
        (directory / "results.json").write_text(json.dumps(results))

    def begin(self, uri):
        tracker = Tracker(uri, self.name, self.directory, print)
        tracker.start_comparison("0123456789ab", {"task": "sums"}, {"commit": "abc"})
        tracker.start_arm(ARM, SEED, {"arm/method": "dpo"}, {"method": "dpo"})
        return tracker

    def go(self, tracker, updates):
        for update in updates:
            spent = {"flops": 10.0 * update, "generated_tokens": 0.0, "trained_tokens": 7.0 * update}
            numbers, fraction = {"loss": 1 / update, "margin": 0.1 * update}, update / UPDATES
            self.records.update(update, numbers, spent, fraction, 0.5 * update)
            told = list(update_metrics(update, numbers, spent, fraction))
            if update % 4 == 0:
                split = SplitResult((PromptScore("p", 0.5, 0.75),), {}, 3.0, (), 0.0)
                evaluation = Evaluation({"in_distribution": split}, {"kl": 0.01 * update}, {}, 0.0)
                point = EvalPoint(fraction, update, spent, fraction, 0.5 * update)
                self.records.evaluated(point, evaluation, {})
                told += evaluation_metrics(point, evaluation)
            for step, metrics in told:
                tracker.log(ARM, SEED, step, metrics)

    def end(self, tracker):
        as_frame(self.records.metrics, TABLES["metrics"]).to_parquet(self.directory / METRICS_TABLE.file)
        tracker.end_arm(ARM, SEED, "done", {"updates": str(UPDATES)})
        tracker.complete(ARM, SEED)
        return tracker.finish("done")


def stands(uri, name):
    """All that a reader sees of the arm's metrics."""
    found = runs(uri, name)
    (run,) = [run for title, run in found.items() if title != "comparison"]
    assert {one.info.status for one in found.values()} == {"FINISHED"}
    return {metric: dict(history(uri, run, metric)) for metric in run.data.metrics}


def test_what_a_store_has_lost_is_sent_again(server, tmp_path, hasty):
    """The copy that the store is set back to knows one run, and the first third of its steps; of another it knows nothing, not even
    its experiment. Nothing was down but for a moment."""
    places = {name: tmp_path / name for name in ("whole", "lost", "unknown")}
    for place in places.values():
        place.mkdir()
    made = {name: Recorded(place, name) for name, place in places.items()}
    tracker = made["whole"].begin(server.address)
    made["whole"].go(tracker, range(1, UPDATES + 1))
    assert made["whole"].end(tracker) == []

    trackers = {"lost": made["lost"].begin(server.address)}
    made["lost"].go(trackers["lost"], range(1, 5))
    wait_until(lambda: all_delivered(places["lost"]))
    server.copy_store(tmp_path / "copy.db")
    made["lost"].go(trackers["lost"], range(5, 9))
    trackers["unknown"] = made["unknown"].begin(server.address)
    made["unknown"].go(trackers["unknown"], range(1, 9))
    wait_until(lambda: all_delivered(places["lost"]) and all_delivered(places["unknown"]))
    server.set_back(tmp_path / "copy.db")

    expected = stands(server.address, "whole")
    assert all(len(expected[name]) == (3 if "kl" in name or "score" in name else UPDATES) for name in TOLD), expected
    for name, tracker in trackers.items():
        made[name].go(tracker, range(9, UPDATES + 1))
        assert made[name].end(tracker) == []
        assert not (places[name] / "tracking.jsonl").exists()
        assert stands(server.address, name) == expected, name


def test_a_directory_that_was_moved_has_its_whole_history_beside_it_again(tmp_path, hasty, monkeypatch):
    """Where no store is named, it lies beside DIR: a moved DIR that goes on finds none there."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before, after = tmp_path / "before" / "run", tmp_path / "after" / "run"
    before.mkdir(parents=True)
    after.parent.mkdir()
    moved = Recorded(before, "moved")
    tracker = moved.begin(None)
    moved.go(tracker, range(1, 7))
    assert tracker.finish("interrupted") == []
    before.rename(after)
    moved.directory = after
    tracker = moved.begin(None)
    moved.go(tracker, range(7, UPDATES + 1))
    assert moved.end(tracker) == []
    found = stands(f"sqlite:///{after.parent}/mlflow.db", "moved")
    assert all(len(found[name]) == (3 if "kl" in name or "score" in name else UPDATES) for name in TOLD), found


def test_a_finished_run_is_sent_to_another_store_once(tmp_path, hasty, capsys, monkeypatch):
    import mlflow  # before us, as other libraries do: its logging is set up by then  # noqa: F401

    (directory := tmp_path / "run").mkdir()
    done = Recorded(directory, "sent")
    own, other = f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{tmp_path}/other.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = done.begin(own)
    done.go(tracker, range(1, UPDATES + 1))
    assert done.end(tracker) == []

    def track(*more):
        monkeypatch.setattr("sys.argv", ["rlhf-bench", "track", str(directory), *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out.splitlines() + shown.err.splitlines()

    code, (line,) = track("--uri", other)
    assert code == 0 and line.startswith(f"MLflow at {other}: sent 2 runs, ") and "points of metrics, " in line
    assert stands(other, "sent") == stands(own, "sent")
    again = track("--uri", other)
    assert again == (0, [f"MLflow at {other}: has all of it already, nothing was sent"])
    assert stands(other, "sent") == stands(own, "sent")
    parent = runs(other, "sent")["comparison"]
    assert parent.data.params["compute/column"] == "flops" and parent.data.tags["commit"] == "abc"

    code, lines = track("--uri", "http://127.0.0.1:1")
    assert code == 1 and lines[-1].startswith("failed: MLflow at http://127.0.0.1:1 cannot be reached: ")


def test_what_tables_hold_is_what_the_loop_told(tmp_path):
    made, told = Recorded(tmp_path, "told"), []
    made.go(
        type("Told", (), {"log": lambda self, arm, seed, step, metrics: told.append((step, metrics))})(),
        range(1, UPDATES + 1),
    )
    as_frame(made.records.metrics, TABLES["metrics"]).to_parquet(tmp_path / METRICS_TABLE.file)
    points = Records(tmp_path).run(ARM, SEED).points
    assert [(point.step, dict(point.metrics)) for point in points] == [
        (step, pytest.approx(metrics)) for step, metrics in told
    ]
    assert [point.milliseconds for point in points] == sorted(point.milliseconds for point in points)


def test_the_win_rates_of_each_seed_are_told_of_its_run(tmp_path):
    made = Recorded(tmp_path, "judged")
    made.go(type("Deaf", (), {"log": lambda self, *told: None})(), range(1, 2))
    as_frame(made.records.metrics, TABLES["metrics"]).to_parquet(tmp_path / METRICS_TABLE.file)
    own = dict.fromkeys(("endpoint", "prompt_sha256"), "x") | {"constrained": False, "max_tokens": 8, "costs": {}}
    about = own | {"model": "org/judge:1", "against": "base"}
    verdicts = [Judged("first", "second"), Judged("tie", "second"), Judged("first", None)]
    found = {Place(ARM, SEED, f"p{i}"): one for i, one in enumerate(verdicts)}
    found[Place(ARM, SEED + 1, "p0")] = Judged("second", "first")
    write_judged(tmp_path, about, {place: Contest("q", "a", "b") for place in found}, found)
    points = [(p.step, dict(p.metrics)) for p in Records(tmp_path).run(ARM, SEED).points]
    assert points[-1:] == [(2, {f"judge/org_judge_1/{judging_name(about)}/win_rate": (1.0 + 0.75) / 2})]
