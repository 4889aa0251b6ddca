"""ArmRunner on several teams at once: who works on what, that the numbers are those of one team, and how all of it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed, Stopped
from rlhf_bench.core.types import Prompt, Sampling
from rlhf_bench.experiment.scheduler import run_jobs
from rlhf_bench.experiment.shutdown import Grace, grace, raise_on_signals
from rlhf_bench.experiment.timing import Occupancy
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.rollouts import Judged, StartSamples
from tests.chaos.compare import differences
from tests.support.side_by_side import PAIRS, Made

PATIENCE = 20.0
SAMPLING = Sampling(2, 4, 1.0, 1009)


def ready(*names):
    return [lambda name=name: name for name in names]


def threads_of_teams():
    return [thread for thread in threading.enumerate() if thread.name.startswith("team ")]


def none_is_left():
    deadline = time.monotonic() + PATIENCE
    while threads_of_teams():
        assert time.monotonic() < deadline, threads_of_teams()
        time.sleep(0.01)


# Who takes what


def test_two_teams_are_at_work_at_the_same_time_and_every_piece_is_done_once_in_order():
    together, taken = threading.Barrier(2, timeout=PATIENCE), []

    def work(worker, piece):
        taken.append(piece)
        together.wait()  # breaks where the other team is not at work meanwhile

    run_jobs(range(10), ready("a", "b"), work, Grace(1), lambda: None)
    assert sorted(taken) == list(range(10)) and all(abs(piece - at) <= 1 for at, piece in enumerate(taken))
    none_is_left()


def test_a_team_that_finds_no_room_or_never_comes_keeps_nobody_waiting():
    taken, never = [], threading.Event()
    workers = [*ready("a"), lambda: None, lambda: never.wait() and None]
    run_jobs("pieces", workers, lambda worker, piece: taken.append((worker, piece)), Grace(1), lambda: None)
    assert taken == [("a", piece) for piece in "pieces"]
    never.set()
    none_is_left()


def test_a_team_that_comes_late_takes_its_share():
    begun, done = threading.Event(), []

    def late():
        assert begun.wait(PATIENCE)
        return "b"

    def work(worker, piece):
        begun.set()
        deadline = time.monotonic() + PATIENCE
        while worker == "a" and piece == 0 and ("b", 1) not in done and time.monotonic() < deadline:
            time.sleep(0.01)
        done.append((worker, piece))

    run_jobs([0, 1], [*ready("a"), late], work, Grace(1), lambda: None)
    assert done == [("b", 1), ("a", 0)]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "x"), RunFailed("restarts were not enough")])
def test_the_first_error_ends_all_teams_and_is_raised(error):
    ended, taken = threading.Event(), []

    def work(worker, piece):
        taken.append(piece)
        if worker == "b":
            raise error
        assert ended.wait(PATIENCE)  # as who waits for an engine
        raise RunFailed("the engine was ended")

    with pytest.raises(type(error)) as raised:
        run_jobs(range(10), ready("a", "b"), work, Grace(1), ended.set)
    assert raised.value is error and sorted(taken) == [0, 1] and threads_of_teams() == []


def test_a_team_that_cannot_be_started_ends_the_run():
    ended = threading.Event()

    def broken():
        raise RunFailed("its engine does not start")

    with pytest.raises(RunFailed, match="does not start"):
        run_jobs([0], [*ready("a"), broken], lambda *_: ended.wait(PATIENCE), Grace(1), ended.set)
    assert ended.is_set() and threads_of_teams() == []


# Signals


@pytest.fixture
def handlers():
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    raise_on_signals()
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_after_a_signal_no_team_takes_another_piece_and_those_at_work_end_in_their_own_time(handlers):
    together, ended, saved = threading.Barrier(2, timeout=PATIENCE), threading.Event(), []

    def work(worker, piece):
        together.wait()
        if worker == "a":
            os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while patience.number is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3 if worker == "b" else 0.0)
        saved.append(worker)
        patience.raise_if_stopped()

    with pytest.raises(Stopped, match="SIGTERM"), grace(PATIENCE) as patience:
        run_jobs(range(10), ready("a", "b"), work, patience, ended.set)
    assert saved == ["a", "b"] and not ended.is_set()
    none_is_left()


@pytest.mark.parametrize("how", ["a second signal", "the time is over"])
def test_a_signal_that_waits_no_longer_ends_the_teams(handlers, how):
    ended = threading.Event()

    def work(worker, piece):
        if worker == "a":
            for _ in range(2 if how == "a second signal" else 1):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
        assert ended.wait(PATIENCE)
        raise RunFailed("the engine was ended")

    began = time.monotonic()
    with pytest.raises(Stopped), grace(PATIENCE if how == "a second signal" else 0.5) as patience:
        run_jobs(range(10), ready("a", "b"), work, patience, ended.set)
    assert ended.is_set() and threads_of_teams() == [] and time.monotonic() - began < PATIENCE / 2


def by_signal(directory, workers, number):
    """A comparison in a process of its own, which gets a signal while its first arms are under way."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.side_by_side", directory, str(workers)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    deadline, log = time.monotonic() + 60, directory / "out" / "events.log"
    while log.read_text().count(": begins") < workers or "at 50%" not in log.read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


# The same numbers


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    made = Made(tmp_path_factory.mktemp("alone"))
    made.run()
    return made


def same(made, other):
    assert differences(made.directory, other.directory, []) == []
    for arm in made.settings.arms:
        for seed in (1, 2):
            place = f"checkpoints/{arm}/seed-{seed}/model.safetensors"
            assert (made.directory / place).read_bytes() == (other.directory / place).read_bytes(), place
    return True


