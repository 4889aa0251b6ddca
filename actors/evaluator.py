"""The evaluator: looks at a snapshot of the policy with an engine of its own, while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import ray

from actors.rollout_pool import load_from_object_store
from actors.vllm_engine import VLLMEngine
from rlhf_bench.flops import ModelShape, forward_flops, generation_flops
from rlhf_bench.ledger import Cost
from rlhf_bench.recipe import EvaluationSettings, RolloutPlacement
from rlhf_bench.sequences import micro_batch, split_by_tokens
from rlhf_bench.types import Evaluation, Judgement, Pair, Prompt, Row, SplitResult

PAIR_SEED, KL_SEED, SCORE_SEED = 11, 12, 13  # evaluation samples alike for every arm and seed: common random numbers


@dataclass(frozen=True)
class HeldOut:
    """What is looked at, the same for every arm, seed and mark."""

    prompts: Mapping[str, Sequence[Prompt]]  # split -> prompts, encoded
    pairs: Sequence[Pair]
    settings: EvaluationSettings
    max_response_tokens: int
    tokens_per_micro_batch: int
    eos_id: int
    judge: Callable[[Prompt, str], Judgement] = field(repr=False)
    decode: Callable[[Sequence[int]], str] = field(repr=False)


class EvaluatorActor:
    def __init__(self, path: str, placement: RolloutPlacement, max_length: int, dtype: str):
        self.engine = VLLMEngine(path, placement, max_length, dtype, "object_store")
        self.devices = placement.gpus or placement.cpus
        self.device = "cuda" if placement.gpus else "cpu"
        self.dtype = dtype

    def begin(self, held_out: HeldOut, reference: str) -> None:
        """Set what is looked at, and the policy that KL and log-ratios refer to."""
        from rlhf_bench.models import load_model

        self.held_out = held_out
        self.reference = load_model(reference, "causal", self.dtype, 0).eval().requires_grad_(False).to(self.device)
        self.policy = load_model(reference, "causal", self.dtype, 0).eval().requires_grad_(False).to(self.device)
        self.shape = ModelShape.of(self.policy.lm)
        self.counts = dict.fromkeys(("flops", "generated_tokens", "scored_tokens", "judge_queries"), 0.0)
        self.pair_rows = [Row(p.id, p.prompt.token_ids, (p.chosen_ids, p.rejected_ids)) for p in held_out.pairs]
        self.reference_pairs = self._sums(self.reference, self.pair_rows)[0] if self.pair_rows else np.zeros((0, 2))

    def evaluate(self, weights: list[ray.ObjectRef], version: int) -> Evaluation:
        """Scores per split, likelihoods of the held-out pairs, sequence KL and entropy under samples of the policy."""
        began = perf_counter()
        load_from_object_store(self.engine, weights[0], version)
        self._load_policy(ray.get(weights[0]))
        self.counts = dict.fromkeys(self.counts, 0.0)
        splits = {name: self._score(prompts) for name, prompts in self.held_out.prompts.items()}
        numbers = self._likelihoods() | self._kl()
        seconds = perf_counter() - began
        return Evaluation(
            splits, numbers, Cost(**self.counts, device_seconds=seconds * self.devices).as_dict(), seconds
        )

    def _load_policy(self, arrays: Mapping[str, np.ndarray]) -> None:
        import torch

        own = dict(self.policy.lm.named_parameters())
        for name, array in arrays.items():
            tensor = torch.from_numpy(array.copy())
            own[name].data.copy_(tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor)

    def _generate(self, prompts: Sequence[Prompt], temperature: float, seed: int) -> list[dict[str, Any]]:
        requests = [(p.token_ids, seed * 1_000_003 + i) for i, p in enumerate(prompts)]
        found = self.engine.generate(requests, self.held_out.max_response_tokens, temperature, self.held_out.eos_id)
        self.counts["generated_tokens"] += sum(len(f["ids"]) for f in found)
        self.counts["flops"] += generation_flops(
            self.shape, [(len(p.token_ids), f["cached"], len(f["ids"])) for p, f in zip(prompts, found, strict=True)]
        )
        return found

    def _score(self, prompts: Sequence[Prompt]) -> SplitResult:
        shown, each = self.held_out.settings.sample_prompts, self.held_out.settings.samples_per_prompt
        prompts = [p for p in prompts for _ in range(each)]
        found = self._generate(prompts, self.held_out.settings.temperature, SCORE_SEED)
        texts = [self.held_out.decode(f["ids"]) for f in found]
        # A response that was cut off is judged as what it is: text without an end, which no judge calls right.
        judged = [
            self.held_out.judge(p, t) if f["finished"] else Judgement(0.0)
            for p, t, f in zip(prompts, texts, found, strict=True)
        ]
        self.counts["judge_queries"] += len(judged)
        parts = {
            key: float(np.mean([j.parts.get(key, 0.0) for j in judged]))
            for key in sorted({k for j in judged for k in j.parts})
        }
        firsts = list(zip(prompts, texts, judged, strict=True))[::each][:shown]
        return SplitResult(
            score=float(np.mean([j.score for j in judged])), parts=parts,
            response_length=float(np.mean([len(f["ids"]) for f in found])),
            samples=tuple((p.id, p.text, p.reference, t, j.score) for p, t, j in firsts),
        )  # fmt: skip

    def _sums(self, model: Any, rows: Sequence[Row]) -> tuple[np.ndarray, float]:
        """Log-probability of every response, [rows, k]; mean entropy per response token."""
        import torch

        sums = np.zeros((len(rows), len(rows[0].responses)))
        entropies = []
        (plan,) = split_by_tokens(rows, 1, self.held_out.tokens_per_micro_batch)
        with torch.no_grad():
            for indices in plan:
                batch = micro_batch([rows[i] for i in indices], 0).to(self.device)
                logprobs, entropy = model(batch)
                total = torch.zeros(batch.responses, device=logprobs.device).index_add(
                    0, batch.response_index, logprobs
                )
                sums[indices] = total.cpu().numpy().reshape(len(indices), -1)
                entropies.append(entropy.cpu().numpy())
                rows_here, length = batch.input_ids.shape
                self.counts["scored_tokens"] += len(batch.targets)
                self.counts["flops"] += forward_flops(self.shape, rows_here, length, len(batch.targets))
        return sums, float(np.concatenate(entropies).mean())

    def _likelihoods(self) -> dict[str, float]:
        if not self.pair_rows:
            return {}
        sums, _ = self._sums(self.policy, self.pair_rows)
        ratios = sums - self.reference_pairs
        margin = ratios[:, 0] - ratios[:, 1]
        return {
            "chosen_logprob": float(sums[:, 0].mean()), "rejected_logprob": float(sums[:, 1].mean()),
            "chosen_logratio": float(ratios[:, 0].mean()), "rejected_logratio": float(ratios[:, 1].mean()),
            "margin": float(margin.mean()), "accuracy": float((margin > 0).mean()),
        }  # fmt: skip

    def _kl(self) -> dict[str, float]:
        """Monte-Carlo KL(π‖π0) of whole responses: the mean of log π − log π0 over samples of π at temperature 1 (nats)."""
        prompts = next(iter(self.held_out.prompts.values()))[: self.held_out.settings.kl_samples]
        found = self._generate(prompts, 1.0, KL_SEED)
        rows = [Row(p.id, p.token_ids, (f["ids"],)) for p, f in zip(prompts, found, strict=True)]
        policy, entropy = self._sums(self.policy, rows)
        reference, _ = self._sums(self.reference, rows)
        return {"kl": float((policy - reference).mean()), "entropy": entropy}


class Evaluator:
    """The driver's handle: hand in snapshots, collect results when they are there."""

    def __init__(self, actor: Any):
        self.actor = actor
        self.pending: list[tuple[Any, ray.ObjectRef]] = []

    def begin(self, held_out: HeldOut, reference: str) -> None:
        ray.get(self.actor.begin.remote(held_out, reference))

    def submit(self, weights: ray.ObjectRef, version: int, label: Any) -> None:
        """Start an evaluation; `label` comes back with its result."""
        self.pending.append((label, self.actor.evaluate.remote([weights], version)))

    def collect(self, wait: bool = False) -> list[tuple[Any, Evaluation]]:
        """Results that are there, in order; with `wait`, all that were submitted."""
        done = []
        while self.pending:
            label, ref = self.pending[0]
            if not wait and not ray.wait([ref], timeout=0)[0]:
                break
            done.append((label, ray.get(ref)))
            self.pending.pop(0)
        return done
