"""Pairs with one or both sides from the start policy (arXiv 2406.07327, section 4): each is trained on once, unless the arm
has several epochs, and there are as many as the budget pays for.

The start policy does not change. So drawing its candidates little by little is the same as drawing all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlhf_bench.compute.forecast import Lengths, pair_forecast
from rlhf_bench.compute.ledger import Ledger
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import ArmFailed
from rlhf_bench.core.types import Group, Pair, Prompt
from rlhf_bench.diagnostics.distance import pairs_within
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.packing import shared_tokens
from rlhf_bench.training.batch import Batch
from rlhf_bench.training.pairs import best_and_worst, mix_sides, pair_rewards, rows_of, start_prompts
from rlhf_bench.training.rollouts import RolloutSampler, sample_metrics
from rlhf_bench.training.state import ArmState, SamplerState


@dataclass(frozen=True)
class Drawn:
    """One draw: candidates, and the pairs they make. `cost`: of all of it. `ranked`: pairs before `edit_distance` left
    some out."""

    groups: list[Group]
    pairs: list[Pair]
    ranked: int
    cost: Cost


@dataclass(frozen=True)
class StartPolicyPairs:
    """Candidates for the arm's prompts, an update's number of prompts at a time. When all prompts were used they come again,
    in another order and with new samples: no pair is repeated."""

    sampler: RolloutSampler
    settings: Any  # of a method on pairs
    off_policy: Sequence[Pair]
    prompts: Sequence[Prompt]
    blocks: tuple[int, int]  # how many of them come first, and how many after those
    micro_batch: int  # tokens

    @classmethod
    def of(
        cls, sampler: RolloutSampler, settings: Any, off_policy: Sequence[Pair], micro_batch: int
    ) -> StartPolicyPairs:
        first, further = start_prompts(settings.data, off_policy, sampler.prompts)
        return cls(sampler, settings, off_policy, [*first, *further], (len(first), len(further)), micro_batch)

    def draw(self, state: ArmState, ledger: Ledger) -> Iterator[Batch]:
        """An update's pairs, from as many draws as it takes; fewer where the budget has no room for another draw."""
        groups, found = list[Group](), list[Drawn]()
        while len(state.waiting) < self.settings.pairs_per_update:
            if found and not ledger.has_room_for(found[-1].cost):
                break
            found.append(self.more(state.sampler, ledger))
            groups += found[-1].groups
            state.waiting += found[-1].pairs
            self.check_yield(found)
        size = self.settings.pairs_per_update
        now, state.waiting = state.waiting[:size], state.waiting[size:]
        yield Batch(rows_of(now), pair_rewards(now), self._metrics(now, groups, state), fixed=False)

    def more(self, state: SamplerState, ledger: Ledger) -> Drawn:
        """One draw, charged to `ledger`."""
        settings, sampler, own = self.settings, self.sampler, Ledger(ledger.column, ledger.limit)
        count = min(settings.pairs_per_update, len(self.prompts))
        now = [self.prompts[i] for i in state.prompts.next(count, *self.blocks)] if count else []
        groups = sampler.sample_start(state, own, now, sampler.data.candidates_per_prompt) if now else []
        if wrong := [s.id for g in groups for s in g.samples if s.reward == math.inf]:
            raise ArmFailed(
                f"data: {settings.data}: the reward of sample {wrong[0]} (and {len(wrong) - 1} more) is not a finite number"
            )
        pairs = best_and_worst(groups)
        if settings.data != "on_policy":
            drawn = {p.prompt.id for p in pairs}
            others = [p for p in self.off_policy if p.prompt.id in drawn]
            pairs = mix_sides(pairs, sampler.rescore(own, others), settings.data)
        ranked = len(pairs)
        if settings.edit_distance is not None:
            pairs = pairs_within(pairs, *settings.edit_distance)
        cost = own.total()
        ledger.charge_all(own)
        return Drawn(groups, [replace(p, id=f"{p.id}@{state.calls}") for p in pairs], ranked, cost)

    def check_yield(self, found: Sequence[Drawn]) -> None:
        """Raises ArmFailed where every prompt was drawn for and none made a pair: no further draw would."""
        if any(draw.pairs for draw in found) or sum(len(draw.groups) for draw in found) < len(self.prompts):
            return
        if any(draw.ranked for draw in found):
            low, high = self.settings.edit_distance
            raise ArmFailed(f"edit_distance: no pair's sides lie between {low} and {high} apart; widen the interval")
        key = "train_prompts" if self.settings.data == "on_policy" else "off_policy_pairs"
        raise ArmFailed(
            f"data: {self.settings.data}: none of {len(self.prompts)} prompts had candidates of different quality, so there "
            f"are no pairs; raise data.{key} or data.temperature"
        )

    def for_all_epochs(self, state: ArmState, shape: ModelShape) -> tuple[list[Pair], dict[str, float]]:
        """As many pairs as the budget pays for when each is trained on `epochs` times: drawn now, with what is constant of
        them to log. The plan depends on nothing but seed, settings and samples, so that a resumed arm makes the same."""
        column, ledger = state.ledger.column, state.ledger
        pairs, found, planned = list[Pair](), list[Drawn](), 0.0
        shared = shared_tokens([p.token_ids for p in self.prompts])
        while True:
            found.append(self.more(state.sampler, ledger))
            self.check_yield(found)
            costs = [self._training_cost(pair, shape, shared) for pair in found[-1].pairs]
            cost = sum(getattr(c, column) for c in costs)
            if pairs and ledger.spent + planned + cost > ledger.limit:
                break  # what was drawn last is left out, for there is no room to train on it
            pairs, planned = pairs + found[-1].pairs, planned + cost
            if ledger.spent + planned + getattr(found[-1].cost, column) + cost > ledger.limit:
                break
        if not pairs:
            raise ArmFailed(
                f"data: {self.settings.data}: the budget ended before any prompt had candidates of different quality; raise "
                "compute.limit or data.temperature"
            )
        groups = [g for draw in found for g in draw.groups]
        passes = {"prompt_passes": len(groups) / len(self.prompts)}
        return pairs, _of_candidates(groups) | passes

    def _training_cost(self, pair: Pair, shape: ModelShape, shared: int) -> Cost:
        chosen, rejected = len(pair.chosen_ids), len(pair.rejected_ids)
        n = Lengths(len(pair.prompt.token_ids), max(chosen, rejected), shared, self.micro_batch)
        return pair_forecast(self.settings, shape, n, chosen, rejected)

    def _metrics(self, now: Sequence[Pair], groups: Sequence[Group], state: ArmState) -> dict[str, float]:
        drawn = state.sampler.calls * min(self.settings.pairs_per_update, len(self.prompts))
        lag = state.version - float(np.mean([p.policy_version for p in now])) if now else 0.0
        passes = {"pair_passes": 1.0, "prompt_passes": drawn / len(self.prompts)}
        return {"policy_version_lag": lag, "pairs": len(now)} | passes | _of_candidates(groups)


def _of_candidates(groups: Sequence[Group]) -> dict[str, float]:
    """Of the start policy's samples only this much is logged: lengths and shares would read like the trained policy's."""
    return {k: v for k, v in sample_metrics(groups, 0).items() if k in ("reward", "gold")}
