"""An arm that diverges is a result beside the others, and the same command keeps it."""

import json
import math

from tests.support.side_by_side import PAIRS, Made

ARMS = {"offline": PAIRS, "wild": {**PAIRS, "learning_rate": 1e30}}


def diverge(learner):
    """Let the losses of steps at that learning rate be no numbers."""
    plain = learner.begin_steps

    def begin_steps(work, temperature=1.0):
        pending = plain(work, temperature)
        losses, _ = pending.found
        for step, told in zip(work, losses, strict=True):
            told["loss"] = math.nan if step.learning_rate > 1e20 else told["loss"]
        return pending

    learner.begin_steps = begin_steps


def statuses(made):
    arms = json.loads((made.directory / "results.json").read_text())["arms"]
    return {arm: [seed["status"] for seed in found["seeds"]] for arm, found in arms.items()}


def test_it_is_a_result_that_the_same_command_keeps(tmp_path):
    made = Made(tmp_path, arms=ARMS, seeds=[1])
    diverge(made.learners[0])
    made.run()
    assert statuses(made) == {"offline": ["done"], "wild": ["diverged"]}
    again = Made(tmp_path, arms=ARMS, seeds=[1])
    again.run()
    assert statuses(again) == {"offline": ["done"], "wild": ["diverged"]}
    assert again.shown.getvalue().count("already done, kept") == 2 and not any(one.stepped for one in again.learners)
