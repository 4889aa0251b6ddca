"""Generations side by side: the same prompts, answered by the base model and by every arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from rlhf_bench.core.types import HELD_OUT_SPLITS
from rlhf_bench.report.format import visible
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.schema import BASE
from rlhf_bench.results.summary import ArmResult, Summary

PROMPTS_PER_SPLIT = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model wrote. `response` is None where none was recorded for this prompt; `score` may be nan."""

    model: str
    response: str | None
    score: float


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out prompt and every model's answer to it. All text has its control characters made visible."""

    split: str
    prompt: str
    reference: str
    answers: tuple[Answer, ...]


def side_by_side(recorded: RecordedComparison, summary: Summary) -> tuple[Question, ...]:
    """The first recorded prompts of each split, in the order of the file: nothing is picked for its outcome.

    Arms answer with their last evaluation of the seed that `shown_seed` names.
    """
    samples = recorded.samples
    base = samples[samples["arm"] == BASE]  # one for each seed where seeds have their own: then the first one's answers
    answers = {BASE: _last_answers(base[base["seed"] == base["seed"].min()])}
    for arm in summary.arms:
        own = samples[(samples["arm"] == arm.name) & (samples["seed"] == shown_seed(arm))]
        answers[arm.name] = _last_answers(own)
    questions = []
    for split in HELD_OUT_SPLITS:
        prompts = samples[samples["split"] == split].drop_duplicates("prompt_id").head(PROMPTS_PER_SPLIT)
        questions += [_question(row, answers) for row in prompts.to_dict("records")]
    return tuple(questions)


def shown_seed(arm: ArmResult) -> int | None:
    """The first finished seed, or the first one where none finished; None for an arm without seeds."""
    return next((seed.seed for seed in arm.finished or arm.seeds), None)


def _last_answers(own: pd.DataFrame) -> dict[tuple[str, str], Mapping]:
    """(split, prompt id) → the row of the last evaluation."""
    ordered = own.sort_values("mark", kind="stable", na_position="first")
    return {(row["split"], row["prompt_id"]): row for row in ordered.to_dict("records")}


def _question(row: Mapping, answers: Mapping[str, Mapping[tuple[str, str], Mapping]]) -> Question:
    key = (row["split"], row["prompt_id"])
    return Question(
        split=row["split"],
        prompt=visible(row["prompt"]),
        reference=visible(row["reference"]),
        answers=tuple(_answer(model, found.get(key)) for model, found in answers.items()),
    )


def _answer(model: str, row: Mapping | None) -> Answer:
    if row is None:
        return Answer(model, None, float("nan"))
    return Answer(model, visible(row["response"]), float(row["score"]))
