"""Rejection-sampling fine-tuning: imitate the best of a prompt's n samples (RAFT, arXiv 2304.06767; RFT, arXiv 2308.01825).

    loss = −log π(a*_t) per token,  a* the best of a prompt's n samples

A prompt whose samples are all equally good is left out: nothing was selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from rlhf_bench.core.types import Row
from rlhf_bench.methods.base import Measured, Method, Objective, Prepared
from rlhf_bench.methods.samples import SampleSettings, Several, minibatches, reward_rounding
from rlhf_bench.methods.supervised import sft_loss


class RFTSettings(SampleSettings):
    method: Literal["rft"] = "rft"
    samples_per_prompt: Several = Field(8, description="n, responses sampled for each prompt, 2 or more")

    @property
    def responses_per_row(self) -> int:
        return 1


def best_of(rewards: np.ndarray, rounding: float) -> int | None:
    """Which of a prompt's responses [n] has the highest reward, the earliest of equals; None where none is better than any
    other. Rewards no farther apart than `rounding` are equal; nan marks a response that did not end, which is the worst."""
    if np.isnan(rewards).all():
        return None
    scores = np.where(np.isnan(rewards), -np.inf, rewards)
    if np.ptp(scores) <= rounding:
        return None
    return int(np.argmax(scores >= scores.max() - rounding))


def prepare(
    rows: Sequence[Row],
    rewards: Sequence[Sequence[float]],
    measured: Measured,
    settings: RFTSettings,
    state: Mapping[str, float],
    dtype: str = "float32",
) -> Prepared:
    """One response of each row, or no row: what is left of the samples once they are selected."""
    out, kept = list[Row](), list[float]()
    for row, given in zip(rows, rewards, strict=True):
        best = best_of(np.array(given, dtype=np.float64), reward_rounding([row]))
        if best is not None:
            out.append(Row(row.id, row.prompt_ids, (row.responses[best],)))
            kept.append(given[best])
    metrics = {"selected": len(out) / len(rows)} | ({"selected_reward": float(np.mean(kept))} if kept else {})
    return Prepared(out, {}, metrics)


METHOD = Method(
    name="rft",
    settings=RFTSettings,
    consumes="samples",
    measures=(),
    objectives=(Objective("policy", "token", sft_loss),),
    prepare=prepare,
    minibatches=minibatches,
)
