"""The reward model: a Hugging Face sequence classifier, or several, in actors of its own; a row's responses share its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import ray

from actors.monitoring.ray_metrics import count_tokens
from actors.monitoring.trace import Traced, traced
from actors.supervision.failures import Replace, no_replacement
from actors.supervision.heartbeat import Heartbeat
from actors.supervision.remote_call import RemoteCall, Retry, gather
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.rounding import rounding_of
from rlhf_bench.core.types import Row
from rlhf_bench.models.flops import ModelShape, forward_flops
from rlhf_bench.models.loading import RewardScaling
from rlhf_bench.models.packing import layout_of, micro_batch, split_by_tokens
from rlhf_bench.training.roles import Scores


class ScorerActor(Traced, Heartbeat):
    @traced
    def __init__(self, cpus: int, gpus: int):
        import torch

        torch.set_num_threads(cpus)
        self.device = "cuda" if gpus else "cpu"
        self.model: Any = None

    @traced
    def load(self, path: str, dtype: str) -> ModelShape:
        """`path`: of AutoModelForSequenceClassification with one label, or a note that names one or an ensemble of them and says
        how scores are read, see `load_reward_model`. Returns the shape of one."""
        from rlhf_bench.models.loading import load_reward_model

        self.model = load_reward_model(path, dtype).eval().requires_grad_(False).to(self.device)
        return ModelShape.of(self.model.lm)

    @traced
    def score(self, rows: Sequence[Row], plan: list[list[int]]) -> tuple[dict[int, list[float]], float]:
        """Scores read at each response's last token, `{row index: a score per response}`; and the seconds it took."""
        import torch

        began = perf_counter()
        found: dict[int, list[float]] = {}
        with torch.no_grad():
            for indices in plan:
                _, scores = self.model(micro_batch([rows[i] for i in indices]).to(self.device))
                flat = iter(scores.cpu().tolist())
                found |= {i: [next(flat) for _ in rows[i].responses] for i in indices}
        return found, perf_counter() - began


class RewardScorer:
    """The driver's handle on all scorers: rows in, scores and cost out."""

    def __init__(
        self,
        actors: Sequence[Any],
        cpus: int,
        gpus: int,
        tokens_per_micro_batch: int,
        engine_time: EngineTime,
        replace: Replace = no_replacement,
    ):
        self.engine_time, self.replace = engine_time, replace
        self.actors = list(actors)
        self.devices_each = gpus or cpus
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.shape: ModelShape | None = None
        self.model = ("", "")  # path and number format
        self.note = RewardScaling()

    def load(self, path: Path, dtype: str) -> None:
        self.model = (str(path), dtype)
        asked = [a.load.remote(*self.model) for a in self.actors]
        retry = self._retry("load", [self.model] * len(asked))
        self.shape, *_ = self.engine_time.during("loading", gather, asked, retry)
        self.note = RewardScaling.read(str(path))

    def rounding(self, score: float) -> float:
        """How far another score may be from this one and mean the same. The model computed score + offset; scores have a
        deviation of 1 on the base policy's samples. An ensemble's mean or minimum is no farther off than its worst member."""
        alone = [self.note.of_member(i) for i in range(len(self.note.offsets))] or [self.note]
        return max(rounding_of(score + one.offset, self.model[1]) for one in alone)

    def _retry(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Retry:
        """The call to another scorer, with the same model, in the place of a lost one."""

        asked = list(self.actors)

        def retry(i: int, error: Exception) -> ray.ObjectRef:
            if asked[i] is self.actors[i]:  # otherwise another pending call has replaced it already
                self._bring_up(i, error)
            asked[i] = self.actors[i]
            return getattr(asked[i], method).remote(*arguments[i])

        return retry

    def _bring_up(self, i: int, error: Exception) -> None:
        """Another scorer, with the model that the lost one had."""
        while True:
            self.actors[i] = self.replace(i, error)
            try:
                ray.get(self.actors[i].load.remote(*self.model))
                return
            except Exception as next_error:
                error = next_error

    def begin_score(self, rows: Sequence[Row]) -> RemoteCall[Scores]:
        """Hand rows in, without waiting for their scores."""
        assert self.shape is not None, "load comes first"
        plan = split_by_tokens(rows, len(self.actors), self.tokens_per_micro_batch)
        batches = [[rows[i] for i in indices] for share in plan for indices in share]
        flops = sum(forward_flops(self.shape, layout_of(b), sum(len(r.responses) for r in b)) for b in batches)
        members, count = self.note.members, len(rows)  # each of which scores every row
        cost = Cost(flops=members * flops, scored_tokens=members * sum(r.tokens for r in rows))

        def finish(found: list[dict[int, list[float]]], seconds: list[float]) -> Scores:
            count_tokens("scorer", cost.scored_tokens)
            by_row = {i: scores for share in found for i, scores in share.items()}
            return [by_row[i] for i in range(count)], cost + Cost(device_seconds=sum(seconds) * self.devices_each)

        with self.engine_time.busy("scoring"):
            ref = ray.put(list(rows))
            refs = [a.score.remote(ref, share) for a, share in zip(self.actors, plan, strict=True)]
        retry = self._retry("score", [(ref, share) for share in plan])
        return RemoteCall("scoring", "scorer", refs, finish, self.engine_time, retry)

    def score(self, rows: Sequence[Row]) -> Scores:
        """Hand rows in, and wait."""
        return self.begin_score(rows).result()
