"""Against real MLflow stores: a new sqlite file, and `mlflow server` in a process of its own, which is killed, cut off
or silent at times."""

import http.client
import http.server
import json
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from rlhf_bench.core.errors import BadInput
from rlhf_bench.experiment.tracking import tracker as tracking
from rlhf_bench.experiment.tracking.mlflow_store import ARM, RUN_KEY, SEED, STATUS, check_not_deleted
from rlhf_bench.experiment.tracking.telling import NOT_FINITE, Dataset
from rlhf_bench.experiment.tracking.tracker import Tracker, how_to_open, tracking_uri
from tests.support.mlflow_server import Server
from tests.support.mlflow_store import all_delivered, history, runs

AWAY = "http://127.0.0.1:1"  # where nothing listens


@pytest.fixture
def hasty(monkeypatch):
    """Seconds become tenths: for what is tried again and again."""
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.5)


def listed_files(uri: str, run) -> list[str]:
    from mlflow.tracking import MlflowClient

    return [file.path for file in MlflowClient(tracking_uri=uri).list_artifacts(run.info.run_id)]


def track(uri: str | None, directory, steps: range, warnings: list[str]) -> list[str]:
    """A comparison of two arms; `dpo` is still open at the end."""
    tracker = Tracker(uri, "quickstart", directory, warnings.append)
    tracker.start_comparison("key-1", {"task.name": "arithmetic"}, {"commit": "abc"})
    for arm in ("ppo", "dpo"):
        tracker.start_arm(arm, 1, {"learning_rate": 1e-4}, {"method": arm})
        for step in steps:
            tracker.log(arm, 1, step, {"train/loss": 1.0 / (1 + step), "train/kl": float("nan") if step == 1 else 0.5})
    tracker.end_arm("ppo", 1, "diverged", {"data": "online"})
    report = directory / "report.html"
    report.write_text("<p>report</p>")
    tracker.artifact(report)
    tracker.artifact(report, "ppo", 1)
    return tracker.finish("interrupted")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    """A store that several tests use, each with experiments of its own: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def wait_until(true, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def begin(uri: str, experiment: str, directory: Path, warnings: list[str]) -> Tracker:
    """A comparison of one arm, in progress."""
    tracker = Tracker(uri, experiment, directory, warnings.append)
    tracker.start_comparison("key-1", {"task.name": "arithmetic"}, {})
    tracker.start_arm("dpo", 1, {"learning_rate": 1e-4}, {})
    return tracker


def log(tracker: Tracker, steps) -> None:
    for step in steps:
        tracker.log("dpo", 1, step, {"train/loss": 1.0 / (1 + step), "train/kl": 0.5})


def losses(uri: str, experiment: str) -> list[int]:
    """The steps of the one arm, in the order of the store, after a check that nothing stands twice."""
    steps = [step for step, _ in history(uri, runs(uri, experiment)["dpo · seed 1"], "train/loss")]
    assert len(set(steps)) == len(steps), f"a step stands twice: {steps}"
    return steps


@pytest.mark.parametrize("store", ["sqlite", "server"])
def test_a_comparison_stands_in_the_store_as_it_ran(store, tmp_path, monkeypatch, request):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    given = request.getfixturevalue("server").address if store == "server" else None
    directory, warnings = tmp_path / "outputs" / "quickstart", []
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)  # the store and its files must not depend on the working directory
    uri = tracking_uri(given, directory)

    assert track(given, directory, range(3), warnings) == [] and warnings == []

    found = runs(uri, "quickstart")
    parent, ppo, dpo = found["comparison"], found["ppo · seed 1"], found["dpo · seed 1"]
    assert len(found) == 3
    assert parent.data.params == {"task.name": "arithmetic"} and parent.data.tags["commit"] == "abc"
    assert ppo.data.params == {"learning_rate": "0.0001"}
    assert {ppo.data.tags["mlflow.parentRunId"], dpo.data.tags["mlflow.parentRunId"]} == {parent.info.run_id}
    assert (ppo.data.tags["method"], ppo.data.tags["data"]) == ("ppo", "online")
    assert [run.info.status for run in (parent, ppo, dpo)] == ["KILLED", "FAILED", "KILLED"]
    assert (ppo.data.tags[STATUS], dpo.data.tags[STATUS]) == ("diverged", "interrupted")
    assert history(uri, ppo, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert history(uri, ppo, "train/kl") == [(0, 0.5), (2, 0.5)]
    assert history(uri, ppo, NOT_FINITE) == [(1, 1.0)]
    assert listed_files(uri, parent) == listed_files(uri, ppo) == ["report.html"]
    assert listed_files(uri, dpo) == []
    assert sorted(path.name for path in directory.iterdir()) == ["report.html"]

    # The same comparison again, resumed before where it stopped: the same runs, and no step twice.
    assert track(given, directory, range(1, 5), warnings) == []
    again = runs(uri, "quickstart")
    assert {name: run.info.run_id for name, run in again.items()} == {n: r.info.run_id for n, r in found.items()}
    assert [step for step, _ in history(uri, again["ppo · seed 1"], "train/loss")] == [0, 1, 2, 3, 4]


def test_a_server_that_is_away_stops_nothing_and_the_next_run_brings_it_everything(tmp_path, sqlite, hasty):
    warnings: list[str] = []
    started = time.monotonic()
    (line,) = track(AWAY, tmp_path, range(2), warnings)
    assert time.monotonic() - started < 60
    assert len(warnings) == 1 and "the run continues" in warnings[0] and "tracking.jsonl" in warnings[0]
    assert line.startswith(f"12 records, which wait in {tmp_path / 'tracking.jsonl'}: the same command")

    assert track(sqlite, tmp_path, range(1, 4), warnings) == []
    ppo = runs(sqlite, "quickstart")["ppo · seed 1"]
    assert history(sqlite, ppo, "train/loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 0.25)]
    assert len(warnings) == 1 and [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_driver_never_waits_for_a_server_that_accepts_and_never_answers(tmp_path, sqlite, hasty, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    warnings: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = begin(f"http://127.0.0.1:{silent.getsockname()[1]}", "silent", tmp_path, warnings)
        wait_until(lambda: warnings)
        assert "timed out" in warnings[0]
        began = time.monotonic()
        log(tracker, range(100))
        tracker.end_arm("dpo", 1, "done", {})
        assert time.monotonic() - began < 2
        began = time.monotonic()
        (line,) = tracker.finish("done")
        assert time.monotonic() - began < 20 and line.startswith("104 records")
    tracker = begin(sqlite, "silent", tmp_path, warnings)
    tracker.end_arm("dpo", 1, "done", {})
    assert tracker.finish("done") == [] and len(warnings) == 1
    assert losses(sqlite, "silent") == list(range(100))


def test_a_server_that_is_killed_and_comes_back_has_all_once_and_in_order(server, tmp_path, hasty):
    warnings: list[str] = []
    tracker = begin(server.address, "outage", tmp_path, warnings)
    log(tracker, range(3))
    wait_until(lambda: all_delivered(tmp_path))
    server.kill()
    log(tracker, range(3, 6))
    wait_until(lambda: warnings)
    log(tracker, range(6, 9))
    server.start()
    log(tracker, range(9, 12))
    tracker.end_arm("dpo", 1, "done", {})
    assert tracker.finish("done") == [] and len(warnings) == 1
    assert losses(server.address, "outage") == list(range(12))
    assert {run.info.status for run in runs(server.address, "outage").values()} == {"FINISHED"}


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parents[2]))
from tests.engines.test_tracking import begin, log, tracking

tracking.FLUSH_SECONDS = tracking.RETRY_SECONDS = 0.1
tracker = begin(sys.argv[2], "killed", Path(sys.argv[3]), warnings := [])
log(tracker, range(6))
print("begun", flush=True)
sys.stdin.readline()
log(tracker, range(6, 9))
print("logged", flush=True)
sys.stdin.readline()
"""


