"""The reward model: a Hugging Face sequence classifier in actors of its own; a row's responses share its prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import ray

from rlhf_bench.engine_time import EngineTime
from rlhf_bench.flops import ModelShape, forward_flops
from rlhf_bench.ledger import Cost
from rlhf_bench.sequences import layout_of, micro_batch, split_by_tokens
from rlhf_bench.types import Row


class ScorerActor:
    def __init__(self, cpus: int, gpus: int):
        import torch

        torch.set_num_threads(cpus)
        self.device = "cuda" if gpus else "cpu"
        self.model: Any = None
        self.offset = 0.0

    def load(self, path: str, dtype: str) -> ModelShape:
        """A folder of AutoModelForSequenceClassification with one label; `reward.json` beside it holds the score's offset."""
        from rlhf_bench.models import load_model

        self.model = load_model(path, "scalar", dtype, 0).eval().requires_grad_(False).to(self.device)
        side = Path(path) / "reward.json"
        self.offset = json.loads(side.read_text())["offset"] if side.exists() else 0.0
        return ModelShape.of(self.model.lm)

    def score(self, rows: Sequence[Row], plan: list[list[int]]) -> dict[int, list[float]]:
        """Scores read at each response's last token; `{row index: a score per response}`."""
        import torch

        found: dict[int, list[float]] = {}
        with torch.no_grad():
            for indices in plan:
                _, scores = self.model(micro_batch([rows[i] for i in indices]).to(self.device))
                flat = iter((scores.cpu().numpy() - self.offset).tolist())
                found |= {i: [next(flat) for _ in rows[i].responses] for i in indices}
        return found


class RewardScorer:
    """The driver's handle."""

    def __init__(
        self,
        actors: Sequence[Any],
        cpus: int,
        gpus: int,
        tokens_per_micro_batch: int,
        engine_time: EngineTime,
    ):
        self.engine_time = engine_time
        self.actors = list(actors)
        self.devices = len(actors) * (gpus or cpus)
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.shape: ModelShape | None = None

    def load(self, path: Path, dtype: str) -> None:
        self.shape = self.engine_time.during(ray.get, [a.load.remote(str(path), dtype) for a in self.actors])[0]

    def score(self, rows: Sequence[Row]) -> tuple[list[list[float]], Cost]:
        """Per row, a score per response."""
        assert self.shape is not None, "load comes first"
        began = perf_counter()
        plan = split_by_tokens(rows, len(self.actors), self.tokens_per_micro_batch)
        with self.engine_time.at_work():
            ref = ray.put(list(rows))
        found: dict[int, list[float]] = {}
        asked = [a.score.remote(ref, p) for a, p in zip(self.actors, plan, strict=True)]
        for part in self.engine_time.during(ray.get, asked):
            found |= part
        flops = sum(
            forward_flops(self.shape, layout_of(part), sum(len(r.responses) for r in part))
            for part in ([rows[i] for i in indices] for rank in plan for indices in rank)
        )
        scores = [found[i] for i in range(len(rows))]
        cost = Cost(
            flops=flops,
            scored_tokens=sum(r.tokens for r in rows),
            device_seconds=(perf_counter() - began) * self.devices,
        )
        return scores, cost
