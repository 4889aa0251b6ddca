"""A task's data as a model's tokenizer sees them: lengths, and how many rows of each kind there is room for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any

import numpy as np

from rlhf_bench.compute.forecast import FixedData, Lengths
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import MAIN_SPLIT, Prompt
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.models.codec import Codec, build_codec
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.packing import shared_tokens
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.models.validation import pretrained_model
from rlhf_bench.tasks import Task
from rlhf_bench.tasks.base import HELD_OUT_PAIRS, LABELLED, PAIRS
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.encoded_rows import DATA_SEED
from rlhf_bench.training.local_model import Say, local_model

MOST = {"train": 2048, PAIRS: 1024, LABELLED: 2048, "held out": 256, HELD_OUT_PAIRS: 128}
"""Rows of each kind that are asked for at most, as the sections' defaults have them."""
SAMPLES = 4
"""Responses to a prompt that go through a model together."""
RESPONSE_TOKENS = (16, 256)
"""Room for a response is between these."""
WITHOUT_ANSWERS = 128
"""Room for a response where the data has no answers to measure."""
MAX_LENGTH = 2048
SHORTEST = 8


@dataclass
class Measured:
    """What a recipe's sizes are chosen by. `model`: the recipe's section."""

    model: dict[str, Any]
    shape: ModelShape
    lengths: Lengths
    response_tokens: int
    widest_row: int
    train: int
    held_out: Mapping[str, int]
    pairs: int
    held_out_pairs: int
    labelled: int = 0
    judge: str = ""
    samples: int = SAMPLES
    assumed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def fixed(self) -> FixedData:
        return FixedData(max(1, self.pairs), self.labelled or None)


_Rows = Sequence[tuple[int, Sequence[int]]]
"""Tokens of a row's prompt and of each of its answers."""


@dataclass(frozen=True)
class _Tokens:
    """Tokens of prompts by split, and of pairs, demonstrations and labelled completions. Rows that cannot be encoded are not among
    them."""

    prompts: Mapping[str, Sequence[int]]
    demonstrations: _Rows
    pairs: _Rows
    held_out_pairs: _Rows
    labelled: _Rows
    shared: int  # tokens that all training prompts begin with


def measured(
    name: str, task: Task, has_demonstrations: bool, judge: str, gpu: bool, cache: Cache, say: Say
) -> Measured:
    """Of the model at a folder, id, GGUF file or short name. BadInput where it cannot be used, or the data gives too little."""
    local = local_model("model.name_or_path", name, cache, say)
    model, shape = pretrained_model(local.path, SHORTEST, scalar=True)
    tokenizer: Any = build_tokenizer(TokenizerSettings(kind="pretrained", name_or_path=local.path), ())
    chat = bool(tokenizer.chat_template)
    tokens = _tokens(task, build_codec(tokenizer, local.path, chat, date.today()), has_demonstrations)
    response, length = _lengths(tokens, getattr(model.config, "max_position_embeddings", None), task.leaves_out)
    counts = _counts(tokens, response, length, task)
    fitting = [n for found in tokens.prompts.values() for n in found if n + response <= length]
    widest = _up(max(max(fitting) + SAMPLES * response, length), 256)
    sides = [answer for _, answers in (*tokens.pairs, *tokens.held_out_pairs) for answer in answers]
    side = round(float(np.mean(sides))) if sides else None
    lengths = Lengths(round(float(np.mean(fitting))), response, tokens.shared, widest, side)
    section = {
        "name_or_path": name,
        "max_length": length,
        "dtype": "bfloat16" if gpu else "float32",
        "tokenizer": {"kind": "pretrained", "name_or_path": name} | ({"chat_template": "own"} if chat else {}),
    }
    return Measured(
        section, shape, lengths, response, widest, **counts, judge=judge,
        assumed=list(_said(tokens, chat, response, length, task.leaves_out)),
    )  # fmt: skip


def _said(tokens: _Tokens, chat: bool, response: int, length: int, leaves_out: bool) -> Iterator[tuple[str, str]]:
    template = "its own chat template is used" if chat else "it has no chat template, so texts are used as they stand"
    yield "model", template
    longer = ", longer rows are left out" if leaves_out else ""
    yield "model", f"max_length {length}: room for prompts and answers of the data{longer}"
    answers = (
        "nine of ten of the data's answers are no longer; the model's own may be, and the run says how many were cut off"
        if _answers(tokens)
        else "the data has no answers to measure"
    )
    yield "data", f"max_response_tokens {response}: {answers}"


