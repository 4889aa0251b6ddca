"""How rows become tensors: packed one behind the other, without padding.

A row is one prompt and its k responses. It is computed as a small tree: the prompt once, then every response, each
seeing only the prompt and itself (`attention.py`), at the positions it would have on its own. That equals k separate
sequences exactly (a test holds it), and spends the prompt's tokens once.

    pack:        p0 p1 p2 | a0 a1 a2 | b0 b1 || q0 q1 | c0 c1 ...
    position:    0  1  2  |  3  4  5 |  3  4 ||  0  1 |  2  3 ...
    predicts:          a0,b0 | a1 a2 |   b1                        (p2 predicts the first token of both responses)

Prompts of chats begin alike: with the same system message, or the template's own. What all prompts of a pack share stands in it
once, ahead of its rows, and each row sees it. That is the same sum once more: numbers and gradients are those of whole rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rlhf_bench.core.types import Row
from rlhf_bench.models.layout import Layout


@dataclass(frozen=True)
class MicroBatch:
    """Rows as tensors. N tokens in all; T response tokens and R responses, both flat, in row order."""

    input_ids: Tensor  # [1, N] int64
    position_ids: Tensor  # [1, N] int64
    layout: Layout
    predictor: Tensor  # [T] the position that predicts this token
    last: Tensor  # [R] the position of the response's last token
    targets: Tensor  # [T] int64, the response tokens
    response_index: Tensor  # [T] int64, which of the R responses a token belongs to
    extras: Mapping[str, Tensor]  # name -> [T] or [R] float32
    weight: float = 1.0  # 0 for a batch that only keeps ranks in step

    @property
    def responses(self) -> int:
        return int(self.last.shape[0])

    def answers(self, first: int = 0, last: int | None = None) -> ResponseSlice:
        """The responses of rows `first` up to, not including, `last`."""
        before, rows = self.layout.rows[:first], self.layout.rows[first:last]
        token, response = (sum(count(row.responses) for row in before) for count in (sum, len))
        tokens, responses = (sum(count(row.responses) for row in rows) for count in (sum, len))
        of_tokens, of_responses = slice(token, token + tokens), slice(response, response + responses)
        whole = len(self.targets)  # an extra has a number per token, or per response
        extras = {n: e[of_tokens] if len(e) == whole else e[of_responses] for n, e in self.extras.items()}
        return ResponseSlice(of_tokens, self.response_index[of_tokens] - response, responses, extras)

    def to(self, device: torch.device | str) -> MicroBatch:
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved, extras={k: v.to(device) for k, v in self.extras.items()})


@dataclass(frozen=True)
class ResponseSlice:
    """The responses of some rows of a batch, as a loss sees them: t tokens, r responses."""

    tokens: slice  # their place among the batch's response tokens
    response_index: Tensor  # [t]
    responses: int
    extras: Mapping[str, Tensor]  # name -> [t] or [r]


FEWEST_SHARED = 16
"""Tokens. Attention to a prefix takes a call of its own and copies of its keys, which fewer tokens do not repay."""


def shared_tokens(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all prompts begin with; 0 for a single one, and where they are too few to pay. Of each prompt a token is
    left, which predicts its responses' first ones."""
    if len(prompts) < 2:
        return 0
    least = min(map(len, prompts)) - 1
    first, last = min(prompts), max(prompts)  # what these two share, all share: the others stand between them in order
    alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), least)
    return shared if (shared := min(alike, least)) >= FEWEST_SHARED else 0


def prefix_of(rows: Sequence[Row]) -> int:
    return shared_tokens([row.prompt_ids for row in rows])


def layout_of(rows: Sequence[Row], *, apart: bool = False) -> Layout:
    """`apart`: no row shares anything with another."""
    shapes = [(len(row.prompt_ids), [len(tokens) for tokens in row.responses]) for row in rows]
    return Layout.of(shapes, 0 if apart else prefix_of(rows))


def micro_batch(rows: Sequence[Row], weight: float = 1.0, *, apart: bool = False) -> MicroBatch:
    """Lay out rows as `layout_of`. Raises ValueError for an empty prompt or response: nothing would predict or be predicted."""
    for row in rows:
        if not row.prompt_ids or not row.responses or not all(row.responses):
            raise ValueError(f"row {row.id}: the prompt and every response need at least one token")
    layout = layout_of(rows, apart=apart)
    shared = layout.prefix
    of_rows = [part for row in rows for part in (row.prompt_ids[shared:], *row.responses)]
    ids = np.concatenate([rows[0].prompt_ids[:shared], *of_rows])
    predictor, last, targets = [], [], []
    for row, place in zip(rows, layout.rows, strict=True):
        at = place.start + place.prompt
        before = at - 1
        for tokens in row.responses:
            n = len(tokens)
            predictor.append(np.concatenate(([before], np.arange(at, at + n - 1))))
            targets.append(np.asarray(tokens, dtype=np.int64))
            at += n
            last.append(at - 1)
    lengths = torch.tensor([len(t) for t in targets])
    extras = {
        n: torch.from_numpy(np.concatenate([a for r in rows for a in r.extras[n]]).astype(np.float32))
        for n in rows[0].extras
    }
    return MicroBatch(
        torch.from_numpy(ids.astype(np.int64))[None],
        layout.segments[2][None],
        layout,
        torch.from_numpy(np.concatenate(predictor)),
        torch.tensor(last),
        torch.from_numpy(np.concatenate(targets)),
        torch.repeat_interleave(torch.arange(len(lengths)), lengths),
        extras,
        weight,
    )


def split_by_tokens(
    rows: Sequence[Row], ranks: int, tokens_per_micro_batch: int, *, apart: bool = False
) -> list[list[list[int]]]:
    """Row indices by rank and micro-batch: `plan[rank][micro_batch] -> indices`.

    Rows go, longest first, to the rank with the fewest tokens; within a rank neighbours in length share a micro-batch as
    long as they have at most `tokens_per_micro_batch` tokens together, what all rows share counted once (a single longer
    row is a batch of its own).
    """
    shared = 0 if apart else prefix_of(rows)
    order = sorted(range(len(rows)), key=lambda i: (-rows[i].tokens, i))
    loads = [0] * ranks
    by_rank: list[list[int]] = [[] for _ in range(ranks)]
    for i in order:
        rank = loads.index(min(loads))
        by_rank[rank].append(i)
        loads[rank] += rows[i].tokens
    return [_chunk(rows, indices, tokens_per_micro_batch, shared) for indices in by_rank]


def _chunk(rows: Sequence[Row], indices: Sequence[int], max_tokens: int, shared: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    room = 0
    for i in indices:
        own = rows[i].tokens - shared
        if chunks and own <= room:
            chunks[-1].append(i)
        else:
            chunks.append([i])
            room = max_tokens - shared
        room -= own
    return chunks
