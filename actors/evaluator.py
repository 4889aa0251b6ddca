"""The evaluator: evaluates snapshots of the policy with an engine of its own, while training continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import ray

from actors.monitoring.ray_metrics import queue_depth
from actors.monitoring.trace import Traced, traced
from actors.rollout.vllm_engine import Completion, VLLMEngine
from actors.supervision.failures import Replace, no_replacement
from actors.supervision.heartbeat import Heartbeat
from actors.weight_sync import as_tensor
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import Evaluation, Judgement, Pair, Prompt, Row, SplitResult
from rlhf_bench.diagnostics.likelihood import sequence_kl
from rlhf_bench.diagnostics.panel import Panel
from rlhf_bench.diagnostics.probes import make_probes
from rlhf_bench.diagnostics.scoring import Scorer
from rlhf_bench.models.flops import ModelShape, generation_flops
from rlhf_bench.recipe import EvaluationSettings, RolloutPlacement

PROBE_SEED, KL_SEED, SCORE_SEED = 11, 12, 13
"""The same for every arm and seed: evaluations sample with common random numbers."""

PROBE_CANDIDATES = 4
"""Samples of the reference per held-out pair, of which the first that is no side of a pair becomes a probe."""


@dataclass(frozen=True)
class HeldOut:
    """What a policy is evaluated on, the same for every arm, seed and mark."""

    prompts: Mapping[str, Sequence[Prompt]]  # split -> prompts, encoded; the first split is the main one
    pairs: Mapping[str, Sequence[Pair]]  # split -> pairs that are never trained on
    training: Sequence[Pair]  # pairs that arms train on: no probe is a side of one
    settings: EvaluationSettings
    max_response_tokens: int
    tokens_per_micro_batch: int
    eos_id: int
    judge: Callable[[Prompt, str], Judgement] = field(repr=False)
    decode: Callable[[Sequence[int]], str] = field(repr=False)


class EvaluatorActor(Traced, Heartbeat):
    @traced
    def __init__(self, path: str, placement: RolloutPlacement, max_length: int, dtype: str):
        self.engine = VLLMEngine(path, placement, max_length, dtype, "object_store")
        self.devices = placement.gpus or placement.cpus
        self.device = "cuda" if placement.gpus else "cpu"
        self.dtype, self.max_length = dtype, max_length

    @traced
    def begin(self, held_out: HeldOut, reference: str, charged: bool) -> tuple[str, ...]:
        """Set what policies are evaluated on, and the one that KL, log-ratios and probes refer to. Returns what a reader of the
        probe sets must know, a sentence each. `charged`: the cost of this is added to the next evaluation's."""
        from rlhf_bench.models.loading import load_model

        self.held_out = held_out
        self.reference = load_model(reference, "causal", self.dtype, 0).eval().requires_grad_(False).to(self.device)
        self.policy = load_model(reference, "causal", self.dtype, 0).eval().to(self.device)
        self.shape = ModelShape.of(self.policy.lm)
        self.scorer = Scorer(self.shape, held_out.tokens_per_micro_batch, self.device)
        self._reset_counts()

        began = perf_counter()
        main = next(iter(held_out.prompts))
        pairs = held_out.pairs.get(main, ())
        probes = make_probes(
            pairs, self._reference_samples([p.prompt for p in pairs]), held_out.training, held_out.eos_id,
            self.policy.lm.config.vocab_size, self.max_length, PROBE_SEED,
        )  # fmt: skip
        self.panel = Panel(self.reference, held_out.pairs, main, probes, held_out.settings.gradient_pairs, self.scorer)
        self.setup_seconds, self.setup_flops = perf_counter() - began, self._flops()
        if not charged:
            self.setup_seconds = self.setup_flops = 0.0
            self._reset_counts()
        return probes.notes

    @traced
    def evaluate(self, weights: list[ray.ObjectRef], version: int) -> Evaluation:
        """Scores per split; held-out pairs, probes and gradients; KL, entropy and confidence under the policy's samples."""
        began = perf_counter()
        arrays = ray.get(weights[0])
        self.engine.load(arrays, version)
        self._load_policy(arrays)
        splits = {name: self._score(prompts) for name, prompts in self.held_out.prompts.items()}
        diagnosed = self.panel.look(self.policy)
        own_cost = {
            "diagnostics/seconds": diagnosed.seconds + self.setup_seconds,
            "diagnostics/flops": diagnosed.flops + self.setup_flops,
        }
        numbers = diagnosed.numbers | self._kl() | own_cost
        seconds = perf_counter() - began + self.setup_seconds
        cost = Cost(
            flops=self._flops(), generated_tokens=self.counts["generated_tokens"],
            scored_tokens=self.scorer.scored_tokens, judge_queries=self.counts["judge_queries"],
            device_seconds=seconds * self.devices,
        )  # fmt: skip
        self.setup_seconds = self.setup_flops = 0.0
        self._reset_counts()
        return Evaluation(splits, numbers, cost.as_dict(), seconds, diagnosed.pairs)

    def _flops(self) -> float:
        return self.counts["generation_flops"] + self.scorer.flops

    def _reset_counts(self) -> None:
        self.counts = dict.fromkeys(("generation_flops", "generated_tokens", "judge_queries"), 0.0)
        self.scorer.flops = self.scorer.scored_tokens = 0.0

    def _reference_samples(self, prompts: Sequence[Prompt]) -> list[list[tuple[int, ...]]]:
        """`PROBE_CANDIDATES` samples of the reference per prompt. The engine holds its weights afterwards."""
        if not prompts:
            return []
        self.engine.load(self._arrays(self.reference), 0)
        found = self._generate([p for p in prompts for _ in range(PROBE_CANDIDATES)], 1.0, PROBE_SEED)
        return [[f.ids for f in found[at : at + PROBE_CANDIDATES]] for at in range(0, len(found), PROBE_CANDIDATES)]

    def _arrays(self, model: Any) -> dict[str, np.ndarray]:
        """Weights by Hugging Face name, as the learner sends them: bfloat16 as its bits."""
        import torch

        parameters = {name: p.detach().cpu() for name, p in model.lm.named_parameters()}
        return {n: (p if p.dtype == torch.float32 else p.view(torch.uint16)).numpy() for n, p in parameters.items()}

    def _load_policy(self, arrays: Mapping[str, np.ndarray]) -> None:
        own = dict(self.policy.lm.named_parameters())
        for name, array in arrays.items():
            own[name].data.copy_(as_tensor(array))

    def _generate(self, prompts: Sequence[Prompt], temperature: float, seed: int) -> list[Completion]:
        requests = [(p.token_ids, seed * 1_000_003 + i) for i, p in enumerate(prompts)]
        found = self.engine.generate(requests, self.held_out.max_response_tokens, temperature, self.held_out.eos_id)
        self.counts["generated_tokens"] += sum(len(f.ids) for f in found)
        self.counts["generation_flops"] += generation_flops(
            self.shape, [(len(p.token_ids), f.cached, len(f.ids)) for p, f in zip(prompts, found, strict=True)]
        )
        return found

    def _score(self, prompts: Sequence[Prompt]) -> SplitResult:
        shown, each = self.held_out.settings.sample_prompts, self.held_out.settings.samples_per_prompt
        prompts = [p for p in prompts for _ in range(each)]
        found = self._generate(prompts, self.held_out.settings.temperature, SCORE_SEED)
        texts = [self.held_out.decode(f.ids) for f in found]
        # A response that was cut off has no end: no judge calls it right.
        judged = [
            self.held_out.judge(p, t) if f.finished else Judgement(0.0)
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
            response_length=float(np.mean([len(f.ids) for f in found])),
            samples=tuple((p.id, p.text, p.answer, t, j.score) for p, t, j in firsts),
        )  # fmt: skip

    def _kl(self) -> dict[str, float]:
        """Sequence KL(π‖π0), entropy and argmax confidence, over samples of π at temperature 1."""
        prompts = next(iter(self.held_out.prompts.values()))[: self.held_out.settings.kl_samples]
        found = self._generate(prompts, 1.0, KL_SEED)
        rows = [Row(p.id, p.token_ids, (f.ids,)) for p, f in zip(prompts, found, strict=True)]
        policy, reference = self.scorer.score(self.policy, rows), self.scorer.score(self.reference, rows)
        kl = sequence_kl(policy.logprobs, reference.logprobs)
        return {"kl": kl, "entropy": policy.entropy, "argmax_confidence": policy.confidence}