def test_a_driver_that_is_killed_with_the_server_away_loses_and_repeats_nothing(server, tmp_path, hasty):
    """Its arm's run and steps 0 to 5 are delivered, 6 to 8 wait; the next driver recomputes 4 to 10."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, __file__, server.address, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert driver.stdout.readline() == "begun\n"
    wait_until(lambda: all_delivered(tmp_path))
    server.kill()
    driver.stdin.write("\n")
    driver.stdin.flush()
    assert driver.stdout.readline() == "logged\n"
    driver.kill()
    driver.wait(timeout=20)
    server.start()
    assert losses(server.address, "killed") == list(range(6))

    tracker = begin(server.address, "killed", tmp_path, warnings := [])
    log(tracker, range(4, 11))
    tracker.end_arm("dpo", 1, "done", {})
    assert tracker.finish("done") == [] and warnings == []
    assert losses(server.address, "killed") == list(range(11))
    assert not (tmp_path / "tracking.jsonl").exists()


@contextmanager
def gateway(server, first: int | None = None):
    """A gateway before the server, which carries every request on, but for the first one of each kind: that is answered with the
    status `first`, or carried on and its answer lost. Its address, and the metrics and steps that it carried."""
    kinds: set = set()
    carried: list[tuple[str, int]] = []

    class Gateway(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            metrics = json.loads(body).get("metrics", []) if body else []
            kind = (self.command, self.path.split("?")[0], bool(metrics))
            spoil, _ = kind not in kinds, kinds.add(kind)
            if spoil and first is not None:
                self.answer(first, b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "too much to do"}')
                return
            onward = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            onward.request(self.command, self.path, body, {"Content-Type": "application/json"})
            answer = onward.getresponse()
            text = answer.read()
            carried.extend((metric["key"], int(metric["step"])) for metric in metrics)
            if spoil:
                self.close_connection = True
            else:
                self.answer(answer.status, text)

        def answer(self, status, text):
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_PATCH = pass_on

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", carried
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("first", [None, 500, 429], ids=["an answer is lost", "500", "429"])
def test_a_server_with_troubles_of_its_own_has_everything_once(first, server, tmp_path, hasty, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 60.0)
    name = f"trouble {first}"
    with gateway(server, first) as (address, carried):
        tracker = begin(address, name, tmp_path, warnings := [])
        log(tracker, range(3))
        wait_until(lambda: warnings)
        log(tracker, range(3, 6))
        tracker.end_arm("dpo", 1, "done", {})
        assert tracker.finish("done") == []
    assert losses(server.address, name) == list(range(6))
    assert sorted(carried) == [(metric, step) for metric in ("train/kl", "train/loss") for step in range(6)]
    assert {run.info.status for run in runs(server.address, name).values()} == {"FINISHED"}


def test_a_file_that_another_process_holds_for_a_while_has_everything_afterwards(tmp_path, sqlite, hasty):
    tracker = begin(sqlite, "held", tmp_path, warnings := [])
    log(tracker, range(3))
    wait_until(lambda: all_delivered(tmp_path))
    with closing(sqlite3.connect(sqlite.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        log(tracker, range(3, 6))
        wait_until(lambda: warnings)
        assert "database is locked" in warnings[0]
        log(tracker, range(6, 9))
        other.execute("ROLLBACK")
    tracker.end_arm("dpo", 1, "done", {})
    assert tracker.finish("done") == [] and len(warnings) == 1
    assert losses(sqlite, "held") == list(range(9))


def test_what_was_accepted_and_not_yet_marked_is_not_logged_again(tmp_path, sqlite):
    tracker = begin(sqlite, "unmarked", tmp_path, warnings := [])
    log(tracker, range(4))
    journal = (tmp_path / "tracking.jsonl").read_bytes()  # as it is while MLflow has nothing yet
    tracker.end_arm("dpo", 1, "done", {})
    assert tracker.finish("done") == []
    (tmp_path / "tracking.jsonl").write_bytes(journal[:-10])  # killed in the middle of step 3's line

    tracker = begin(sqlite, "unmarked", tmp_path, warnings)
    log(tracker, range(6))
    log(tracker, [5])
    tracker.end_arm("dpo", 1, "done", {})
    assert tracker.finish("done") == [] and warnings == []
    assert losses(sqlite, "unmarked") == list(range(6))


def test_a_metric_that_two_calls_name_at_the_same_step_stands_there_once(tmp_path, sqlite):
    """An update and its evaluation both have the spent budget; the evaluation's numbers may come some updates later."""
    tracker = begin(sqlite, "twice", tmp_path, [])
    for step in range(3):
        tracker.log("dpo", 1, step, {"budget/fraction": step / 10})
    tracker.log("dpo", 1, 1, {"budget/fraction": 0.1, "score/in_distribution": 0.7})
    tracker.end_arm("dpo", 1, "done", {})
    assert tracker.finish("done") == []
    run = runs(sqlite, "twice")["dpo · seed 1"]
    assert history(sqlite, run, "budget/fraction") == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert history(sqlite, run, "score/in_distribution") == [(1, 0.7)]


