"""What an evaluator is told to evaluate policies on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rlhf_bench.core.types import Judgement, Pair, Prompt
from rlhf_bench.recipe import EvaluationSettings


@dataclass(frozen=True)
class HeldOut:
    """What a policy is evaluated on, the same for every arm, seed and mark."""

    prompts: Mapping[str, Sequence[Prompt]]  # split -> prompts, encoded; the first split is the main one
    pairs: Mapping[str, Sequence[Pair]]  # split -> pairs that are never trained on
    training: Sequence[Pair]  # pairs that arms train on: no probe is a side of one
    settings: EvaluationSettings
    max_response_tokens: int
    tokens_per_micro_batch: int
    end_ids: frozenset[int]
    judge: Callable[[Prompt, str], Judgement] = field(repr=False)
    decode: Callable[[Sequence[int]], str] = field(repr=False)
    right: Mapping[str, Sequence[tuple[int, ...]]] = field(
        default_factory=dict
    )  # split -> each prompt's one right response; empty where scores are not expected ones
    own_pairs: Mapping[str, Sequence[Pair]] = field(default_factory=dict)  # kind -> such pairs of the main split
    reward_models: Mapping[str, str] = field(default_factory=dict)  # name -> note: see `RewardModelLook`
    settle: Callable[[Sequence[tuple[Prompt, str]]], None] = field(default=lambda asked: None, repr=False)
