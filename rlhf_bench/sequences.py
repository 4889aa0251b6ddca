"""How rows become tensors, and tensors become log-probabilities of response tokens.

A row is one prompt and its k responses. It is computed as a small tree: the prompt once, then every response,
each seeing the prompt and itself only, at the positions it would have on its own. That equals k separate
sequences exactly (a test holds it), and spends the prompt's tokens once. The language-model head is applied at
the positions that predict a response token and nowhere else.

    row:        p0 p1 p2 | a0 a1 a2 | b0 b1
    position:    0  1  2 |  3  4  5 |  3  4
    predicts:          a0,b0| a1 a2   | b1        (p2 predicts the first token of both responses)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_bench.types import Row


@dataclass(frozen=True)
class MicroBatch:
    """Rows as tensors. B rows padded to L tokens; T response tokens and R responses, both flat, in row order."""

    input_ids: Tensor  # [B, L] int64
    position_ids: Tensor  # [B, L] int64
    attention_mask: Tensor  # [B, 1, L, L] bool, True where the query may see the key
    predictor: Tensor  # [T] index into the flat B*L positions: the one that predicts this token
    last: Tensor  # [R] index into the flat B*L positions: the response's last token
    targets: Tensor  # [T] int64, the response tokens
    response_index: Tensor  # [T] int64, which of the R responses a token belongs to
    extras: Mapping[str, Tensor]  # name -> [T] or [R] float32
    weight: float = 1.0  # 0 for a batch that only keeps ranks in step

    @property
    def responses(self) -> int:
        return int(self.last.shape[0])

    def to(self, device: torch.device | str) -> MicroBatch:
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return MicroBatch(**moved, extras={k: v.to(device) for k, v in self.extras.items()}, weight=self.weight)


def micro_batch(rows: Sequence[Row], pad_id: int, weight: float = 1.0) -> MicroBatch:
    """Lay out rows. Raises ValueError for an empty prompt or response: nothing would predict or be predicted."""
    length = max(row.tokens for row in rows)
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    positions = np.zeros((len(rows), length), dtype=np.int64)
    # Segment 0 is the prompt, 1..k its responses, -1 padding; a query sees keys before it in segment 0 or its own.
    segment = np.full((len(rows), length), -1, dtype=np.int64)
    predictor, last, targets, index = [], [], [], []
    response = 0
    for b, row in enumerate(rows):
        if not row.prompt_ids or not row.responses or not all(row.responses):
            raise ValueError(f"row {row.id}: the prompt and every response need at least one token")
        start = len(row.prompt_ids)
        ids[b, :start], positions[b, :start], segment[b, :start] = row.prompt_ids, np.arange(start), 0
        at = start
        for k, tokens in enumerate(row.responses, 1):
            n = len(tokens)
            ids[b, at : at + n], segment[b, at : at + n] = tokens, k
            positions[b, at : at + n] = np.arange(start, start + n)
            base = b * length
            predictor.append(base + np.concatenate(([start - 1], np.arange(at, at + n - 1))))
            last.append(base + at + n - 1)
            targets.append(np.asarray(tokens, dtype=np.int64))
            index.append(np.full(n, response, dtype=np.int64))
            response, at = response + 1, at + n
    seg = torch.from_numpy(segment)
    query, key = seg[:, :, None], seg[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (((key == 0) & (query >= 0)) | (key == query)) & causal  # padding sees padding: no empty softmax
    names = rows[0].extras.keys()
    extras = {
        n: torch.from_numpy(np.concatenate([a for r in rows for a in r.extras[n]]).astype(np.float32)) for n in names
    }
    return MicroBatch(
        torch.from_numpy(ids), torch.from_numpy(positions), mask[:, None], torch.from_numpy(np.concatenate(predictor)),
        torch.tensor(last), torch.from_numpy(np.concatenate(targets)), torch.from_numpy(np.concatenate(index)), extras, weight,
    )  # fmt: skip


def split_by_tokens(rows: Sequence[Row], ranks: int, tokens_per_micro_batch: int) -> list[list[list[int]]]:
    """Row indices by rank and micro-batch: `plan[rank][micro_batch] -> indices`.

    Rows go, longest first, to the rank with the fewest tokens; within a rank neighbours in length share a
    micro-batch as long as rows × longest row stays within the budget (a single longer row is a batch of its own).
    """
    order = sorted(range(len(rows)), key=lambda i: (-rows[i].tokens, i))
    loads = [0] * ranks
    by_rank: list[list[int]] = [[] for _ in range(ranks)]
    for i in order:
        rank = loads.index(min(loads))
        by_rank[rank].append(i)
        loads[rank] += rows[i].tokens
    return [_chunk(rows, indices, tokens_per_micro_batch) for indices in by_rank]


def _chunk(rows: Sequence[Row], indices: Sequence[int], budget: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    for i in indices:  # longest first, so the first of a chunk sets its padded length
        if chunks and rows[chunks[-1][0]].tokens * (len(chunks[-1]) + 1) <= budget:
            chunks[-1].append(i)
        else:
            chunks.append([i])
    return chunks


def sum_by_response(per_token: Tensor, response_index: Tensor, responses: int) -> Tensor:
    """[T] -> [R]: add up each response's tokens."""
    return per_token.new_zeros(responses).index_add(0, response_index, per_token)


def _hidden(backbone: nn.Module, batch: MicroBatch) -> Tensor:
    """Last hidden states of every position, flat: [B*L, H]."""
    out = backbone(
        input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.attention_mask, use_cache=False
    )
    return out.last_hidden_state.flatten(0, 1)


class TokenLogprobs(nn.Module):
    """A causal language model that answers with log-probabilities and entropies of the response tokens.

    forward(batch) -> (logprobs [T], entropy [T]), float32, nats, at `temperature`.
    """

    def __init__(self, causal_lm: nn.Module):
        super().__init__()
        self.lm = causal_lm

    def forward(self, batch: MicroBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        hidden = _hidden(self.lm.base_model, batch)[batch.predictor]
        logits = self.lm.get_output_embeddings()(hidden).float() / temperature
        logp = logits.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(1, batch.targets[:, None]).squeeze(1), entropy


class ResponseValues(nn.Module):
    """A one-label sequence classifier that answers with values and scores: the critic, and the reward model in training.

    forward(batch) -> (values [T]: V of the state each response token is chosen in, scores [R]: read at the last token).
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.lm = classifier

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        hidden = _hidden(self.lm.base_model, batch)
        both = self.lm.score(torch.cat([hidden[batch.predictor], hidden[batch.last]])).squeeze(-1).float()
        return both[: len(batch.predictor)], both[len(batch.predictor) :]