def test_a_run_that_a_given_up_request_made_after_all_is_taken_away(tmp_path, sqlite, hasty):
    from mlflow.tracking import MlflowClient

    tracker = begin(sqlite, "double", tmp_path, [])
    log(tracker, range(2))
    wait_until(lambda: all_delivered(tmp_path))
    client = MlflowClient(tracking_uri=sqlite)
    experiment = client.get_experiment_by_name("double").experiment_id
    parent = runs(sqlite, "double")["comparison"].info.run_id
    client.create_run(experiment, tags={RUN_KEY: "key-1", ARM: ""}, run_name="comparison")
    client.create_run(experiment, tags={"mlflow.parentRunId": parent, ARM: "dpo", SEED: "1"}, run_name="dpo · seed 1")
    log(tracker, range(2, 4))
    tracker.end_arm("dpo", 1, "done", {})
    assert tracker.finish("done") == []
    assert losses(sqlite, "double") == list(range(4)) and len(runs(sqlite, "double")) == 2


def test_a_run_that_came_late_has_the_times_of_what_happened(tmp_path, sqlite, hasty):
    before = time.time() * 1000
    tracker = begin(AWAY, "late", tmp_path, [])
    tracker.end_arm("dpo", 1, "done", {})
    after = time.time() * 1000
    assert len(tracker.finish("done")) == 1
    assert begin(sqlite, "late", tmp_path, []).finish("done") == []
    info = runs(sqlite, "late")["dpo · seed 1"].info
    assert before - 1 <= info.start_time <= after