def _tokens(task: Task, codec: Codec, has_demonstrations: bool) -> _Tokens:
    def sides(rows: Sequence[tuple[Prompt, Sequence[str]]]) -> Iterator[tuple[int, Sequence[int]]]:
        for prompt, texts in rows:
            try:
                answers = [len(codec.answer(prompt, text).ids) for text in texts]
                yield len(codec.prompt(prompt)), answers
            except Unusable:  # counted where the recipe's rows are encoded
                continue

    def drawn(draw: Callable[[int, int], list[Any]], most: int, there: int | None) -> list[Any]:
        count = most if there is None else min(most, there)
        return draw(count, DATA_SEED) if count else []

    def encoded(prompts: Sequence[Prompt]) -> Iterator[tuple[int, ...]]:
        for prompt in prompts:
            with contextlib.suppress(Unusable):  # counted likewise
                yield tuple(codec.prompt(prompt))

    prompts = dict[str, list[tuple[int, ...]]]()
    for split in task.splits:
        rows = drawn(
            partial(task.prompts, split), MOST["train" if split == "train" else "held out"], _there(task, split)
        )
        prompts[split] = list(encoded(rows))
    shown = drawn(task.demonstrations, MOST["held out"], _there(task, "train")) if has_demonstrations else []
    pairs = drawn(task.pairs, MOST[PAIRS] + MOST[HELD_OUT_PAIRS], _there(task, PAIRS)) if task.pairs else []
    apart = (
        drawn(task.held_out_pairs, MOST[HELD_OUT_PAIRS], _there(task, HELD_OUT_PAIRS)) if task.held_out_pairs else []
    )
    labelled = drawn(task.labelled, MOST[LABELLED], _there(task, LABELLED)) if task.labelled else []
    return _Tokens(
        {split: [len(ids) for ids in found] for split, found in prompts.items()},
        list(sides([(d.prompt, (d.response,)) for d in shown])),
        list(sides([(p.prompt, (p.chosen, p.rejected)) for p in pairs])),
        list(sides([(p.prompt, (p.chosen, p.rejected)) for p in apart])),
        list(sides([(one.prompt, (one.response,)) for one in labelled])),
        shared_tokens(prompts["train"]),
    )


def _there(task: Task, what: str) -> int | None:
    """How many the data has; None where a task draws as many as one likes, of which a fixed number is measured."""
    return task.sizes.get(what, 0) if task.sizes else None


def _answers(tokens: _Tokens) -> list[int]:
    return [max(answers) for _, answers in (*tokens.demonstrations, *tokens.pairs, *tokens.labelled)]


def _lengths(tokens: _Tokens, positions: int | None, leaves_out: bool) -> tuple[int, int]:
    """Room for a response, and for a prompt and a response together. All rows fit, or 99 of 100 where rows are left out."""
    answers, share = _answers(tokens), 0.99 if leaves_out else 1.0
    wanted = float(np.quantile(answers, 0.9)) if answers else WITHOUT_ANSWERS
    response = _up(int(min(max(wanted, RESPONSE_TOKENS[0]), RESPONSE_TOKENS[1])), 8)
    prompts = [n + response for found in tokens.prompts.values() for n in found]
    rows = [n + max(*answers, response) for n, answers in (*tokens.pairs, *tokens.held_out_pairs, *tokens.labelled)]
    if not prompts:
        raise BadInput("--data: no prompt can be encoded; run `rlhf-bench check` on a recipe of this data to see why")
    need = int(max(float(np.quantile(found, share, method="higher")) for found in (prompts, rows) if found))
    most = min(MAX_LENGTH, positions or MAX_LENGTH)
    if need > most and not leaves_out:
        raise BadInput(f"--data: the longest row has {need} tokens, and there is room for {most}; shorten it")
    return response, min(_up(need, 32), most)


def _counts(tokens: _Tokens, response: int, length: int, task: Task) -> dict[str, Any]:
    """Rows that fit, by kind."""

    def fit(rows: _Rows) -> int:
        return sum(n + max(*answers, response) <= length for n, answers in rows)

    prompts = {split: fit([(n, (0,)) for n in found]) for split, found in tokens.prompts.items()}
    train, held_out = prompts.pop("train"), {split: count for split, count in prompts.items() if count}
    pairs, apart = fit(tokens.pairs), fit(tokens.held_out_pairs)
    if not apart:  # some of the pairs, whose prompts are then left out in training
        apart = min(MOST[HELD_OUT_PAIRS], pairs // 5)
        pairs = pairs - apart if pairs else 0
    labelled, too_few_pairs = fit(tokens.labelled), min(pairs, apart) < 1
    if labelled and too_few_pairs:  # then no arm is proposed that learns from them
        pairs = apart = 0
    if train < 2 or not held_out.get(MAIN_SPLIT) or (task.pairs is not None and not labelled and too_few_pairs):
        raise BadInput(
            f"--data: too few rows can be used: {train} prompts to train on, {held_out.get(MAIN_SPLIT, 0)} held out, {pairs} pairs and "
            f"{apart} on held-out prompts; give more rows"
        )
    found = {"train": train, "pairs": pairs if task.pairs else 0, "labelled": labelled}
    return found | {"held_out": held_out, "held_out_pairs": apart or MOST[HELD_OUT_PAIRS]}


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
