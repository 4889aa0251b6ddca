"""Roles whose answers are scripted: they implement the Protocols of `rlhf_bench.training.roles` and start no process."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.types import Evaluation, Group, PromptScore, Sample, SplitResult
from rlhf_bench.methods.base import SideGradients
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.tokenizer import encode_response
from rlhf_bench.training.roles import RolloutChunk
from rlhf_bench.training.rollouts import StartSamples

STEP, MEASURING, SIDES = Cost(flops=8.0), Cost(flops=2.0), Cost(flops=5.0)
"""What the scripted learner asks for an optimizer step, a forward pass, and both sides' gradients."""
TINY = ModelShape(1, layers=1, attention_width=0, head_weights=0, parameters=1, linear_width=1, vocabulary=20)


class FreshStartSamples(StartSamples):
    """Nothing has been drawn yet. Its folder is removed with it."""

    def __init__(self):
        self.aside = tempfile.TemporaryDirectory()
        super().__init__(Path(self.aside.name), "base")


class Pool:
    """Answers with the right answer, a wrong one and an unfinished one, in turn, and remembers what it was asked.

    `answers`: the kinds, in turn; a kind that is none of these three is an answer itself. `chunk`: prompts in a chunk; None
    gives one chunk. `order`: a list that gets what happened, in order."""

    def __init__(self, tokenizer, answers=("right", "wrong", "unfinished"), chunk=None, order=None):
        self.tokenizer, self.answers, self.asked, self.seeds = tokenizer, answers, [], []
        self.version = 0
        self.chunk, self.order = chunk, [] if order is None else order

    def generate(self, prompts, sampling):
        chunks = list(self.stream(prompts, sampling))
        return [g for chunk in chunks for g in chunk.groups], sum((chunk.cost for chunk in chunks), Cost())

    def stream(self, prompts, sampling):
        self.asked += [p.id for p in prompts]
        self.seeds.append(sampling.seed)
        kinds = [self.answers[k % len(self.answers)] for k in range(sampling.count)]
        groups = [Group(p, tuple(self._sample(p, k, kind) for k, kind in enumerate(kinds))) for p in prompts]
        size = self.chunk or len(prompts) or 1
        for at in range(0, len(prompts), size):
            some = groups[at : at + size]
            self.order.append(("draws", self.asked[-len(prompts) :][at]))
            tokens = sum(len(s.response_ids) for g in some for s in g.samples)
            yield RolloutChunk(range(at, at + len(some)), some, Cost(generated_tokens=tokens))

    def _sample(self, prompt, k, kind):
        text = {"right": prompt.answer, "unfinished": prompt.answer, "wrong": "77"}.get(kind, kind)
        ids = encode_response(self.tokenizer, text)
        ids = ids[:-1] if kind == "unfinished" else ids
        return Sample(f"{prompt.id}#{k}", ids, (-1.0,) * len(ids), kind != "unfinished", self.version)

    def check(self, probe):
        return 0.0


class LengthScorer:
    """A reward model that likes long responses: `scale` per token. Scores no farther apart than `step` are equal."""

    def __init__(self, scale=1.0, step=0.0):
        self.scale, self.step, self.loaded = scale, step, []

    def load(self, path, dtype):
        self.loaded.append(path)

    def rounding(self, score):
        return self.step

    def score(self, rows):
        return self.begin_score(rows).result()

    def begin_score(self, rows):
        return Pending(([[self.scale * len(r) for r in row.responses] for row in rows], Cost(flops=3)), [], 0)


@dataclass
class Pending:
    found: tuple
    order: list
    call: int

    def result(self):
        self.order.append(("is waited for", self.call))
        return self.found


@dataclass
class Learner:
    """Trains nothing; remembers what it was given. `losses`: the losses of its steps, in turn; afterwards 1."""

    sides: SideGradients = SideGradients(1.0, 1.0, 0.5)
    losses: list = field(default_factory=list)
    devices: int = 1
    first_step_began: float | None = None
    loaded: list = field(default_factory=list)  # model, path, seed
    optimizers: list = field(default_factory=list)  # model, learning rate, Adam's other settings
    stepped: list = field(default_factory=list)  # rows, settings, learning rate
    measured: list = field(default_factory=list)  # model, rows
    sides_measured: list = field(default_factory=list)  # how many steps had been taken, settings
    saved: list = field(default_factory=list)
    order: list = field(default_factory=list)  # of steps that begin and are waited for

    def load(self, name, path, seed=0, learning_rate=None, max_grad_norm=1.0, adam=None):
        self.loaded.append((name, path, seed))
        self.optimizers.append((name, learning_rate, adam))

    def measure(self, name, rows, temperature=1.0):
        return self.begin_measure(name, rows, temperature).result()

    def begin_measure(self, name, rows, temperature=1.0):
        self.measured.append((name, list(rows)))
        found = [tuple(np.full(len(a), -1.0) for a in row.responses) for row in rows]
        return Pending((found, MEASURING), [], 0)

    def checksums(self, name):
        return {}

    def measure_cost(self, name, rows):
        return MEASURING

    def steps_cost(self, work):
        return sum((STEP for _ in work), Cost())

    def steps(self, work, temperature=1.0):
        return self.begin_steps(work, temperature).result()

    def begin_steps(self, work, temperature=1.0):
        found, call = [], 1 + sum(what == "begins" for what, _ in self.order)
        self.order.append(("begins", call))
        for step in work:
            self.stepped.append((list(step.rows), step.settings, step.learning_rate))
            loss = self.losses.pop(0) if self.losses else 1.0
            found.append({"loss": loss, "accuracy": 0.5, "grad_norm": 1.0})
        return Pending((found, self.steps_cost(work)), self.order, call)

    def side_gradients_cost(self, rows):
        return SIDES

    def side_gradients(self, method, rows, settings, temperature=1.0):
        self.sides_measured.append((len(self.stepped), settings))
        return self.sides, SIDES

    def weights(self, name):
        return len(self.stepped)  # a snapshot is how many steps made it

    def save(self, name, path):
        path.mkdir(parents=True, exist_ok=True)
        self.saved.append(path)

    def save_state(self, folder):
        return {}

    def free(self, name):
        pass


def split_result(score, greedy=0.5, prompts=1, **others):
    """A split whose prompts all score alike."""
    found = tuple(PromptScore(f"p{i}", score, greedy) for i in range(prompts))
    return SplitResult(found, **{"parts": {}, "response_length": 1.0, "cut_off": 0.0, "samples": ()} | others)


class Evaluator:
    """A policy's score is `score` of its number of steps. With `late`, nothing is ready unless it is waited for. `draws`: what
    samples were drawn for, in turn."""

    def __init__(self, score=lambda steps: 0.5, pairs=(), late=False):
        self.score, self.pairs, self.late, self.pending, self.draws = score, tuple(pairs), late, [], []

    def submit(self, weights, version, label, *, draws, temperature=None, own=None):
        self.draws.append(draws)
        pairs = tuple(p for p in self.pairs if own is None or p.kind in ("fixed", own))
        split = split_result(self.score(weights), samples=(("p", "1+1=", "2", "2", 1.0),))
        evaluated = Evaluation(
            {"in_distribution": split}, {"kl": float(version)}, Cost(flops=7.0).as_dict(), 0.1, pairs
        )
        self.pending.append((label, evaluated))

    def collect(self, wait=False):
        if self.late and not wait:
            return []
        done, self.pending = self.pending, []
        return done


class Sync:
    def __init__(self, pool=None):
        self.versions, self.pool = [], pool

    def send(self, version):
        self.versions.append(version)
        if self.pool is not None:
            self.pool.version = version
        return None
