"""Arms on several workers at once: who runs which job, that the numbers are those of one worker, and how all of it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pandas as pd
import pytest

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed, Stopped
from rlhf_bench.core.types import Prompt, Sampling
from rlhf_bench.experiment.scheduler import run_jobs
from rlhf_bench.experiment.shutdown import Grace, grace_period, raise_on_signals
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.rollouts import JudgedSamples, StartSamples
from tests.chaos.compare import differences
from tests.support.side_by_side import PAIRS, Made

TIMEOUT = 20.0
SAMPLING = Sampling(2, 4, 1.0, 1009)


def ready(*names):
    return [lambda name=name: name for name in names]


def worker_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("worker ")]


def none_is_left():
    deadline = time.monotonic() + TIMEOUT
    while worker_threads():
        assert time.monotonic() < deadline, worker_threads()
        time.sleep(0.01)


# Which worker runs which job


def test_two_workers_run_jobs_at_the_same_time_and_every_job_once_in_order():
    together, taken = threading.Barrier(2, timeout=TIMEOUT), []

    def run(worker, job):
        taken.append(job)
        together.wait()  # breaks unless the other worker runs a job meanwhile

    run_jobs(range(10), workers=ready("a", "b"), run=run, grace=Grace(1), end_workers=lambda: None)
    assert sorted(taken) == list(range(10)) and all(abs(job - at) <= 1 for at, job in enumerate(taken))
    none_is_left()


def test_no_worker_waits_for_one_that_finds_no_room_or_never_starts():
    taken, never = [], threading.Event()
    workers = [*ready("a"), lambda: None, lambda: never.wait() and None]
    run_jobs(
        "jobs",
        workers=workers,
        run=lambda worker, job: taken.append((worker, job)),
        grace=Grace(1),
        end_workers=lambda: None,
    )
    assert taken == [("a", job) for job in "jobs"]
    never.set()
    none_is_left()


def test_a_worker_that_starts_late_takes_its_share():
    begun, done = threading.Event(), []

    def late():
        assert begun.wait(TIMEOUT)
        return "b"

    def run(worker, job):
        begun.set()
        deadline = time.monotonic() + TIMEOUT
        while worker == "a" and job == 0 and ("b", 1) not in done and time.monotonic() < deadline:
            time.sleep(0.01)
        done.append((worker, job))

    run_jobs([0, 1], workers=[*ready("a"), late], run=run, grace=Grace(1), end_workers=lambda: None)
    assert done == [("b", 1), ("a", 0)]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "x"), RunFailed("restarts were not enough")])
def test_the_first_error_ends_all_workers_and_is_raised(error):
    ended, taken = threading.Event(), []

    def run(worker, job):
        taken.append(job)
        if worker == "b":
            raise error
        assert ended.wait(TIMEOUT)  # as a thread that waits for an engine
        raise RunFailed("the engine was ended")

    with pytest.raises(type(error)) as raised:
        run_jobs(range(10), workers=ready("a", "b"), run=run, grace=Grace(1), end_workers=ended.set)
    assert raised.value is error and sorted(taken) == [0, 1] and worker_threads() == []


@pytest.fixture
def frequent_switches():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_an_error_in_the_last_job_is_raised_also_when_another_worker_ends_at_the_same_moment(frequent_switches):
    together = threading.Barrier(2, timeout=TIMEOUT)

    def run(worker, job):
        together.wait()
        if worker == "b":
            raise RunFailed("the last job")

    for _ in range(1000):
        with pytest.raises(RunFailed, match="the last job"):
            run_jobs([0, 1], workers=ready("a", "b"), run=run, grace=Grace(1), end_workers=lambda: None)


def test_a_worker_that_cannot_be_started_ends_the_run():
    ended = threading.Event()

    def broken():
        raise RunFailed("its engine does not start")

    with pytest.raises(RunFailed, match="does not start"):
        run_jobs(
            [0],
            workers=[*ready("a"), broken],
            run=lambda *_: ended.wait(TIMEOUT),
            grace=Grace(1),
            end_workers=ended.set,
        )
    assert ended.is_set() and worker_threads() == []


# Signals


@pytest.fixture
def handlers():
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    raise_on_signals()
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_after_a_signal_no_worker_takes_another_job_and_running_jobs_end_in_their_own_time(handlers):
    together, first_saved, ended = threading.Barrier(2, timeout=TIMEOUT), threading.Event(), threading.Event()
    saved = []

    def run(worker, job):
        together.wait()
        if worker == "a":
            os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + TIMEOUT
        while grace.number is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if worker == "b":
            assert first_saved.wait(TIMEOUT)
            time.sleep(0.1)  # in which the main thread must still wait
        saved.append(worker)
        first_saved.set()
        grace.raise_if_stopped()

    with pytest.raises(Stopped, match="SIGTERM"), grace_period(TIMEOUT) as grace:
        run_jobs(range(10), workers=ready("a", "b"), run=run, grace=grace, end_workers=ended.set)
    assert saved == ["a", "b"] and not ended.is_set()
    none_is_left()


@pytest.mark.parametrize("how", ["a second signal", "the time is over"])
def test_a_signal_that_waits_no_longer_ends_the_workers(handlers, how):
    ended = threading.Event()

    def run(worker, job):
        if worker == "a":
            for _ in range(2 if how == "a second signal" else 1):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
        assert ended.wait(TIMEOUT)
        raise RunFailed("the engine was ended")

    began = time.monotonic()
    with pytest.raises(Stopped), grace_period(TIMEOUT if how == "a second signal" else 0.5) as grace:
        run_jobs(range(10), workers=ready("a", "b"), run=run, grace=grace, end_workers=ended.set)
    assert ended.is_set() and worker_threads() == [] and time.monotonic() - began < TIMEOUT / 2


def by_signal(directory, workers, number):
    """A comparison in a process of its own, which gets a signal while its first arms run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.side_by_side", directory, str(workers)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    deadline, log = time.monotonic() + 60, directory / "out" / "events.log"
    while log.read_text().count(": begins") < workers:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)  # far into their first updates, and far from their ends
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
def test_tables_and_weights_are_those_of_one_worker(alone, tmp_path, workers):
    made = Made(tmp_path, workers, seconds=0.01, never=1)
    made.run()
    assert same(made, alone) and made.tracker.ended == alone.tracker.ended
    assert all(any(name == "policy" and seed for name, _, seed in learner.loaded) for learner in made.learners)
    made.never.set()  # as the driver does when it ends all fleets
    none_is_left()


