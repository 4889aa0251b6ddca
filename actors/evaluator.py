"""The evaluator: evaluates snapshots of the policy with an engine of its own, while training continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import ray

from actors.held_out import HeldOut
from actors.monitoring.ray_metrics import queue_depth
from actors.monitoring.trace import Traced, traced
from actors.rollout.vllm_engine import Completion, VLLMEngine
from actors.supervision.failures import Replace, no_replacement
from actors.supervision.heartbeat import Heartbeat
from actors.weight_sync import as_tensor
from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Evaluation, Judgement, Pair, PairEvaluation, Prompt, Row, SplitResult
from rlhf_bench.diagnostics.likelihood import kl_numbers
from rlhf_bench.diagnostics.pair_gradients import why_not_together
from rlhf_bench.diagnostics.panel import Panel
from rlhf_bench.diagnostics.probes import Sides, make_probes
from rlhf_bench.diagnostics.reward_look import RewardModelLook, look
from rlhf_bench.diagnostics.scores import draws_seed, mean_parts, prompt_scores
from rlhf_bench.diagnostics.scoring import Scorer
from rlhf_bench.models.flops import ModelShape, generation_flops
from rlhf_bench.recipe import RolloutPlacement

PROBE_SEED = 11
"""Probes are the same for every arm and seed."""

PROBE_CANDIDATES = 8
"""Samples of the reference per held-out pair, of which the first that is no side of a pair becomes a probe. Sides of
on-policy pairs are its likeliest answers, so several may be needed."""


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
        self.engine_has_policy = False  # whether the engine has the policy's weights
        self.greedy: dict[str, list[Completion]] = {}  # split -> the likeliest responses by the engine's weights
        self.shape = ModelShape.of(self.policy.lm)
        self.scorer = Scorer(self.shape, held_out.tokens_per_micro_batch, self.device)
        self.reward_models = [
            RewardModelLook.load(name, path, self.dtype, self.device, held_out.tokens_per_micro_batch)
            for name, path in held_out.reward_models.items()
        ]
        self._reset_counts()

        began = perf_counter()
        main = next(iter(held_out.prompts))
        pairs, further = held_out.pairs.get(main, ()), [p for found in held_out.own_pairs.values() for p in found]
        samples = self._reference_samples(pairs, Sides.of(pairs, held_out.training, further))
        probes = make_probes(
            pairs, samples, held_out.training, held_out.end_ids, self.policy.lm.config.vocab_size, self.max_length,
            PROBE_SEED, further,
        )  # fmt: skip
        self.panel = Panel(
            self.reference, held_out.pairs, main, probes, held_out.settings.gradient_pairs, self.scorer,
            held_out.own_pairs,
        )  # fmt: skip
        self.setup_seconds, self.setup_flops = perf_counter() - began, self._flops()
        if not charged:
            self.setup_seconds = self.setup_flops = 0.0
            self._reset_counts()
        return (*probes.notes, *self._note_on_gradients())

    @traced
    def evaluate(
        self,
        weights: list[ray.ObjectRef],
        version: int,
        draws: str,
        temperature: float | None = None,
        own: str | None = None,
    ) -> Evaluation:
        """Scores per split, KL and entropy on samples that `draws` names, at the recipe's temperature; and likelihoods of
        held-out pairs, probes and gradients, which no temperature changes: not with one that is given here. `own`: the kind
        of own pairs that is looked at; None for all of them."""
        began = perf_counter()
        arrays = ray.get(weights[0])
        # A base policy is evaluated at several temperatures, and sampled for probes before.
        if not (self.engine_has_policy and _equal(arrays, self._arrays(self.policy))):
            self.engine_has_policy = False
            self._load_engine(arrays, version)
            self._load_policy(arrays)
            self.engine_has_policy = True
        if temperature is None:  # what an evaluation costs does not depend on the one before
            self.greedy.clear()
        # Of the reference's own weights, its log-probabilities are known, and KL takes one model's pass.
        is_reference = _equal(arrays, self._arrays(self.reference))
        at, seed = temperature or self.held_out.settings.temperature, draws_seed(draws)
        splits, numbers, pairs = dict[str, SplitResult](), dict[str, float](), tuple[PairEvaluation, ...]()
        for split, prompts in self.held_out.prompts.items():
            splits[split], sampled, judged = self._score(split, prompts, at, seed)
            if not numbers:  # the first split is the main one
                numbers |= self._compare(self.reference if is_reference else self.policy, prompts, sampled, at)
                if temperature is None:
                    numbers |= self._rewards(prompts, sampled, judged)
        if temperature is None:
            diagnosed = self.panel.look(self.policy, own=own, is_reference=is_reference)
            numbers, pairs = numbers | diagnosed.numbers, diagnosed.pairs
            numbers["diagnostics/seconds"] = diagnosed.seconds + self.setup_seconds
            numbers["diagnostics/flops"] = diagnosed.flops + self.setup_flops
        seconds = perf_counter() - began + self.setup_seconds
        cost = Cost(
            flops=self._flops(), generated_tokens=self.counts["generated_tokens"],
            scored_tokens=sum(one.scored_tokens for one in self._scorers()), judge_queries=self.counts["judge_queries"],
            device_seconds=seconds * self.devices,
        )  # fmt: skip
        self.setup_seconds = self.setup_flops = 0.0
        self._reset_counts()
        return Evaluation(splits, numbers, cost.as_dict(), seconds, pairs)

    def _note_on_gradients(self) -> list[str]:
        why_not = why_not_together(self.policy, self.device) if self.panel.gradient_rows else None
        return (
            []
            if why_not is None
            else [f"gradients of held-out pairs are taken pair by pair, which takes longer: {why_not}"]
        )

    def _flops(self) -> float:
        return self.counts["generation_flops"] + sum(one.flops for one in self._scorers())

    def _scorers(self) -> list[Scorer]:
        return [self.scorer, *(one.scorer for one in self.reward_models)]

    def _reset_counts(self) -> None:
        self.counts = dict.fromkeys(("generation_flops", "generated_tokens", "judge_queries"), 0.0)
        for one in self._scorers():
            one.flops = one.scored_tokens = 0.0

    def _reference_samples(self, pairs: Sequence[Pair], known: Sides) -> list[list[tuple[int, ...]]]:
        """Samples of the reference per pair, up to the first that may be a probe, and at most `PROBE_CANDIDATES`. The engine holds
        its weights afterwards."""
        if not pairs:
            return []
        self._load_engine(self._arrays(self.reference), 0)
        self.engine_has_policy = True  # the policy is the reference so far
        found: list[list[tuple[int, ...]]] = [[] for _ in pairs]
        left = list(range(len(pairs)))
        for candidate in range(PROBE_CANDIDATES):
            draws = [i * PROBE_CANDIDATES + candidate for i in left]
            for i, one in zip(left, self._draw([pairs[i].prompt for i in left], 1.0, PROBE_SEED, draws), strict=True):
                found[i].append(one.ids)
            left = [i for i in left if not known.allow(pairs[i].prompt.token_ids, found[i][-1], self.max_length)]
            if not left:
                break
        return found

    def _arrays(self, model: Any) -> dict[str, np.ndarray]:
        """Weights by Hugging Face name, as the learner sends them: bfloat16 as its bits."""
        import torch

        parameters = {name: p.detach().cpu() for name, p in model.lm.named_parameters()}
        return {n: (p if p.dtype == torch.float32 else p.view(torch.uint16)).numpy() for n, p in parameters.items()}

    def _load_engine(self, arrays: Mapping[str, np.ndarray], version: int) -> None:
        self.greedy.clear()
        self.engine.load(arrays, version)
        if self.engine.fault is not None:
            raise RunFailed(f"evaluation: of the weights of update {version}, {self.engine.fault}")

    def _load_policy(self, arrays: Mapping[str, np.ndarray]) -> None:
        own = dict(self.policy.lm.named_parameters())
        for name, array in arrays.items():
            own[name].detach().copy_(as_tensor(array))

    def _draw(
        self, prompts: Sequence[Prompt], temperature: float, seed: int, draws: Sequence[int | None]
    ) -> list[Completion]:
        """`draws`: which of the seed's draws each response is; None for the likeliest tokens."""
        seeds = [None if i is None else seed * 1_000_003 + i for i in draws]
        requests = [(p.token_ids, own) for p, own in zip(prompts, seeds, strict=True)]
        found = self.engine.generate(requests, self.held_out.max_response_tokens, temperature, self.held_out.end_ids)
        self.counts["generated_tokens"] += sum(len(f.ids) for f in found)
        self.counts["generation_flops"] += generation_flops(
            self.shape, [(len(p.token_ids), f.cached, len(f.ids)) for p, f in zip(prompts, found, strict=True)]
        )
        return found

    def _score(
        self, split: str, prompts: Sequence[Prompt], temperature: float, seed: int
    ) -> tuple[SplitResult, list[Completion], list[float]]:
        """A split's scores; the sampled responses, `samples_per_prompt` of each prompt, and the judge's score of each."""
        settings = self.held_out.settings
        each = settings.samples_per_prompt
        repeated = [p for p in prompts for _ in range(each)]
        # No temperature changes the likeliest tokens. What is drawn is drawn together: a step of the engine reads all weights,
        # however few sequences it decodes.
        greedy_too = [] if split in self.greedy else list(prompts)
        draws = [*range(len(repeated)), *(None for _ in greedy_too)]
        found = self._draw([*repeated, *greedy_too], temperature, seed, draws)
        sampled, likeliest = found[: len(repeated)], found[len(repeated) :]
        greedy = self._judged(prompts, self.greedy.setdefault(split, likeliest))
        judged = self._judged(repeated, sampled)
        scores = np.array([j.score for _, j in judged]).reshape(len(prompts), each)
        firsts = zip(prompts, judged[::each], strict=True)
        result = SplitResult(
            prompts=prompt_scores(
                [p.id for p in prompts], scores, np.array([j.score for _, j in greedy]), settings.best_of,
                self._expected(split, prompts, temperature),
            ),
            parts=mean_parts([j for _, j in judged]),
            response_length=float(np.mean([len(f.ids) for f in sampled])),
            cut_off=float(np.mean([not f.finished for f in sampled])),
            samples=tuple((p.id, p.text, p.answer, t, j.score) for p, (t, j) in firsts)[: settings.sample_prompts],
        )  # fmt: skip
        return result, sampled, [j.score for _, j in judged]

    def _judged(self, prompts: Sequence[Prompt], found: Sequence[Completion]) -> list[tuple[str, Judgement]]:
        """Text and judgement of each response. One that was cut off has no end: no judge calls it right."""
        self.counts["judge_queries"] += len(found)
        texts = [self.held_out.decode(f.ids) for f in found]
        asked = [(p, text if f.finished else "") for p, text, f in zip(prompts, texts, found, strict=True)]
        self.held_out.settle(asked)
        judgements = [self.held_out.judge(prompt, text) for prompt, text in asked]
        return [
            (text, judgement if f.finished else Judgement(0.0, weights=judgement.weights))
            for text, judgement, f in zip(texts, judgements, found, strict=True)
        ]

    def _expected(self, split: str, prompts: Sequence[Prompt], temperature: float) -> np.ndarray | None:
        """The probability of each prompt's right response, which is the expected score; None where samples are scored."""
        if split not in self.held_out.right:
            return None
        right, room = self.held_out.right[split], self.held_out.max_response_tokens
        rows = [Row(p.id, p.token_ids, (ids,)) for p, ids in zip(prompts, right, strict=True)]
        fits = np.array([len(ids) <= room for ids in right])  # a longer one is always cut off
        return np.where(fits, np.exp(self.scorer.score(self.policy, rows, temperature)), 0.0)

    def _rewards(
        self, prompts: Sequence[Prompt], sampled: Sequence[Completion], judged: Sequence[float]
    ) -> Mapping[str, float]:
        """What reward models say of the samples that ended: as in training, others get no score."""
        each = self.held_out.settings.samples_per_prompt
        own = [sampled[i * each : (i + 1) * each] for i in range(len(prompts))]
        rows = [
            Row(p.id, p.token_ids, tuple(f.ids for f in found if f.finished))
            for p, found in zip(prompts, own, strict=True)
        ]
        finished = [score for score, f in zip(judged, sampled, strict=True) if f.finished]
        return look(self.reward_models, rows, finished)

    def _compare(
        self, policy: Any, prompts: Sequence[Prompt], sampled: Sequence[Completion], temperature: float
    ) -> dict[str, float]:
        """KL to the reference, entropy and argmax confidence, over the policy's samples. `temperature`: theirs; the reference
        has the recipe's."""
        settings, each = self.held_out.settings, self.held_out.settings.samples_per_prompt
        rows = [
            Row(p.id, p.token_ids, tuple(f.ids for f in sampled[i * each : (i + 1) * each]))
            for i, p in enumerate(prompts[: settings.kl_prompts])
        ]
        found = self.scorer.compare(policy, self.reference, rows, temperature, settings.temperature)
        numbers = {"entropy": found.entropy, "argmax_confidence": found.confidence}
        return kl_numbers(found.kl.reshape(-1, each)) | numbers


def _equal(some: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(array, others[name]) for name, array in some.items())


@dataclass(frozen=True)
class Submitted:
    """A snapshot whose evaluation is pending."""

    label: Any
    began: float  # `perf_counter`
    weights: ray.ObjectRef
    version: int
    draws: str
    temperature: float | None
    own: str | None


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

    def submit(
        self,
        weights: ray.ObjectRef,
        version: int,
        label: Any,
        *,
        draws: str,
        temperature: float | None = None,
        own: str | None = None,
    ) -> None:
        """Start an evaluation; `label` comes back with its result. For the others see `EvaluatorActor.evaluate`."""
        self._submit(Submitted(label, perf_counter(), weights, version, draws, temperature, own))

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
        found = self.actor.evaluate.remote([one.weights], one.version, one.draws, one.temperature, one.own)
        self.pending.append((one, found))
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
