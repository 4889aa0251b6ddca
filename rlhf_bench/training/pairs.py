"""Pairs from scored samples, and rows from pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlhf_bench.core.types import DESIRABLE, Group, LabelledResponse, Pair, Prompt, Row, Sample
from rlhf_bench.methods.base import DataMode
from rlhf_bench.recipe import Recipe


def preference_pairs(groups: Sequence[Group], max_per_prompt: int) -> list[Pair]:
    """Up to `max_per_prompt` pairs per prompt among its candidates, those of the widest difference first; equals make no pair,
    nor do scores that are equal up to their rounding.

    An unfinished candidate is the worst there is; all differences to it are alike, and the best one goes first. A
    response that was drawn twice counts once, and among equals the earlier drawn come first, so that a pair does not
    depend on lengths or likelihoods.
    """
    pairs = []
    for group in groups:
        first: dict[tuple[int, ...], Sample] = {}
        for sample in group.samples:
            first.setdefault(sample.response_ids, sample)
        samples = list(first.values())
        score = {s.id: s.reward if s.finished else -math.inf for s in samples}
        ordered = [
            (up, down)
            for up in samples
            for down in samples
            if score[up.id] - score[down.id] > max(up.rounding, down.rounding)  # two unfinished: nan, which is not
        ]
        ordered.sort(key=lambda pair: (score[pair[1].id] - score[pair[0].id], -score[pair[0].id]))
        pairs += [
            Pair(
                f"{up.id}>{down.id}",
                group.prompt,
                up.response_ids,
                down.response_ids,
                score[up.id],
                score[down.id],
                up.policy_version,
                max(up.rounding, down.rounding),
            )
            for up, down in ordered[:max_per_prompt]
        ]
    return pairs


def best_and_worst(groups: Sequence[Group]) -> list[Pair]:
    """A pair per prompt: the best and the worst of its candidates (arXiv 2406.07327, section 4). Prompts whose
    candidates all score alike (all good, all bad) give none."""
    return preference_pairs(groups, max_per_prompt=1)


def mix_sides(sampled: Sequence[Pair], offline: Sequence[Pair], mode: DataMode) -> list[Pair]:
    """Pairs with one side from each set, prompt by prompt: `chosen_on_policy` takes the sampled pair's chosen response
    and the offline pair's rejected one, `rejected_on_policy` the other way round (the mixed scenarios of arXiv
    2406.07327, table 7). A prompt without a pair in both sets gives none, nor do sides that are the same text."""
    others = {p.prompt.id: p for p in offline}
    out = []
    for own in sampled:
        if (other := others.get(own.prompt.id)) is None:
            continue
        good, bad = (own, other) if mode == "chosen_on_policy" else (other, own)
        rounding = max(good.rounding, bad.rounding)
        if good.chosen_ids != bad.rejected_ids and good.chosen_score - bad.rejected_score > rounding:
            out.append(
                Pair(
                    f"{good.id}|{bad.id}",
                    own.prompt,
                    good.chosen_ids,
                    bad.rejected_ids,
                    good.chosen_score,
                    bad.rejected_score,
                    own.policy_version,
                    rounding,
                )
            )
    return out


def start_prompts(mode: DataMode, pairs: Sequence[Pair], train: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Those that the start policy answers for an arm's pairs: the off-policy pairs' prompts, which come first, so that all
    scenarios learn from the same prompts as far as they go; and further ones."""
    first = {p.prompt.id: p.prompt for p in pairs}
    further = [p for p in train if p.id not in first] if mode == "on_policy" else []
    return list(first.values()), further


def own_prompts(
    recipe: Recipe,
    train: Sequence[Prompt],
    pairs: Sequence[Pair],
    held_out: Sequence[Prompt],
    held_out_pairs: Sequence[Pair],
) -> list[Prompt]:
    """Those that the start policy answers for held-out pairs of the arms' own kinds: no prompt of `train` or of the pairs to
    train on, none twice, and none without room for a response. The fixed held-out pairs' prompts come first: there all kinds
    are on the same prompts, and a side can be the fixed pair's."""
    trained = {p.token_ids for p in train} | {p.prompt.token_ids for p in pairs}
    most = recipe.model.max_length - recipe.data.max_response_tokens
    found: dict[tuple[int, ...], Prompt] = {}
    for prompt in (*(p.prompt for p in held_out_pairs), *held_out):
        if prompt.token_ids not in trained and len(prompt.token_ids) <= most:
            found.setdefault(prompt.token_ids, prompt)
    return list(found.values())


def rows_of(pairs: Sequence[Pair]) -> list[Row]:
    """One row a pair: the chosen response first."""
    return [Row(p.id, p.prompt.token_ids, (p.chosen_ids, p.rejected_ids)) for p in pairs]


def sides_of(pairs: Sequence[Pair]) -> list[LabelledResponse]:
    """Both responses of each pair, taken apart."""
    return [
        LabelledResponse(f"{p.id}/{side}", p.prompt, ids, side == "chosen", p.policy_version)
        for p in pairs
        for side, ids in (("chosen", p.chosen_ids), ("rejected", p.rejected_ids))
    ]


def labelled_rows(labelled: Sequence[LabelledResponse]) -> list[Row]:
    """One row a response, with its label as a number."""
    return [
        Row(one.id, one.prompt.token_ids, (one.response_ids,), {DESIRABLE: (np.array([float(one.desirable)]),)})
        for one in labelled
    ]


def pair_rewards(pairs: Sequence[Pair]) -> list[tuple[float, ...]]:
    """For each row of `rows_of`, a number per response."""
    return [(p.chosen_score, p.rejected_score) for p in pairs]
