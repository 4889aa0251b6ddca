"""An arm that samples, begun on a fleet of its own, for rows that time whole updates of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def begun(recipe: Any, inputs: Any, aside: Path, scorer: Path | None = None) -> tuple[Any, Any]:
    """The fleet, and the trainer of the recipe's one arm. `scorer`: the reward model's folder, where the arm learns from one."""
    from actors.fleet import start_fleet
    from rlhf_bench.compute.engine_time import EngineTime
    from rlhf_bench.core.costs import Cost
    from rlhf_bench.core.types import Evaluation, Pair
    from rlhf_bench.methods import METHODS
    from rlhf_bench.training.arm import ArmObserver, ArmSpec, SharedByArms
    from rlhf_bench.training.cache import Cache
    from rlhf_bench.training.inputs import StartingPoint
    from rlhf_bench.training.loop import ArmTrainer
    from rlhf_bench.training.rollouts import StartSamples
    from rlhf_bench.training.state import ArmState

    folder, ((name, settings),) = inputs.model, recipe.arms.items()
    fleet = start_fleet(
        recipe, str(folder), inputs.shape, inputs.codec.end_ids, scorer is not None, EngineTime(), print
    )
    fleet.join()
    if scorer is not None:
        fleet.scorer.load(scorer, "float32")
    start = StartingPoint(folder, [Pair("p", inputs.train[0], (5, 6, 1), (7, 1))], {}, None, Cost(), Cost(), Cost(), {})
    base, samples = Evaluation({}, {}, {}, 0.0), StartSamples(aside, "base")
    trainer = ArmTrainer(
        spec=ArmSpec(name, recipe, METHODS[settings.method], settings, 1),
        shared=SharedByArms(inputs, start, base, {}, samples, Cache(aside / "cache")),
        roles=fleet.roles,
        observer=ArmObserver(lambda *_: None, lambda *_: None),
        state=ArmState.begin("flops", 1e18, 1),
    )
    trainer.begin()
    return fleet, trainer


def one_update(trainer: Any) -> Any:
    """Sync, samples, judging, scoring, forward passes and steps, as the arm's loop makes them; the batch that it learned from."""
    from rlhf_bench.compute.ledger import Ledger

    state, settings = trainer.state, trainer.spec.settings
    taken = None if state.prefetched is None else trainer.completed(state.prefetched)
    trainer.sync()
    batch, owed = taken or trainer.completed(trainer.draw(state.ledger))
    trainer.updates.pending.append(trainer.updates.hand_in(batch, owed, settings))
    state.prefetched = trainer.draw(Ledger("flops", 1e18)) if settings.draws_ahead else None
    trainer.updates.settle()
    return batch