def test_neither_the_journal_nor_a_warning_has_the_stores_password(tmp_path, hasty):
    warnings: list[str] = []
    tracker = begin("http://me:s3cret@127.0.0.1:1", "secret", tmp_path, warnings)
    log(tracker, range(2))
    wait_until(lambda: warnings)
    lines = tracker.finish("done")
    assert "http://…@127.0.0.1:1" in warnings[0] and "the run continues" in warnings[0]
    text = (tmp_path / "tracking.jsonl").read_text()
    assert "train/loss" in text and "s3cret" not in text + " ".join(warnings + lines)


def test_a_store_that_comes_late_gets_everything(tmp_path, hasty):
    """Its folder cannot be made when the run starts, and can later: as with a server that starts after the job."""
    uri, warnings = f"sqlite:////{tmp_path}/blocked/mlflow.db", []
    (tmp_path / "blocked").write_text("a file where the store's folder should be")
    (tmp_path / "run").mkdir()
    tracker = Tracker(uri, "quickstart", tmp_path / "run", warnings.append)
    tracker.start_comparison("key-1", {}, {})
    tracker.start_arm("dpo", 1, {}, {})
    tracker.log("dpo", 1, 0, {"train/loss": 1.0})
    wait_until(lambda: warnings)
    (tmp_path / "blocked").unlink()
    (tmp_path / "blocked").mkdir()
    tracker.end_arm("dpo", 1, "done", {})
    assert tracker.finish("done") == []
    assert len(warnings) == 1
    assert history(uri, runs(uri, "quickstart")["dpo · seed 1"], "train/loss") == [(0, 1.0)]


