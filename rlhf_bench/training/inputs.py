"""Everything a comparison needs before any process starts: task, tokenizer, encoded prompts and pairs, model folder.

All of the user's data passes through here once, so that wrong data is refused before the first engine starts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_bench.compute.forecast import Lengths, check_budget
from rlhf_bench.compute.memory import check_gpu_memory
from rlhf_bench.core.costs import Cost
from rlhf_bench.core.errors import Problems
from rlhf_bench.core.given import GOLD_REWARD_MODEL, MODEL, REWARD_MODEL, REWARD_MODELS, TOKENIZER, Given
from rlhf_bench.core.plain_data import content_digest
from rlhf_bench.core.types import LabelledResponse, Pair, Prompt, Row
from rlhf_bench.models.codec import Codec, build_codec
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.loading import RANDOM_INIT
from rlhf_bench.models.packing import shared_tokens
from rlhf_bench.recipe import Recipe
from rlhf_bench.tasks import Task, build_task
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.encoded_rows import EncodedRows, check_off_policy_pairs, check_task, encoded_rows
from rlhf_bench.training.encoding import Encoder
from rlhf_bench.training.given_model import given_reward_shape, model_folder, policy_shape, tokenizer_and_shape
from rlhf_bench.training.local_model import LocalModel, Say, content_of, local_models, names


@dataclass(frozen=True)
class Inputs:
    """What is known before any engine starts."""

    task: Task
    codec: Codec
    model: Path  # a folder, or a repository at a commit: configuration, tokenizer and weights, but a fresh model's
    shape: ModelShape
    train: list[Prompt]
    held_out: dict[str, list[Prompt]]
    demonstrations: list[Row]
    tuning: list[Prompt]  # held-out prompts for tuning trials only
    # That come with the data, [] where no arm needs any; None where the weaker policy makes them.
    pairs: list[Pair] | None
    held_out_pairs: list[Pair]
    fingerprint: dict[str, str]  # hashes of model and data, for stage caches
    notes: tuple[str, ...] = ()  # what a reader of the results must know of the data
    labelled: list[LabelledResponse] | None = None  # that come with the data, where an arm learns from them
    reward_shape: ModelShape | None = None  # of a given reward model; else it has the policy's
    gold_reward_shape: ModelShape | None = None  # of a given gold one
    reward_models: Mapping[str, Path] = field(default_factory=dict)  # the given ones, like `model`, by the recipe's key
    given: Mapping[str, Given] = field(default_factory=dict)  # by the recipe's key: what tells it from another one

    @property
    def tokenizer(self) -> Any:
        return self.codec.tokenizer

    @property
    def weights(self) -> Path:
        """What the learner loads: the given model, or our note of how a fresh one's weights are drawn."""
        return self.model if MODEL in self.given else self.model / RANDOM_INIT

    def right_responses(self, prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, list[tuple[int, ...]]]:
        """The one right response to each prompt, as a policy would write it. Of a task that has such."""
        right = self.task.right_response
        assert right is not None, "prepare_inputs refuses expected scores of other tasks"
        return {s: [self.codec.answer(p, right(p)).ids for p in found] for s, found in prompts.items()}


def prepare_inputs(
    recipe: Recipe,
    cache: Cache,
    say: Say = lambda line: None,
    day: date | None = None,
    before: Mapping[str, Given] | None = None,
    *,
    room: bool = False,
) -> Inputs:
    """Build and check all of it. Raises BadInput with all problems, naming key or row, before anything else has happened. `say`
    is told of a model that is fetched or converted now, which takes most of a minute. `day`: the date for chat templates that
    write one, today's if it is None; a run that is resumed has that of its beginning. `before`: what the run was given at its
    beginning: a Hugging Face id is taken at the commit that it had then. `room`: whether budget and GPUs must be large enough."""
    problems, survey = Problems(), _Survey(recipe, cache, say)
    survey.look(problems, day or date.today(), before or {}, room)
    problems.refuse()
    return survey.inputs()


