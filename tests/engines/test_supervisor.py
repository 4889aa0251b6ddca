"""Actors that die, freeze and run out of memory are replaced. They are real processes, small enough for many of them."""

import os
import signal
import time
from pathlib import Path

import pytest

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.errors import RunFailed, StateLost
from rlhf_bench.core.types import Prompt, Sampling
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.recipe import RolloutPlacement
from rlhf_bench.recipe.sections import Reliability


def echo_class():
    from actors.supervision.heartbeat import Heartbeat

    class Echo(Heartbeat):
        def pid(self):
            return os.getpid()

        def sleep(self, seconds):
            time.sleep(seconds)
            return "slept"

        def fail(self, name):
            raise {"memory": MemoryError(), "other": ValueError("no such thing")}[name]

    return Echo


@pytest.fixture
def supervisor(cluster):
    """begin(**settings) -> a supervisor, and what it has said."""
    from ray.util.placement_group import placement_group, remove_placement_group

    from actors.supervision.supervisor import Supervisor

    group, made = placement_group([{"CPU": 0.01}]), []

    def begin(room=60, **settings):
        said = []
        made.append(Supervisor(Reliability(hang_seconds=6, **settings), group, room, said.append))
        return made[-1], said

    yield begin
    for one in made:
        one.stop()
    remove_placement_group(group)


def start(supervisor, cluster, cls, name="echo 0", *arguments):
    return supervisor.start(name, lambda: cluster.remote(cls).options(num_cpus=0).remote(*arguments))


def what_raises(cluster, ref, seconds=60):
    try:
        cluster.get(ref, timeout=seconds)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_frozen_actor_is_ended_and_another_one_takes_its_place(supervisor, cluster):
    from actors.supervision.failures import failure_reason

    supervisor, said = supervisor()
    actor = start(supervisor, cluster, echo_class())
    pid = cluster.get(actor.pid.remote())
    time.sleep(2)  # it has been heard of
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    error = what_raises(cluster, actor.sleep.remote(0))
    assert 2 < time.monotonic() - began < 40
    assert "no sign of life" in said[0]
    (other,) = supervisor.replace(failure_reason(error), "echo 0")
    assert cluster.get(other.pid.remote()) != pid and supervisor.actors == {"echo 0": other}
    assert [r.names for r in supervisor.restarts] == [("echo 0",)]


def test_a_pause_of_all_processes_counts_as_silence_of_none(supervisor, cluster):
    """As of a laptop that was suspended: the monitor hears the heartbeats again only after it has been asked."""
    supervisor, said = supervisor()
    actor = start(supervisor, cluster, echo_class())
    pids = [
        cluster.get(actor.pid.remote()),
        cluster.get(supervisor._monitor.__ray_call__.remote(lambda _: os.getpid())),
    ]
    time.sleep(2)  # it has been heard of
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(9)  # longer than an actor may be silent here
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)
        time.sleep(2)  # the monitor is asked before the actor gives a sign of life
    assert cluster.get(actor.pid.remote()) == pids[0] and said == [] and supervisor.restarts == []


def test_an_actor_that_is_busy_for_longer_than_that_is_left_alone(supervisor, cluster):
    supervisor, said = supervisor()
    actor = start(supervisor, cluster, echo_class())
    assert cluster.get(actor.sleep.remote(13)) == "slept" and not said