def test_what_the_store_refuses_is_named_and_the_rest_is_logged(tmp_path, sqlite):
    tracker = begin(sqlite, "refused", tmp_path, warnings := [])
    log(tracker, [0])
    tracker.log("dpo", 1, 1, {"a metric's name?": 1.0})
    log(tracker, [2])
    tracker.artifact(tmp_path / "absent.html", "dpo", 1)
    tracker.log("ppo", 1, 0, {"train/loss": 1.0})  # never began
    log(tracker, [3])
    tracker.end_arm("dpo", 1, "done", {})
    lost = tracker.finish("done")
    assert [line.split(":")[0] for line in lost] == [
        "metrics of dpo · seed 1, step 1", "the file absent.html", "metrics of ppo · seed 1, step 0",
    ]  # fmt: skip
    assert len(warnings) == 1 and (tmp_path / "tracking.jsonl").exists()  # what was refused is nowhere else
    assert runs(sqlite, "refused")["dpo · seed 1"].info.status == "FINISHED"
    assert losses(sqlite, "refused") == [0, 2, 3]


DATASET = Dataset("off_policy_pairs", "0123456789abcdef", "training", '{"task": "sums"}', {"prompt": "string"}, 24)


def policy(directory: Path) -> Path:
    folder = directory / "checkpoints" / "dpo" / "seed-1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def registered(tracker: Tracker, directory: Path) -> list[str]:
    """A comparison of one arm, described, with data and a policy for the registry; what MLflow has not got of it."""
    tracker.describe("Under way.")
    tracker.uses(DATASET)
    tracker.uses(DATASET, "dpo", 1)
    tracker.describe("**dpo won**\n\n[The recipe](artifact:recipe.yaml)")
    tracker.describe("As in [the recipe](artifact:recipe.yaml)", "dpo", 1)
    tracker.register(directory.name, directory / "checkpoints" / "dpo" / "seed-1", "dpo", 1, {"score": 0.75})
    tracker.alias(directory.name, "dpo", "dpo", 1)
    tracker.alias(directory.name, "best", "dpo", 1)
    tracker.end_arm("dpo", 1, "done", {})
    return tracker.finish("done")


@pytest.mark.parametrize("store", ["sqlite", "server"])
def test_descriptions_data_and_policies_stand_there_once_however_often_they_are_sent(store, tmp_path, request):
    import mlflow
    from mlflow.tracking import MlflowClient

    found = request.getfixturevalue(store)
    uri = found.address if store == "server" else found
    (directory := tmp_path / f"policies-{store}").mkdir()
    policy(directory)
    for _ in range(2):  # the second time as after a crash: what arrived is not known
        assert registered(begin(uri, directory.name, directory, warnings := []), directory) == [] and warnings == []

    parent, child = (runs(uri, directory.name)[name] for name in ("comparison", "dpo · seed 1"))
    recipe = f"#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}/artifacts/recipe.yaml"
    assert parent.data.tags["mlflow.note.content"] == f"**dpo won**\n\n[The recipe]({recipe})"
    assert child.data.tags["mlflow.note.content"] == f"As in [the recipe]({recipe})"
    for run in (parent, child):
        (used,) = run.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest, used.tags[0].value) == (
            DATASET.name,
            DATASET.digest,
            "training",
        )
        assert mlflow.data.get_source(used.dataset).to_dict() == {"tags": {"task": "sums"}}

    client = MlflowClient(tracking_uri=uri)
    (version,) = client.search_model_versions(f"name = '{directory.name}'")
    assert version.run_id == child.info.run_id and version.tags["score"] == "0.75"
    assert sorted(client.get_model_version(directory.name, version.version).aliases) == ["best", "dpo"]
    (fetched := tmp_path / "fetched").mkdir()
    mlflow.set_tracking_uri(uri)  # as a user of the policy does
    try:
        mlflow.artifacts.download_artifacts(f"models:/{directory.name}@best", dst_path=str(fetched))
    finally:
        mlflow.set_tracking_uri(None)
    assert {path.name: path.read_bytes() for path in fetched.iterdir() if path.name != "registered_model_meta"} == {
        "config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights",
    }  # fmt: skip


