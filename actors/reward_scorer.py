"""The reward model: a Hugging Face sequence classifier in actors of its own, batched by length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import ray

from rlhf_bench.engine_time import EngineTime
from rlhf_bench.flops import ModelShape, forward_flops
from rlhf_bench.ledger import Cost
from rlhf_bench.sequences import split_by_tokens
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
        import torch
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=getattr(torch, dtype))
        self.model = model.eval().requires_grad_(False).to(self.device)
        side = Path(path) / "reward.json"
        self.offset = json.loads(side.read_text())["offset"] if side.exists() else 0.0
        return ModelShape.of(model)

    def score(self, sequences: Sequence[tuple[int, ...]], plan: list[list[int]]) -> dict[int, float]:
        """Scores read at each sequence's last token; `{index: score}`."""
        import torch

        found: dict[int, float] = {}
        with torch.no_grad():
            for indices in plan:
                lengths = [len(sequences[i]) for i in indices]
                ids = np.zeros((len(indices), max(lengths)), dtype=np.int64)
                for row, i in enumerate(indices):
                    ids[row, : lengths[row]] = sequences[i]
                mask = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
                hidden = self.model.base_model(
                    input_ids=torch.from_numpy(ids).to(self.device),
                    attention_mask=torch.from_numpy(mask.astype(np.int64)).to(self.device),
                    use_cache=False,
                ).last_hidden_state
                last = hidden[torch.arange(len(indices)), torch.tensor(lengths) - 1]
                scores = self.model.score(last).float().squeeze(-1).cpu().numpy() - self.offset
                found |= {i: float(s) for i, s in zip(indices, scores, strict=True)}
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
        single = [Row("", r.prompt_ids, (a,)) for r in rows for a in r.responses]
        sequences = [(*r.prompt_ids, *r.responses[0]) for r in single]
        plan = split_by_tokens(single, len(self.actors), self.tokens_per_micro_batch)
        with self.engine_time.at_work():
            ref = ray.put(sequences)
        found: dict[int, float] = {}
        asked = [a.score.remote(ref, p) for a, p in zip(self.actors, plan, strict=True)]
        for part in self.engine_time.during(ray.get, asked):
            found |= part
        flops = sum(
            forward_flops(self.shape, len(b), max(single[i].tokens for i in b), len(b)) for rank in plan for b in rank
        )
        flat = iter(range(len(sequences)))
        scores = [[found[next(flat)] for _ in r.responses] for r in rows]
        cost = Cost(
            flops=flops, scored_tokens=sum(map(len, sequences)), device_seconds=(perf_counter() - began) * self.devices
        )
        return scores, cost