@pytest.mark.parametrize("workers", [2, 3])
def test_tables_and_weights_are_those_of_one_team(alone, tmp_path, workers):
    made = Made(tmp_path, workers, seconds=0.01, never=1)
    made.run()
    assert same(made, alone) and made.tracker.ended == alone.tracker.ended
    assert all(any(name == "policy" and seed for name, _, seed in learner.loaded) for learner in made.learners)
    made.never.set()  # as the driver does, when it ends all fleets
    none_is_left()


def test_what_arms_share_is_drawn_and_measured_once(alone, tmp_path):
    made = Made(tmp_path, 2, seconds=0.01)
    made.run()
    for run in (alone, made):
        seeds = [seed for pool in run.pools for seed in pool.seeds]
        assert (
            seeds.count(1009) == seeds.count(2 * 1009) == 2
        )  # the two one-shot arms' samples, and the online arm's first
        references = [name for learner in run.learners for name, _ in learner.measured if name == "reference"]
        metrics = pd.read_parquet(run.directory / "metrics.parquet")
        online = ((metrics["arm"] == "online") & (metrics["phase"] == "train")).sum()
        # Of the offline pairs; of the one-shot ones, which the scripted engines make alike for both seeds; of every update.
        assert len(references) == 1 + 1 + online
        assert list((run.directory / "state").glob("samples-*")) == []  # nobody will ask for them again


def test_one_teams_loss_is_recovered_without_the_other_and_changes_no_number(alone, tmp_path):
    made = Made(tmp_path, 2, seconds=0.02, loses=[1, 2])
    made.run()
    assert set(made.recovered) == {0} and same(made, alone)


def test_one_arms_failure_is_its_own_whichever_team_it_is_on(tmp_path):
    far = {**PAIRS, "edit_distance": [0.999, 1.0]}
    made = Made(tmp_path, 2, arms={"far": far, "offline": PAIRS, "further": far})
    with pytest.raises(RunFailed, match=r"^far · seed 1 \(and 3 more\): edit_distance: .*; the other arms are done: "):
        made.run()
    metrics = pd.read_parquet(made.directory / "metrics.parquet")
    assert set(zip(metrics["arm"], metrics["seed"], strict=True)) == {("offline", 1), ("offline", 2)}
    assert made.tracker.ended == {
        (arm, seed): "done" if arm == "offline" else "failed" for arm in made.settings.arms for seed in (1, 2)
    }
    recorded = json.loads((made.directory / "results.json").read_text())["arms"]
    statuses = {arm: [(s["seed"], s["status"]) for s in found["seeds"]] for arm, found in recorded.items()}
    lost = [(1, "failed"), (2, "failed")]
    assert statuses == {"far": lost, "offline": [(1, "done"), (2, "done")], "further": lost}
    assert "edit_distance" in recorded["far"]["seeds"][0]["cause"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_leaves_a_checkpoint_of_every_arm_under_way_and_the_run_goes_on(alone, tmp_path, number):
    assert by_signal(tmp_path, 2, number) == 128 + number
    states = {path.parents[1].name for path in (tmp_path / "out" / "state").glob("*/round-*/manifest.json")}
    assert len(states) == 2, states
    made = Made(tmp_path, 2)
    made.run()
    assert made.shown.getvalue().count("going on from") == 2 and same(made, alone)


def test_the_kept_are_said_and_not_run_again(tmp_path):
    Made(tmp_path, 2, arms={"offline": PAIRS, "other": PAIRS}).run()
    again = Made(tmp_path, 2, arms={"offline": PAIRS, "other": PAIRS})
    again.run()
    assert again.shown.getvalue().count("already done, kept") == 4 and not any(one.stepped for one in again.learners)


# What is shared


def test_samples_of_the_start_policy_are_drawn_by_one_while_the_other_waits(tmp_path, alone):
    samples, drawn = StartSamples(tmp_path, "base"), []
    (pool,) = alone.pools
    key = (1, SAMPLING, ("p",))

    def draw():
        drawn.append(threading.get_ident())
        time.sleep(0.2)
        groups, cost = pool.generate([Prompt("p", "1+1=", "2", (1, 5))], SAMPLING)
        return Judged(groups, cost, Cost(judge_queries=2))

    found = []
    threads = [threading.Thread(target=lambda: found.append(samples.once(key, draw))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(drawn) == 1 and len(found) == 4 and all(one == found[0] for one in found)
    samples.clear(2)
    assert samples.once(key, draw) == found[0] and len(drawn) == 1
    samples.clear(1)
    assert samples.once(key, draw) == found[0] and len(drawn) == 2


def test_two_threads_that_want_the_same_of_the_cache_make_it_once(tmp_path):
    cache, made, found = Cache(tmp_path), [], []

    def make(folder):
        made.append(folder)
        time.sleep(0.2)
        return {"number": len(made)}

    threads = [threading.Thread(target=lambda: found.append(cache.get("kind", "key", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(made) == 1 and sorted(there for _, _, there in found) == [False, True, True, True]
    assert {(path, told["number"]) for path, told, _ in found} == {(found[0][0], 1)}


def test_the_drivers_share_counts_a_fleet_only_while_it_has_an_arm():
    """Two fleets: one at work for 3 of its 4 seconds, the other for all of its 2: the driver's is 1 of 6."""
    one, other = EngineTime(), EngineTime()
    now = time.perf_counter()
    one.record_background("learning", "learner 0", now - 9, 3.0)
    other.record_background("learning", "learner 0", now - 8, 2.0)
    stretches = [Occupancy(one, now - 9, now - 5), Occupancy(other, now - 8, now - 6)]
    assert sum(s.seconds for s in stretches) == pytest.approx(6) and sum(s.idle for s in stretches) == pytest.approx(1)