def test_an_alias_moves_and_a_policy_that_is_not_there_is_named(tmp_path, sqlite):
    from mlflow.tracking import MlflowClient

    (directory := tmp_path / "moving").mkdir()
    policy(directory)
    tracker = begin(sqlite, "moving", directory, warnings := [])
    tracker.start_arm("ppo", 1, {}, {})
    for arm in ("dpo", "ppo"):
        tracker.register("moving", directory / "checkpoints" / "dpo" / "seed-1", arm, 1, {})
        tracker.alias("moving", "best", arm, 1)
    tracker.start_arm("absent", 1, {}, {})
    tracker.register("moving", directory / "checkpoints" / "absent", "absent", 1, {})
    tracker.alias("moving", "best", "absent", 1)
    lost = tracker.finish("done")
    assert [line.split(":")[0] for line in lost] == [
        "the version of moving by absent · seed 1",
        "the alias best of moving",
    ]
    assert len(warnings) == 1
    best = MlflowClient(tracking_uri=sqlite).get_model_version_by_alias("moving", "best")
    assert best.run_id == runs(sqlite, "moving")["ppo · seed 1"].info.run_id


def test_where_the_store_is_and_how_to_open_it(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    default = tracking_uri(None, tmp_path / "outputs" / "quickstart")
    assert default == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    assert how_to_open(default) == f".venv/bin/mlflow ui --backend-store-uri '{default}'"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri(None, tmp_path) == how_to_open("http://mlflow:5000") == "http://mlflow:5000"
    assert tracking_uri("sqlite:///own.db", tmp_path) == "sqlite:///own.db"
    assert how_to_open("postgresql://me:s3cret@db/x") == ".venv/bin/mlflow ui --backend-store-uri 'postgresql://…@db/x'"


def test_a_deleted_experiment_is_named_before_the_run_and_costs_nothing_once_it_is_restored(tmp_path, hasty):
    """It may be deleted while a run is under way, too."""
    from mlflow.tracking import MlflowClient

    uri, warnings = f"sqlite:///{tmp_path}/mlflow.db", list[str]()
    tracker = begin(uri, "gone", tmp_path, warnings)
    wait_until(lambda: all_delivered(tmp_path))
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("gone").experiment_id
    check_not_deleted(uri, "gone")
    client.delete_experiment(experiment)
    tracker.log("dpo", 1, 1, {"train/loss": 0.5})
    (line,) = tracker.finish("interrupted")
    assert "records, which wait in" in line and not all_delivered(tmp_path)
    assert (
        len(warnings) == 1
        and f"'gone' is deleted there; restore it (mlflow experiments restore --experiment-id {experiment})"
        in warnings[0]
    )
    with pytest.raises(
        BadInput, match=r"tracking: MLflow at sqlite:.*: the experiment 'gone' is deleted there; restore it"
    ):
        check_not_deleted(uri, "gone")
    again = begin(uri, "gone", tmp_path, warnings)
    assert (
        "records, which wait in" in again.finish("interrupted")[0]
    )  # the next run finds it deleted, and loses nothing
    client.restore_experiment(experiment)
    assert begin(uri, "gone", tmp_path, warnings).finish("done") == []
    assert history(uri, runs(uri, "gone")["dpo · seed 1"], "train/loss") == [(1, 0.5)]
