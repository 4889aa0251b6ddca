"""The records that travel between the roles. They hold data and have almost no behaviour.

The path of a sample: a task makes a `Prompt`; the rollout pool turns it into a `Group` of `Sample`s; the scorer
and the judge fill in `reward` and `gold`; a method turns groups or pairs into `Row`s; the learner turns rows
into gradients.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args

from rlhf_bench.core.costs import Cost
from rlhf_bench.core.plain_data import Array

HeldOutSplit = Literal["in_distribution", "out_of_distribution", "unseen"]
Split = Literal["train", HeldOutSplit]
"""train: prompts that methods may train on. The three others are held out:
in_distribution: drawn from the same distribution, but never in `train`;
out_of_distribution: longer or harder than anything in training;
unseen: built from elements (operands, topics) that training never shows."""
ALL_SPLITS: tuple[Split, ...] = get_args(Split)
HELD_OUT_SPLITS: tuple[HeldOutSplit, ...] = get_args(HeldOutSplit)
MAIN_SPLIT: HeldOutSplit = "in_distribution"
"""The split whose score is compared."""


Combine = Literal["mean", "min"]
"""How the scores of an ensemble's reward models become one."""


class Turn(NamedTuple):
    """A message of a conversation. `more`: its other keys, such as tool_calls or reasoning_content, as a JSON object, and ""
    where it has none. A plain text, so that turns can be compared, hashed and sent; the chat template gets the keys."""

    role: str
    content: str
    more: str = ""

    @property
    def message(self) -> dict[str, Any]:
        """As a chat template takes it."""
        return {"role": self.role, "content": self.content, **(json.loads(self.more) if self.more else {})}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question. `Prompt("train-7", "12+30=", "42", token_ids=(5, 6, ...))`; `answer` is what the
    task's judge needs, as text. `token_ids` is empty until a tokenizer has seen it. `turns` are the messages of a prompt
    that is a conversation, for a chat template; `text` then shows them. Where the last one is the assistant's, the answer
    continues it (a prefill). `tools`: what a chat template is told of tools, a JSON list, and "" where there are none. `where` is the row of the user's that it was read
    from, "prompts.jsonl:17", and "" for one that its task made: for errors alone, so it tells no prompt from another."""

    id: str
    text: str
    answer: str
    token_ids: tuple[int, ...] = ()
    turns: tuple[Turn, ...] = ()
    tools: str = ""
    where: str = field(default="", compare=False, repr=False)

    @property
    def place(self) -> str:
        """Where it comes from, for error messages."""
        return self.where or f"prompt {self.id}"


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with one response to imitate (supervised fine-tuning)."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True)
class TextPair:
    """A preference as text: `chosen` was preferred to `rejected`. `source` says who wrote them; `where` as in `Prompt`, and
    "" where the pair stands where its prompt does."""

    prompt: Prompt
    chosen: str
    rejected: str
    source: str = "dataset"
    where: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A response as text that a label calls desirable or not. `where` as in `Prompt`."""

    prompt: Prompt
    response: str
    desirable: bool
    where: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The judge's score of one response, in [0, 1], and the named parts it is made of, each in [0, 1]. `weights`: of a part
    that is itself a mean, over how many things, so that means over responses are over all those things; 1 where left out."""

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def undecided(self) -> bool:
        """Whether the judge took too long over the response, which then counts as wrong."""
        return self.parts.get("undecided", 0.0) > 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the rollout pool samples: `count` responses a prompt, at most `max_tokens` each."""

    count: int = 1
    max_tokens: int = 32
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One response. `response_ids` ends with an end token where `finished`; `sampler_logprobs` has one entry per
    response token (nats, at the sampling temperature); `policy_version` counts weight updates since the arm's start.
    Rewards that are no farther apart than their `rounding` are equal."""

    id: str
    response_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    finished: bool
    policy_version: int
    text: str = ""
    reward: float = float("nan")
    gold: float = float("nan")
    rounding: float = 0.0  # of the reward, by the number format of what computed it
    undecided: bool = False  # the judge took too long over it, and it counts as wrong


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt and the samples drawn for it."""

    prompt: Prompt
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference as tokens. Responses end with an end token. The scores are the judge's (nan where it was not asked)."""

    id: str
    prompt: Prompt
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    chosen_score: float = 1.0
    rejected_score: float = 0.0
    policy_version: int = 0
    rounding: float = 0.0  # of the scores: no farther apart, they are equal


@dataclass(frozen=True, slots=True)
class LabelledResponse:
    """A response as tokens, its end token included, that a label calls desirable or not."""

    id: str
    prompt: Prompt
    response_ids: tuple[int, ...]
    desirable: bool
    policy_version: int = 0