def test_what_arms_share_is_drawn_and_measured_once(alone, tmp_path):
    made = Made(tmp_path, 2, seconds=0.01)
    made.run()
    for run in (alone, made):
        seeds = [seed for pool in run.pools for seed in pool.seeds]
        # The two one-shot arms' samples, and the online arm's: each call has a seed of its own.
        assert (
            seeds.count(1009) == seeds.count(2 * 1009) == 2
            and max(Counter(s for s in seeds if s >= 1009).values()) == 2
        )
        references = [name for learner in run.learners for name, _ in learner.measured if name == "reference"]
        metrics = pd.read_parquet(run.directory / "metrics.parquet")
        fresh = ((metrics["arm"] != "offline") & (metrics["phase"] == "train")).sum()
        assert len(references) == 1 + fresh  # of the offline pairs; of every update that draws
        assert list((run.directory / "state").glob("samples-*")) == []  # they are not needed again


def test_one_workers_loss_is_recovered_without_the_other_and_changes_no_number(alone, tmp_path):
    made = Made(tmp_path, 2, seconds=0.02, loses=[1, 2])
    made.run()
    assert set(made.recovered) == {0} and same(made, alone)


def test_one_arms_failure_ends_no_other_arm(tmp_path):
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
def test_a_signal_leaves_a_checkpoint_of_every_running_arm_and_the_run_resumes(alone, tmp_path, number):
    assert by_signal(tmp_path, 2, number) == 128 + number
    states = {path.parents[1].name for path in (tmp_path / "out" / "state").glob("*/round-*/manifest.json")}
    assert len(states) == 2, states
    made = Made(tmp_path, 2)
    made.run()
    assert made.shown.getvalue().count("resuming from") == 2 and same(made, alone)


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3, 4]], ids=["the last write", "an earlier one"])
def test_records_that_cannot_be_written_end_the_run(tmp_path, seeds):
    made = Made(tmp_path, arms={"offline": PAIRS}, seeds=seeds)
    (made.directory / "parts").write_text("a file where a folder must be")
    with pytest.raises(OSError, match="parts"):
        made.run()
    none_is_left()


def test_done_arms_are_named_and_not_run_again(tmp_path):
    Made(tmp_path, 2, arms={"offline": PAIRS, "other": PAIRS}).run()
    again = Made(tmp_path, 2, arms={"offline": PAIRS, "other": PAIRS})
    again.run()
    assert again.shown.getvalue().count("already done, kept") == 4 and not any(one.stepped for one in again.learners)


# What is shared


def test_samples_of_the_base_policy_are_drawn_by_one_thread_while_the_others_wait(tmp_path, alone):
    samples, drawn = StartSamples(tmp_path, "base"), []
    (pool,) = alone.pools
    key = (1, SAMPLING, ("p",))

    def draw():
        drawn.append(threading.get_ident())
        time.sleep(0.2)
        groups, cost = pool.generate([Prompt("p", "1+1=", "2", (1, 5))], SAMPLING)
        return JudgedSamples(groups, cost, Cost(judge_queries=2))

    found = []
    threads = [threading.Thread(target=lambda: found.append(samples.once(key, draw))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert len(drawn) == 1 and len(found) == 4 and all(one == found[0] for one in found)
    samples.clear(2)
    assert samples.once(key, draw) == found[0] and len(drawn) == 1
    samples.clear(1)
    assert samples.once(key, draw) == found[0] and len(drawn) == 2


def test_threads_that_want_the_same_of_the_cache_make_it_once(tmp_path):
    cache, made, found = Cache(tmp_path), [], []

    def make(folder):
        made.append(folder)
        time.sleep(0.2)
        return {"number": len(made)}

    threads = [threading.Thread(target=lambda: found.append(cache.get("kind", "key", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert len(made) == 1 and sorted(there for _, _, there in found) == [False, True, True, True]
    assert {(path, told["number"]) for path, told, _ in found} == {(found[0][0], 1)}