def check_inputs(recipe: Recipe, wrong: Collection[str], cache: Cache, say: Say) -> None:
    """BadInput with all problems, as `prepare_inputs` finds them, of a recipe that holds stand-ins for the sections in `wrong`,
    which are wrong in themselves: what reads them is passed over."""
    problems = Problems()
    _Survey(recipe, cache, say, frozenset(wrong)).look(problems, date.today(), {}, room=True)
    problems.refuse()


@dataclass
class _Survey:
    """Takes every step that can be taken, and holds what it has found. None: not looked at, or wrong."""

    recipe: Recipe
    cache: Cache
    say: Say
    wrong: frozenset[str] = frozenset()
    task: Task | None = None
    local: dict[str, LocalModel] = field(default_factory=dict)
    shape: ModelShape | None = None
    tokenizer: Any = None
    reward_shape: ModelShape | None = None
    gold_reward_shape: ModelShape | None = None
    codec: Codec | None = None
    encoder: Encoder | None = None
    rows: EncodedRows | None = None

    def _right(self, *sections: str) -> bool:
        return not self.wrong & set(sections)

    @property
    def _rows_can_be_measured(self) -> bool:
        if self._right("data", "model"):
            no_room = (
                self.recipe.data.max_response_tokens >= self.recipe.model.max_length
            )  # so said the recipe's own check
            return not no_room and self._right("sft", "evaluation", "tuning", "compute")
        return False

    def look(self, problems: Problems, day: date, before: Mapping[str, Given], room: bool) -> None:
        recipe = self.recipe
        if self._right("task"):
            with problems.step():
                self.task = build_task(recipe.task)
        self._look_at_models(problems, before)
        task = self.task
        if task is not None and self._right("evaluation", "model"):
            with problems.step():
                check_task(recipe, task)
        if task is not None and self._right("sft", "reward_model", "gold_reward_model"):
            with problems.step():
                check_off_policy_pairs(recipe, task)
        if self.tokenizer is not None:
            with problems.step():
                chat = recipe.model.tokenizer.chat_template is not None
                self.codec = build_codec(
                    self.tokenizer, self.local[MODEL].path if MODEL in self.local else None, chat, day
                )
        if task is not None and self.codec is not None and self._rows_can_be_measured:
            self.encoder = Encoder(recipe, self.codec)
            self.rows = encoded_rows(recipe, task, self.encoder, problems)
        if room:
            self._check_room(problems)

    def _look_at_models(self, problems: Problems, before: Mapping[str, Given]) -> None:
        recipe = self.recipe
        self.local = local_models(recipe, self.cache, self.say, before, problems)
        found = all(key in self.local for key in names(recipe) if key not in REWARD_MODELS)
        if found and self._right("model") and (self.task is not None or recipe.model.tokenizer.kind == "pretrained"):
            with problems.step():
                self.tokenizer, given = tokenizer_and_shape(recipe, self.task, self.local)
                self.shape = policy_shape(recipe, given, self.tokenizer)
        if self.tokenizer is not None and self._right("reward_model"):
            with problems.step():
                self.reward_shape = given_reward_shape(recipe, self.tokenizer, self.local)
        if self.tokenizer is not None and self._right("gold_reward_model"):
            with problems.step():
                self.gold_reward_shape = given_reward_shape(recipe, self.tokenizer, self.local, GOLD_REWARD_MODEL)

    def _check_room(self, problems: Problems) -> None:
        """Whether the recipe's GPUs and its budget are large enough, as far as that can be told."""
        shapes, asked = {REWARD_MODEL: self.reward_shape, GOLD_REWARD_MODEL: self.gold_reward_shape}, names(self.recipe)
        unknown = any(key in asked and shape is None for key, shape in shapes.items())
        if self.shape is None or unknown or not self._right("reward_model", "gold_reward_model"):
            return
        if self._right("placement", "compute"):
            with problems.step():
                check_gpu_memory(self.recipe, self.shape, self.reward_shape, self.gold_reward_shape)
        if self.rows is not None and self._right("tuning"):
            with problems.step():
                check_budget(self.recipe, self.shape, _lengths(self.recipe, self.rows.prompts.train), self.reward_shape)

    def inputs(self) -> Inputs:
        """Of a survey without a problem."""
        recipe, task, codec, shape, encoder, rows = (
            self.recipe, self.task, self.codec, self.shape, self.encoder, self.rows
        )  # fmt: skip
        assert task is not None and codec is not None and shape is not None, "no step was passed over"
        assert encoder is not None and rows is not None, "no step was passed over"
        given = {
            key: Given(name, content_of(self.local[key], self.cache, self.say, weights=key != TOKENIZER))
            for key, name in names(recipe).items()
        }
        model, fingerprint = model_folder(recipe, self.tokenizer, self.cache, self.local, given)
        prompts, pairs = rows.prompts, rows.pairs
        data: list[Any] = [prompts.train, prompts.held_out, rows.demonstrations, pairs.training, pairs.held_out]
        data += [] if pairs.labelled is None else [pairs.labelled]
        fingerprint |= {
            "task": json.dumps(recipe.task.model_dump(mode="json"), sort_keys=True),
            "data": content_digest(data),
        }
        left_out = (f"rows left out as they were encoded: {encoder.faults}",) if encoder.faults else ()
        return Inputs(
            task=task,
            codec=codec,
            model=model,
            shape=shape,
            train=prompts.train,
            held_out=prompts.held_out,
            demonstrations=rows.demonstrations,
            tuning=prompts.tuning,
            pairs=pairs.training,
            held_out_pairs=pairs.held_out,
            labelled=pairs.labelled,
            fingerprint=fingerprint,
            notes=(*task.notes, *left_out, *pairs.notes, *encoder.notes()),
            reward_shape=self.reward_shape,
            gold_reward_shape=self.gold_reward_shape,
            reward_models={key: Path(self.local[key].path) for key in REWARD_MODELS if key in self.local},
            given=given,
        )