DESIRABLE = "desirable"
"""A row's number per response: 1 or 0, by its label."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the learner computes together: a prompt, once, and k responses to it.

    `extras` maps a name to one array per response: length 1 for a number per response (a reference
    log-probability), or the response's length for a number per token (an advantage).
    """

    id: str
    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    extras: Mapping[str, tuple[Array, ...]] = field(default_factory=dict)
    response_tokens: int = field(init=False, compare=False, repr=False)
    tokens: int = field(init=False, compare=False, repr=False)  # in the forward pass: the prompt counted once

    def __post_init__(self) -> None:
        # Counted once: planning micro-batches asks for them many times a step.
        object.__setattr__(self, "response_tokens", sum(map(len, self.responses)))
        object.__setattr__(self, "tokens", len(self.prompt_ids) + self.response_tokens)

    def __reduce__(self) -> tuple[type[Row], tuple[Any, ...]]:
        # Every row of every step is pickled; the way that dataclasses have of their own is several times slower.
        return Row, (self.id, self.prompt_ids, self.responses, self.extras)


@dataclass(frozen=True, slots=True)
class PromptScore:
    """A held-out prompt's scores under one policy: the mean over sampled responses (or the expected score, where the task
    knows it), that of the greedy response, and the expected best of n samples (nan where it was not asked for)."""

    prompt_id: str
    score: float
    greedy_score: float
    best_of_score: float = math.nan


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Held-out results of one split: scores by prompt, means of the score's parts and of the length (tokens) over sampled
    responses, and a few of these as (prompt id, prompt, reference, response, score). `cut_off`: the share of sampled responses
    that reached data.max_response_tokens without an end; nan in older checkpoints."""

    prompts: tuple[PromptScore, ...]
    parts: Mapping[str, float]
    response_length: float
    samples: tuple[tuple[str, str, str, str, float], ...]
    cut_off: float = math.nan

    @property
    def score(self) -> float:
        return fmean(one.score for one in self.prompts)

    @property
    def greedy_score(self) -> float:
        return fmean(one.greedy_score for one in self.prompts)

    @property
    def best_of_score(self) -> float:
        return fmean(one.best_of_score for one in self.prompts)

    @property
    def scores(self) -> dict[str, float]:
        """Means over prompts, by the metric's name; without the best of n where it was not asked for."""
        named = {"score": self.score, "greedy_score": self.greedy_score, "best_of_score": self.best_of_score}
        return {name: value for name, value in named.items() if not math.isnan(value)}


FIXED = "fixed"
"""The kind of the held-out off-policy pairs: see `rlhf_bench.methods.base.PairKind`."""
OWN = "own/"
"""Begins the names of an evaluation's numbers on held-out pairs of the kind that the arm trains on."""


@dataclass(frozen=True, slots=True)
class PairEvaluation:
    """One held-out pair under one policy: log-probabilities and log-ratios in nats, summed over the response. CHES of the
    base policy's hidden states, also per token, and the sides' edit distance (0 to 1) are the pair's own. `kind`: the name
    of the `PairKind` that it is of."""

    split: str
    pair_id: str
    chosen_logprob: float
    rejected_logprob: float
    chosen_logratio: float
    rejected_logratio: float
    chosen_tokens: int
    rejected_tokens: int
    ches: float
    ches_normalised: float
    edit_distance: float
    kind: str = FIXED


PAIR_PROPERTIES = ("ches", "ches_normalised", "edit_distance")
"""What a pair has of its own, the same under every policy."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of a policy: results per split, likelihood numbers (nats), what it cost by ledger column, seconds, pairs."""

    splits: Mapping[str, SplitResult]
    numbers: Mapping[str, float]
    cost: Mapping[str, float]
    seconds: float
    pairs: tuple[PairEvaluation, ...] = ()

    @property
    def cut_off_line(self) -> str:
        """Of the first split, the main one."""
        return cut_off_line(next(iter(self.splits.values())).cut_off) if self.splits else ""


MUCH_CUT_OFF = 0.1
"""From this share of responses on a user is told that they are cut off: scores are then of the limit, not of the answers."""


def cut_off_line(share: float) -> str:
    """One line for a user where many responses were cut off; "" for few, and where it is not known."""
    if not share >= MUCH_CUT_OFF:
        return ""
    return f"{share:.0%} of responses reached max_response_tokens, and score 0; raise data.max_response_tokens, or ask for shorter answers"


@dataclass(frozen=True)
class EvalPoint:
    """When a snapshot was taken: the nominal mark, the update, and what had been spent by then."""

    mark: float
    update: int
    spent: Mapping[str, float]
    fraction: float
    wall_seconds: float


BASE_POINT = EvalPoint(0.0, 0, Cost().as_dict(), 0.0, 0.0)
"""Every arm's curve begins with the base policy, before anything is spent."""