@dataclass(frozen=True)
class Submitted:
    """A snapshot whose evaluation is pending."""

    label: Any
    began: float  # `perf_counter`
    weights: ray.ObjectRef
    version: int


class Evaluator:
    """The driver's handle: hand in snapshots, collect results when they are there."""

    def __init__(self, actor: Any, engine_time: EngineTime, replace: Replace = no_replacement):
        self.engine_time, self.replace = engine_time, replace
        self.actor = actor
        self.begun: tuple[HeldOut, str] | None = None
        self.charged = False  # whether an evaluation was charged with the cost of `begin`
        self.pending: list[tuple[Submitted, ray.ObjectRef]] = []
        self.beginning: ray.ObjectRef | None = None  # of an evaluator in a lost one's place

    def begin(self, held_out: HeldOut, reference: str, charged: bool = True) -> tuple[str, ...]:
        """What a reader of the probe sets must know, a sentence each. `charged`: the cost of this is added to the next
        evaluation's."""
        self.begun, self.charged = (held_out, reference), not charged
        with self.engine_time.busy("evaluation"):
            while True:
                try:
                    return ray.get(self.actor.begin.remote(held_out, reference, charged))
                except Exception as error:
                    self.actor = self.replace(0, error)

    def submit(self, weights: ray.ObjectRef, version: int, label: Any) -> None:
        """Start an evaluation; `label` comes back with its result."""
        self._submit(Submitted(label, perf_counter(), weights, version))

    def collect(self, wait: bool = False) -> list[tuple[Any, Evaluation]]:
        """Results that are there, in order; with `wait`, of all that was submitted."""
        done = []
        while self.pending:
            submitted, ref = self.pending[0]
            if not wait and not ray.wait([ref], timeout=0)[0]:
                break
            try:
                evaluation = self._result(ref)
            except Exception as error:
                self._begin_again(error)
                continue
            self.charged = True
            self.engine_time.record_background("evaluation", "evaluator", submitted.began, evaluation.seconds)
            done.append((submitted.label, evaluation))
            self.pending.pop(0)
            queue_depth("evaluator", len(self.pending))
        return done

    def _result(self, ref: ray.ObjectRef) -> Evaluation:
        if self.beginning is not None:  # first: its error says why there is no evaluation
            self.engine_time.during("evaluation", ray.get, self.beginning)
            self.beginning = None
        return self.engine_time.during("evaluation", ray.get, ref)

    def forget(self) -> None:
        """Drop all that was submitted."""
        self.pending.clear()

    def _submit(self, one: Submitted) -> None:
        self.pending.append((one, self.actor.evaluate.remote([one.weights], one.version)))
        queue_depth("evaluator", len(self.pending))

    def _begin_again(self, error: Exception) -> None:
        """Hand everything that is pending to another evaluator in the place of a lost one, without waiting: training
        continues."""
        self.actor = self.replace(0, error)
        if self.begun is not None:
            self.beginning = self.actor.begin.remote(*self.begun, not self.charged)
        pending, self.pending = self.pending, []
        for one, _ in pending:
            self._submit(one)
