"""Held-out pairs of the kinds that arms train on: among the base policy's own answers to prompts that no arm trains on.

The fixed held-out pairs are off-policy. An arm that learns from its own answers never trains on such a pair, and is
measured on these besides. They are made once, the same for every arm of a kind and all seeds, and charged to no arm.

Where there are no off-policy pairs, since no arm needs them, the pairs that the judge ranks are the fixed ones too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import FIXED, Group, Pair, Prompt, Sampling
from rlhf_bench.experiment.stages.context import StageContext
from rlhf_bench.methods.base import Feedback, PairKind, own_kind
from rlhf_bench.training.inputs import OWN_SEED, StartingPoint
from rlhf_bench.training.judging import Judge, reward_groups
from rlhf_bench.training.pairs import best_and_worst, mix_sides, own_prompts
from rlhf_bench.training.rollouts import JUDGED, JudgedSamples, rescored

PROMPTS_AT_ONCE = 64
"""Prompts that are answered by one call, at most: about twice as many as pairs are wanted, of whichever kinds, so that an arm
that joins later moves no pair."""


JUDGED_ANSWERS = PairKind("on_policy", "judge")
"""What the fixed held-out pairs are where there are no off-policy pairs."""


def with_own_pairs(context: StageContext, start: StartingPoint) -> StartingPoint:
    """With up to `data.held_out_pairs` pairs of every kind that an arm of the recipe trains on, but `fixed`. A kind that the
    reward model ranks is left out where no arm that is to run needs that one."""
    kinds = {own_kind(arm) for arm in context.recipe.arms.values()}
    kinds = {kind for kind in kinds if kind.name != FIXED and (kind.feedback == "judge" or context.roles.scorer)}
    fixed = {JUDGED_ANSWERS} if context.inputs.pairs == [] else set[PairKind]()
    if not kinds | fixed:
        return start
    made = _Making(context, start, sorted(kinds | fixed, key=lambda kind: kind.name))
    made.run()
    pairs = {kind.name: found[: made.wanted] for kind, found in made.found.items()}
    shown = ", ".join(f"{len(found)} {name}" for name, found in pairs.items())
    context.say(f"held-out pairs of the arms' own kinds: {shown}{'' if made.sampled else ' (answers from the cache)'}")
    for kind in (kind for kind, found in made.found.items() if not found):
        answers = "the base policy's answers differ in quality"
        where = (
            answers if kind.mode == "on_policy" else f"{answers} and there is a fixed held-out pair to mix them with"
        )
        context.say(
            f"held-out pairs: none of kind {kind.name}, since on no held-out prompt {where}; raise evaluation.prompts or "
            "data.candidates_per_prompt to measure arms on pairs of their own kind"
        )
    # In the order of their names, as a set has another one in every process.
    own = {kind.name: pairs[kind.name] for kind in made.found if kind in kinds and pairs[kind.name]}
    start = replace(start, own_pairs=own, own_pairs_cost=made.cost)
    if any(pairs[kind.name] for kind in fixed):
        start = replace(start, held_out_pairs={context.recipe.evaluation.splits[0]: pairs[JUDGED_ANSWERS.name]})
    return start


class _Making:
    """Pairs by kind, and what they cost so far."""

    def __init__(self, context: StageContext, start: StartingPoint, kinds: Sequence[PairKind]):
        self.context, self.start, self.seed = context, start, context.seed_of(OWN_SEED)
        self.wanted = context.recipe.data.held_out_pairs
        self.fixed = {p.prompt.id: p for p in start.held_out_pairs.get(context.recipe.evaluation.splits[0], [])}
        self.found: dict[PairKind, list[Pair]] = {kind: [] for kind in kinds}
        self.cost, self.sampled = Cost(), False

    def run(self) -> None:
        """Chunk of prompts by chunk, until there are enough pairs of each kind, or no prompts that can give one."""
        recipe, inputs, main = self.context.recipe, self.context.inputs, self.context.recipe.evaluation.splits[0]
        fixed = list(self.fixed.values())
        prompts = own_prompts(recipe, inputs.train, self.start.pairs, inputs.held_out[main], fixed)
        size = min(PROMPTS_AT_ONCE, 2 * self.wanted)
        for at in range(0, len(prompts), size):
            chunk = prompts[at : at + size]
            lacking = [kind for kind in self.found if self._lacks(kind, chunk)]
            if lacking:
                self._add(lacking, self._answers(chunk, at))

    def _lacks(self, kind: PairKind, prompts: Sequence[Prompt]) -> bool:
        """Whether more pairs of that kind are wanted, and these prompts may give some."""
        can = kind.mode == "on_policy" or any(p.id in self.fixed for p in prompts)
        return can and len(self.found[kind]) < self.wanted

    def _answers(self, prompts: Sequence[Prompt], at: int) -> list[Group]:
        """The base policy's, judged. Kept, so that a run that is resumed has the same."""
        data = self.context.recipe.data
        sampling = Sampling(data.candidates_per_prompt, data.max_response_tokens, data.temperature, self.seed + at)
        key = [self.context.inputs.fingerprint, self.start.base.name, asdict(sampling), [p.token_ids for p in prompts]]

        def make(folder: Path) -> dict[str, Any]:
            return {"judged": JUDGED.dump_python(self._sample(prompts, sampling), mode="json")}

        _, made, _ = self.context.cache.get("answers", key, make)
        judged = JUDGED.validate_python(made["judged"])
        self.cost += judged.drawing + judged.judging
        return judged.groups

    def _sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> JudgedSamples:
        roles, inputs = self.context.roles, self.context.inputs
        if not self.sampled:
            roles.learner.load("policy", self.start.base, self.seed)
            roles.sync.send(0)
            self.sampled = True
        groups, drawing = roles.pool.generate(prompts, sampling)
        judged, judging = Judge(inputs.task, inputs.codec)(groups)
        return JudgedSamples(judged, drawing, judging)

    def _add(self, kinds: Sequence[PairKind], judged: Sequence[Group]) -> None:
        """The pairs that these answers make, as an arm of the kind makes its own (`training.experience`)."""
        for feedback in sorted({kind.feedback for kind in kinds}):
            sampled = self._best_and_worst(judged, feedback)
            modes = [kind for kind in kinds if kind.feedback == feedback]
            mixed = any(kind.mode != "on_policy" for kind in modes)
            offline = self._fixed_of(sampled, feedback) if mixed else []
            for kind in modes:
                self.found[kind] += sampled if kind.mode == "on_policy" else mix_sides(sampled, offline, kind.mode)

    def _best_and_worst(self, judged: Sequence[Group], feedback: Feedback) -> list[Pair]:
        groups, cost = reward_groups(judged, feedback, self.context.roles.scorer)
        self.cost += cost
        if wrong := [s.id for group in groups for s in group.samples if s.reward == math.inf]:
            raise RunFailed(f"held-out pairs: the reward of sample {wrong[0]} is not finite; use another reward model")
        return best_and_worst(groups)

    def _fixed_of(self, sampled: Sequence[Pair], feedback: Feedback) -> list[Pair]:
        """The fixed pairs with the prompts of those, scored by what ranked them."""
        fixed = [self.fixed[p.prompt.id] for p in sampled if p.prompt.id in self.fixed]
        found, cost = rescored(fixed, feedback, self.context.roles.scorer)
        self.cost += cost
        return found
