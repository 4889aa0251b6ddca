"""A learner of two ranks loses one in the middle of a step: the other must not wait for it forever, both are started again, and
from the last checkpoint they learn what they would have learnt."""

import os
import signal
import time

import numpy as np
import pytest

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.errors import StateLost
from rlhf_bench.core.types import Row
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.dpo import DPOSettings
from rlhf_bench.recipe.sections import Reliability
from rlhf_bench.training.roles import Step

EOS, RATE, HANG_SECONDS = 2, 1e-3, 6
ZERO = (np.zeros(1), np.zeros(1))
PAIRS = [
    Row("a", (1, 5, 6), ((7, 8, EOS), (9, EOS)), {"reference_logprob": ZERO}),
    Row("b", (1, 4), ((11, EOS), (12, 13, 14, 15, 3, EOS)), {"reference_logprob": ZERO}),
    Row("c", (1, 5, 9, 6, 10), ((4, 4, EOS), (8, 8, EOS)), {"reference_logprob": ZERO}),
]
STEP = Step(METHODS["dpo"].objectives[0], PAIRS, DPOSettings(beta=0.5), RATE)


@pytest.fixture(scope="module")
def model(write_llama, tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def group(cluster):
    """Two ranks under a supervisor, as in a run."""
    from ray.util.placement_group import placement_group, remove_placement_group

    from actors.learner.group import LearnerGroup
    from actors.learner.rank import LearnerRank
    from actors.supervision.supervisor import Supervisor

    room = placement_group([{"CPU": 0.01}])
    supervisor = Supervisor(Reliability(hang_seconds=HANG_SECONDS), room, 120, print)
    names = ["learner 0", "learner 1"]

    def maker(rank):
        return lambda: cluster.remote(LearnerRank).options(num_cpus=0).remote(rank, 2, 1, 0, 2, "float32")

    ranks = [supervisor.start(name, maker(i)) for i, name in enumerate(names)]
    group = LearnerGroup(ranks, 1, 0, 16, EngineTime(), lambda cause: supervisor.replace(cause, *names))
    group.join()
    yield group
    supervisor.stop()
    remove_placement_group(room)


def load(group, model):
    group.load("policy", model, learning_rate=RATE)


def learn(group, cluster):
    """One step: its loss, its gradient's norm, and all weights after it."""
    ((means,), _) = group.steps([STEP])
    weights = cluster.get(group.weights("policy"))
    return means["loss"], means["grad_norm"], {name: array.copy() for name, array in weights.items()}


@pytest.fixture(scope="module")
def undisturbed(group, model, cluster, tmp_path_factory):
    """A checkpoint after one step, the sums of its files, and what the next step gives."""
    folder = str(tmp_path_factory.mktemp("state"))
    load(group, model)
    learn(group, cluster)
    sums = group.save_state(folder)
    return folder, list(sums), learn(group, cluster)


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGKILL, 1), (signal.SIGSTOP, 0)], ids=["killed", "frozen"])
def test_a_rank_lost_in_a_step_is_noticed_and_the_group_resumes_from_its_checkpoint(
    number, rank, group, model, cluster, undisturbed
):
    folder, files, (loss, norm, weights) = undisturbed
    pids = cluster.get([r.__ray_call__.remote(lambda own: os.getpid()) for r in group.ranks])
    os.kill(pids[rank], signal.SIGSTOP)  # so that the other one is in the step, and waits for its numbers
    pending = group.begin_steps([STEP])
    time.sleep(2)
    os.kill(pids[rank], number)
    began = time.monotonic()
    with pytest.raises(StateLost, match=r"^rank [01] has (died|lost a rank beside it)") as lost:
        pending.result()
    assert time.monotonic() - began < HANG_SECONDS + 24

    group.rebuild(str(lost.value))
    new_pids = cluster.get([r.__ray_call__.remote(lambda own: os.getpid()) for r in group.ranks])
    assert not set(new_pids) & set(pids), "ranks hold collectives: none of the old ones can continue"
    load(group, model)
    group.load_state(folder, files)
    again, again_norm, others = learn(group, cluster)
    assert (again, again_norm) == (loss, norm)
    assert weights.keys() == others.keys() and all(np.array_equal(weights[name], others[name]) for name in weights)
