"""What `rlhf-bench check` prints about tokens: one example with its boundaries, and where responses end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf_bench.training.inputs import Inputs

BAR = "·"
MOST = 80
"""Tokens of a prompt or an answer that are printed; of a longer one, those at both of its ends."""


def example_lines(inputs: Inputs) -> Iterator[str]:
    """A prompt and an answer with dots between tokens, as they are trained; the end tokens; and warnings."""
    codec, (prompt, answer) = inputs.codec, example(inputs)
    yield "tokens of one example, a · between two:"
    yield f"  prompt: {_barred(list(codec.pieces(prompt)))}"
    if answer:
        yield f"  answer: {_barred(list(codec.pieces(answer)))}"
    ends = ", ".join(f"{_shown(codec.spelled(i))} ({who})" for i, who in codec.ends.items())
    yield f"  given answers end with {_shown(codec.spelled(codec.end))}; sampling stops at {ends}"
    for warning in codec.warnings():
        yield f"  warning: {warning}"


def example(inputs: Inputs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first pair's prompt and chosen answer; or else a demonstration's; or a prompt alone."""
    if inputs.pairs or inputs.held_out_pairs:
        pair = (inputs.pairs or inputs.held_out_pairs)[0]
        return pair.prompt.token_ids, pair.chosen_ids
    if inputs.demonstrations:
        row = inputs.demonstrations[0]
        return row.prompt_ids, row.responses[0]
    return inputs.train[0].token_ids, ()


def example_data(inputs: Inputs) -> dict[str, Any]:
    """The same as plain data."""
    codec, (prompt, answer) = inputs.codec, example(inputs)
    return {
        "prompt": list(codec.pieces(prompt)),
        "answer": list(codec.pieces(answer)),
        "ends": {codec.spelled(i): who for i, who in codec.ends.items()},
        "warnings": list(codec.warnings()),
    }


def _barred(pieces: list[str]) -> str:
    shown = [_shown(piece) for piece in pieces]
    if len(shown) > MOST:
        shown = [*shown[: MOST // 2], f"… {len(shown) - MOST} tokens …", *shown[-MOST // 2 :]]
    return BAR.join(shown)


def _shown(piece: str) -> str:
    """On one line."""
    return piece.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