def lengths_of(recipe: Recipe, inputs: Inputs) -> Lengths:
    pairs = [*(inputs.pairs or ()), *inputs.held_out_pairs]
    side = round(float(np.mean([len(ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)]))) if pairs else None
    return replace(_lengths(recipe, inputs.train), side=side)


def _lengths(recipe: Recipe, train: Sequence[Prompt]) -> Lengths:
    prompts = [p.token_ids for p in train]
    return Lengths(
        round(float(np.mean([len(ids) for ids in prompts]))), recipe.data.max_response_tokens, shared_tokens(prompts),
        recipe.compute.tokens_per_micro_batch,
    )  # fmt: skip


BASE_SEED, WEAKER_SEED, PAIR_SEED, REWARD_SEED, OWN_SEED = 101, 102, 103, 104, 105
GOLD_SEED = 106


@dataclass(frozen=True)
class StartingPoint:
    """Where every arm and seed starts from, and what it cost to get there."""

    base: Path
    pairs: list[Pair]
    held_out_pairs: dict[str, list[Pair]]  # by split
    reward_model: Path | None
    base_cost: Cost
    pairs_cost: Cost
    reward_model_cost: Cost
    reward_margins: dict[str, float]  # held-out pair's id -> r(chosen) − r(rejected); empty without a reward model
    own_pairs: dict[str, list[Pair]] = field(
        default_factory=dict
    )  # kind -> held-out pairs of the main split, but `fixed`
    own_pairs_cost: Cost = Cost()
    gold_reward_model: Path | None = None
    gold_reward_model_cost: Cost = Cost()
    gold_margins: Mapping[str, float] = field(default_factory=dict)  # like `reward_margins`

    @property
    def reward_models(self) -> dict[str, str]:
        """Those that there are, by the recipe's key."""
        found = {"reward_model": self.reward_model, "gold_reward_model": self.gold_reward_model}
        return {key: str(path) for key, path in found.items() if path is not None}

    @property
    def reward_model_accuracy(self) -> dict[str, float]:
        """Share of held-out pairs that the reward model orders rightly, by split."""
        return self._accuracy(self.reward_margins)

    @property
    def gold_accuracy(self) -> dict[str, float]:
        """The same of the gold reward model."""
        return self._accuracy(self.gold_margins)

    def _accuracy(self, margins: Mapping[str, float]) -> dict[str, float]:
        found = {s: [margins[p.id] > 0 for p in pairs if p.id in margins] for s, pairs in self.held_out_pairs.items()}
        return {split: float(np.mean(right)) for split, right in found.items() if right}