def test_a_monitor_that_is_started_again_takes_no_actor_for_silent(supervisor, cluster):
    supervisor, said = supervisor(room=1)
    actor = start(supervisor, cluster, echo_class())
    cluster.get(actor.sleep.remote(8))  # longer than a starting actor may take here
    pid = cluster.get(supervisor._monitor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    assert cluster.get(actor.sleep.remote(13)) == "slept" and not said


def test_too_many_restarts_end_the_run_with_the_cause_and_old_ones_do_not_count(supervisor, cluster):
    supervisor, _ = supervisor(restarts=2, window_seconds=1000)
    start(supervisor, cluster, echo_class())
    supervisor.replace("has died", "echo 0")
    supervisor.replace("has died", "echo 0")
    with pytest.raises(
        RunFailed, match=r"^echo 0: has died; 2 restarts .*the same command resumes from the last checkpoint$"
    ):
        supervisor.replace("has died", "echo 0")
    supervisor._recent["echo 0"][0] -= 2000
    supervisor.replace("has died", "echo 0")


def test_an_actor_that_finds_its_port_taken_is_started_again(supervisor, cluster, tmp_path):
    """Another process may take a free port between its choice and its use: the actor has made no mistake."""
    import socket

    from actors.supervision.failures import failure_reason
    from actors.supervision.heartbeat import Heartbeat

    class Listener(Heartbeat):
        def __init__(self, port):
            self.socket = socket.create_server(("127.0.0.1", port))

        def port(self):
            return self.socket.getsockname()[1]

    supervisor, said = supervisor()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        actor = start(supervisor, cluster, Listener, "listener 0", port)
        cause = failure_reason(what_raises(cluster, actor.port.remote()))
    assert cause == "found its port taken by another process"
    (other,) = supervisor.replace(cause, "listener 0")
    assert cluster.get(other.port.remote()) == port and len(said) == 1


def test_what_a_failed_call_says_of_its_actor(supervisor, cluster):
    from ray import exceptions

    from actors.supervision.failures import failure_reason

    supervisor, _ = supervisor()
    actor = start(supervisor, cluster, echo_class())
    assert failure_reason(what_raises(cluster, actor.fail.remote("memory"))) == "is out of memory"
    other = what_raises(cluster, actor.fail.remote("other"))
    with pytest.raises(exceptions.RayTaskError, match="no such thing"):
        failure_reason(other)
    cluster.kill(actor)
    assert "has died" in failure_reason(what_raises(cluster, actor.sleep.remote(30)))
    with pytest.raises(StateLost):
        failure_reason(exceptions.ObjectLostError("00" * 28, None, "lost"))


def drawing_class():
    """What it draws depends on the seed and on the requests drawn beside it: as with an engine, in the last bits."""
    from actors.rollout.actor import Advance
    from actors.rollout.vllm_engine import Completion
    from actors.supervision.heartbeat import Heartbeat

    class Drawing(Heartbeat):
        def __init__(self, folder, dies_at):
            self.folder, self.dies_at, self.calls, self.queue = Path(folder), dies_at, 0, []

        def advance(self, requests, sampling, end_ids, until):
            self.calls += 1
            if self.calls == self.dies_at and not (self.folder / "died").exists():
                (self.folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            self.queue += [(number, seed) for number, (_, seed) in requests.items()]
            now, self.queue = self.queue[:until], self.queue[until:]
            beside = sum(number for number, _ in now) % 97
            found = {n: Completion((seed % 11 + 3, beside + 3), (-1.0, -1.0), True, 0) for n, seed in now}
            return Advance(found, version=7, seconds=0.5)

        def abandon(self):
            self.queue.clear()

    return Drawing


@pytest.mark.parametrize("dies_at", [1, 2, 5])
def test_an_engine_that_dies_draws_every_sample_once_and_the_same_ones(supervisor, cluster, tmp_path, dies_at):
    from actors.rollout.pool import RolloutPool
    from actors.supervision.failures import failure_reason

    supervisor, _ = supervisor()
    prompts = [Prompt(str(i), "", "", (5,) * (3 + i % 4)) for i in range(40)]
    placement, shape, sampling = (
        RolloutPlacement(concurrent_requests=8),
        ModelShape(1, 1, 1, 1, 1, 1, 1),
        Sampling(2, 4, 1.0, 3),
    )

    def draw(name, death):
        folder = tmp_path / name
        folder.mkdir()
        actor = start(supervisor, cluster, drawing_class(), name, str(folder), death)
        pool = RolloutPool(
            [actor],
            placement,
            shape,
            frozenset({1}),
            64,
            EngineTime(),
            lambda i, e: supervisor.replace(failure_reason(e), name)[0],
        )
        chunks = list(pool.stream(prompts, sampling))
        return chunks, (folder / "died").exists()

    (alone, _), (disturbed, died) = draw("a", 0), draw("b", dies_at)
    assert died
    assert [(c.indices, c.groups) for c in disturbed] == [(c.indices, c.groups) for c in alone]
    assert sorted(i for c in disturbed for i in c.indices) == list(range(40))
    assert sum(c.cost.device_seconds for c in disturbed) == sum(c.cost.device_seconds for c in alone)


def test_a_process_that_cannot_end_by_itself_is_ended(supervisor, cluster):
    """One that is out of memory, for example, cannot exit at Ray's request. A stopped process stands for it."""
    supervisor, _ = supervisor(restarts=5)
    actor = start(supervisor, cluster, echo_class())
    pid = cluster.get(actor.pid.remote())
    time.sleep(2)  # it has been heard of
    os.kill(pid, signal.SIGSTOP)
    supervisor.replace("is out of memory", "echo 0")
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.1)


def test_a_process_without_memory_crashes_at_once(supervisor, cluster):
    """And not through handlers that ask for memory again and again."""
    from tests.chaos.injected import be_exhausted

    supervisor, _ = supervisor()
    actor = start(supervisor, cluster, echo_class())
    pid = cluster.get(actor.__ray_call__.remote(be_exhausted))

    def crash(own):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.abort()

    assert "died" in str(what_raises(cluster, actor.__ray_call__.remote(crash)))
    from ray._private.worker import _global_node

    (log,) = Path(_global_node.get_logs_dir_path()).glob(f"worker-*-{pid}.err")
    assert "Fatal Python error: Aborted" in log.read_text() and "AbslFailureSignalHandler" not in log.read_text()


def scoring_class():
    """A reward model that scores a response by its length."""
    from actors.supervision.heartbeat import Heartbeat

    class Scoring(Heartbeat):
        def load(self, path, dtype):
            self.path = path
            return ModelShape(1, 1, 1, 1, 1, 1, 1)

        def score(self, rows, plan):
            time.sleep(1)
            assert self.path == "model"
            return {i: [float(len(r)) for r in rows[i].responses] for part in plan for i in part}, 0.5

    return Scoring


def test_a_scorer_that_dies_with_two_calls_pending_is_replaced_once(supervisor, cluster):
    from actors.reward_scorer import RewardScorer
    from actors.supervision.failures import failure_reason
    from rlhf_bench.core.types import Row

    supervisor, _ = supervisor()
    actor = start(supervisor, cluster, scoring_class())
    scorer = RewardScorer(
        [actor], 1, 0, 64, EngineTime(), lambda i, e: supervisor.replace(failure_reason(e), "echo 0")[0]
    )
    scorer.load("model", "float32")
    rows = [Row(str(n), (1, 2), ((3,) * n, (4,))) for n in range(1, 4)]
    first, second = scorer.begin_score(rows), scorer.begin_score(rows[1:])
    cluster.kill(actor)
    assert first.result()[0] == [[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]
    assert second.result()[0] == [[2.0, 1.0], [3.0, 1.0]]
    assert len(supervisor.restarts) == 1


def test_a_supervisor_that_has_ended_wakes_who_waits_and_starts_no_actor(supervisor, cluster):
    from actors.supervision.failures import failure_reason

    supervisor, said = supervisor()
    actor = start(supervisor, cluster, echo_class())
    cluster.get(actor.pid.remote())
    waiting = actor.sleep.remote(300)
    supervisor.stop()
    cause = failure_reason(what_raises(cluster, waiting))
    with pytest.raises(RunFailed, match="echo 0: not started again, since the run is ending"):
        supervisor.replace(cause, "echo 0")
    with pytest.raises(RunFailed, match="the run is ending"):
        start(supervisor, cluster, echo_class(), "echo 1")
    assert said == [] and supervisor.restarts == [] and list(supervisor.actors) == ["echo 0"]
