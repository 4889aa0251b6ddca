"""Everything a comparison needs before any process starts: task, tokenizer, encoded prompts and pairs, model folder.

All of the user's data passes through here once, so that wrong data is refused before the first engine starts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from rlhf_bench.core.types import BadInput, Demonstration, Pair, Prompt, Row, TextPair
from rlhf_bench.methods import METHODS
from rlhf_bench.methods.base import DataMode, MethodSettings, uses_reward_model
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.loading import fresh_shape, write_fresh_model
from rlhf_bench.models.tokenizer import build_tokenizer, encode_chat, encode_prompt, encode_response
from rlhf_bench.models.validation import identity, pretrained_model, pretrained_reward_model, refuse_other_tokenizer
from rlhf_bench.recipe import DataSettings, Recipe
from rlhf_bench.tasks import Task, build_task

DATA_SEED = 0
"""Prompts, demonstrations and pairs are the same for every seed of the comparison: seeds vary training, not data."""


CACHE_FORMAT = 5
"""Raised whenever a stage's code changes what it makes from the same settings: older folders are then made again."""


class Cache:
    """Folders that are made once: `folder/KIND-HASH`, where HASH is of everything that determines the content."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._making: dict[str, threading.Lock] = {}  # by folder's name

    def get(self, kind: str, key: Any, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any], bool]:
        """The folder, what `make` returned (kept as JSON), and whether it was there already. Written aside, then renamed.
        Of several threads that want the same, one makes it and the others wait."""
        target = self._target(kind, key)
        with self._making.setdefault(target.name, threading.Lock()):
            return self._get(target, make)

    def _get(self, target: Path, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any], bool]:
        if not (target / "cache.json").exists():
            aside = self.folder / f".{target.name}.{uuid4().hex[:8]}"
            try:
                aside.mkdir(parents=True)
            except OSError as error:
                raise BadInput(
                    f"RLHF_BENCH_CACHE: {self.folder} cannot be written ({error.strerror}); name a folder that can"
                ) from None
            try:
                (aside / "cache.json").write_text(json.dumps(dict(make(aside))))
                if not (
                    target / "cache.json"
                ).exists():  # else another run made the same meanwhile, and may be reading it
                    shutil.rmtree(target, ignore_errors=True)
                    aside.rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return target, json.loads((target / "cache.json").read_text()), False
        return target, json.loads((target / "cache.json").read_text()), True

    def has(self, kind: str, key: Any) -> bool:
        """Whether `get` would find it made."""
        return (self._target(kind, key) / "cache.json").exists()

    def _target(self, kind: str, key: Any) -> Path:
        digest = hashlib.sha256(json.dumps([CACHE_FORMAT, key], sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self.folder / f"{kind}-{digest}"


@dataclass(frozen=True)
class Material:
    task: Task
    tokenizer: Any
    model: Path
    shape: ModelShape
    train: list[Prompt]
    held_out: dict[str, list[Prompt]]
    demonstrations: list[Row]
    tuning: list[Prompt]  # held-out prompts for tuning trials only
    pairs: list[Pair] | None  # that come with the data; None where the weaker policy makes them
    held_out_pairs: list[Pair]
    fingerprint: dict[str, str]  # hashes of model and data, for stage caches
    notes: tuple[str, ...] = ()  # what a reader of the results must know of the data
    reward_shape: ModelShape | None = None  # of a given reward model; else it has the policy's

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id


def prepare(recipe: Recipe, cache: Cache) -> Material:
    """Build and check all of it. Raises BadInput, naming key or row, before anything else has happened."""
    task = build_task(recipe.task)
    missing = [s for s in recipe.evaluation.splits if s not in task.splits]
    if missing:
        raise BadInput(
            f"evaluation.splits: the data has no {missing[0]} prompts (it has {', '.join(task.splits[1:])}); remove it"
        )
    tokenizer, given = _tokenizer(recipe, task)
    rewarding = recipe.reward_model.name_or_path
    reward_shape = pretrained_reward_model(rewarding, recipe.model.max_length, tokenizer) if rewarding else None
    if reward_shape is not None and recipe.model.lora is not None:  # of the critic that starts from it
        reward_shape = replace(reward_shape, lora_rank=recipe.model.lora.rank)
    encode = _Encoder(recipe, tokenizer)
    train = [encode.prompt(p) for p in task.prompts("train", recipe.data.train_prompts, DATA_SEED)]
    looked, tried = recipe.evaluation.prompts, recipe.tuning.prompts if recipe.tuning else 0
    main = recipe.evaluation.splits[0]  # trials look at further prompts of it
    held_out: dict[str, list[Prompt]] = {
        s: [encode.prompt(p) for p in task.prompts(s, looked + (tried if s == main else 0), DATA_SEED)]
        for s in recipe.evaluation.splits
    }
    tuning, held_out[main] = held_out[main][looked:], held_out[main][:looked]
    demonstrations = []
    if recipe.sft:
        demonstrations = [encode.demonstration(d) for d in task.demonstrations(recipe.sft.demonstrations, DATA_SEED)]
    if task.pairs is None and recipe.sft is None:
        raise BadInput(
            "sft: null needs a task whose data has pairs: where it has none, a weaker policy that is fine-tuned makes them; set sft, or give pairs"
        )
    pairs, looked_at, notes = None, list[Pair](), list(task.notes)
    if task.pairs is not None:
        wanted = recipe.data.off_policy_pairs + recipe.data.held_out_pairs
        encoded = [encode.pair(i, p) for i, p in enumerate(task.pairs(wanted, DATA_SEED))]
        offered, looked_at = encoded[: recipe.data.off_policy_pairs], encoded[recipe.data.off_policy_pairs :]
        pairs = _of_other_prompts(offered, looked_at)
        if len(pairs) < len(offered):
            notes.append(
                f"{len(offered) - len(pairs)} of {len(offered)} pairs are left out, since held-out pairs have their prompts"
            )
    encode.refuse_draws(_draws(recipe, train, held_out, pairs))
    model, shape, fingerprint = _model(recipe, tokenizer, given, cache)
    data = [train, held_out, demonstrations, pairs, looked_at]
    fingerprint |= {
        "task": json.dumps(recipe.task.model_dump(mode="json"), sort_keys=True),
        "data": hashlib.sha256(repr(data).encode()).hexdigest(),
    }
    return Material(
        task, tokenizer, model, shape, train, held_out, demonstrations, tuning, pairs, looked_at, fingerprint,
        tuple(notes), reward_shape,
    )  # fmt: skip


def _of_other_prompts(pairs: Sequence[Pair], held_out: Sequence[Pair]) -> list[Pair]:
    """Those whose prompt no held-out pair has: else what is learnt of a prompt would pass for what is known without it."""
    known = {p.prompt.token_ids for p in held_out}
    others = [p for p in pairs if p.prompt.token_ids not in known]
    if not others:
        raise BadInput(
            f"data.held_out_pairs: {len(held_out)} held-out pairs have the prompts of all others, so none is left to train "
            "on; lower it, or give pairs on more prompts"
        )
    return others


def _tokenizer(recipe: Recipe, task: Task) -> tuple[Any, ModelShape | None]:
    """The tokenizer and, where the model is given, its shape. The model is looked at first: transformers reads its
    configuration to find the tokenizer, and would blame that for what is wrong there."""
    name, settings = recipe.model.name_or_path, recipe.model.tokenizer
    if name is None:
        return build_tokenizer(settings, task.corpus()), None
    if settings.kind != "pretrained":
        raise BadInput(
            f"model.tokenizer.kind: {settings.kind} does not fit weights from {name}; use {{kind: pretrained, name_or_path: {name}}}"
        )
    scalar = any(_makes_scalar(recipe, arm) for arm in recipe.arms.values())
    model, shape = pretrained_model(name, recipe.model.max_length, scalar)
    tokenizer = build_tokenizer(settings, task.corpus())
    refuse_other_tokenizer(name, model, tokenizer)
    return tokenizer, shape


def _makes_scalar(recipe: Recipe, arm: MethodSettings) -> bool:
    """Whether the arm has a reward model or critic that is made of the policy's."""
    if uses_reward_model(arm):  # its critic too starts from that
        return recipe.reward_model.name_or_path is None
    return any(o.model == "critic" for o in METHODS[arm.method].objectives)


def _model(
    recipe: Recipe, tokenizer: Any, given: ModelShape | None, cache: Cache
) -> tuple[Path, ModelShape, dict[str, str]]:
    settings = recipe.model
    if settings.name_or_path is not None and given is not None:
        path, lora, weights = Path(settings.name_or_path), settings.lora, identity(settings.name_or_path)
        if lora is None:
            return path, given, {"model": weights}
        learned = json.dumps({"name_or_path": weights, "lora": lora.model_dump(mode="json")})
        return path, replace(given, lora_rank=lora.rank), {"model": learned}
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    key = {"model": settings.model_dump(mode="json", exclude={"lora"}), "tokenizer": vocabulary}

    def make(folder: Path) -> dict[str, Any]:
        write_fresh_model(settings, tokenizer, DATA_SEED, folder)
        return {}

    path, _, _ = cache.get("fresh", key, make)
    return path, fresh_shape(settings, len(tokenizer)), {"model": json.dumps(key, sort_keys=True)}


class _Encoder:
    """Text to token ids, with the lengths of context and micro-batch in mind. A prompt comes out without `where`: paths of
    this machine are for errors, and what is encoded goes into files and to other processes."""

    def __init__(self, recipe: Recipe, tokenizer: Any):
        self.tokenizer, self.longest, self.room = tokenizer, recipe.model.max_length, recipe.data.max_response_tokens
        self.most = recipe.compute.tokens_per_micro_batch
        self.chat = recipe.model.tokenizer.chat_template is not None
        self.places: dict[str, str] = {}  # of what has been encoded, by the prompt's id

    def _prompt(self, prompt: Prompt) -> Prompt:
        if prompt.turns and not self.chat:
            raise BadInput(
                f"{prompt.place}: the prompt is a conversation, and model.tokenizer.chat_template is null; set it to own"
            )
        ids = encode_chat(self.tokenizer, prompt) if self.chat else encode_prompt(self.tokenizer, prompt.text)
        if not set(ids) - {self.tokenizer.bos_token_id}:  # a normalizer may drop all there is
            raise BadInput(
                f"{prompt.place}: the tokenizer makes no tokens of the prompt; change it, or leave the row out"
            )
        self.places.setdefault(prompt.id, prompt.place)
        return replace(prompt, token_ids=ids, where="")

    def prompt(self, prompt: Prompt) -> Prompt:
        encoded = self._prompt(prompt)
        self._refuse_full(encoded)
        return encoded

    def _refuse_full(self, prompt: Prompt, who: str = "") -> None:
        if len(prompt.token_ids) + self.room > self.longest:
            drawn = f", which {who} draws," if who else ""
            raise BadInput(
                f"{self.places[prompt.id]}: the prompt's {len(prompt.token_ids)} tokens leave no room for "
                f"data.max_response_tokens {self.room}{drawn} within model.max_length {self.longest}; "
                "raise model.max_length, or leave the row out"
            )

    def _row(self, prompt: Prompt, **responses: str) -> tuple[Prompt, Row]:
        """The prompt and the row; `responses` by what they are called in errors."""
        encoded, sides = self._prompt(prompt), []
        for side, text in responses.items():
            ids = encode_response(self.tokenizer, text)
            if not set(ids) - {self.tokenizer.eos_token_id}:
                raise BadInput(
                    f"{prompt.place}: the tokenizer makes no tokens of {side}; change it, or leave the row out"
                )
            if (tokens := len(encoded.token_ids) + len(ids)) > self.longest:
                raise BadInput(
                    f"{prompt.place}: {side} makes {tokens} tokens with its prompt, more than model.max_length "
                    f"{self.longest}; raise it, or leave the row out"
                )
            sides.append(ids)
        row = Row(prompt.id, encoded.token_ids, tuple(sides))
        *first, last = "prompt", *responses
        self._refuse_wide(f"{prompt.place}: {', '.join(first)} and {last} make", row.tokens, "or leave the row out")
        return encoded, row

    def demonstration(self, demonstration: Demonstration) -> Row:
        return self._row(demonstration.prompt, response=demonstration.response)[1]

    def pair(self, index: int, pair: TextPair) -> Pair:
        prompt = replace(pair.prompt, where=pair.where or pair.prompt.where)
        encoded, row = self._row(prompt, chosen=pair.chosen, rejected=pair.rejected)
        chosen, rejected = row.responses
        if chosen == rejected:  # the texts differ in what a normalizer drops
            raise BadInput(f"{prompt.place}: chosen and rejected are the same tokens; leave the row out")
        return Pair(f"{prompt.id}/pair{index}", encoded, chosen, rejected)

    def refuse_draws(self, draws: Iterable[_Draw]) -> None:
        """BadInput where a prompt leaves no room for a response, or the widest row that can come of them does not fit."""

        def tokens(draw: _Draw) -> int:
            return len(draw.prompt.token_ids) + draw.responses * self.room + draw.other_side

        draws = list(draws)
        for draw in draws:  # of prompts that only pairs have, nothing was asked so far
            self._refuse_full(draw.prompt, draw.who)
        if (widest := max(draws, key=tokens, default=None)) is None:
            return
        what = f"with {widest.responses} response{'s' * (widest.responses > 1)} of data.max_response_tokens {self.room}"
        other = " and the pair's other side" if widest.other_side else ""
        where, remedy = self.places[widest.prompt.id], "draw fewer or shorter ones, or leave the row out"
        self._refuse_wide(
            f"{where}: the prompt {what}, as {widest.who} draws them,{other} makes", tokens(widest), remedy
        )

    def _refuse_wide(self, what: str, tokens: int, remedy: str) -> None:
        """A prompt goes through a model with all of its responses at once, so that it is computed once: no row is cut."""
        if tokens > self.most:
            raise BadInput(
                f"{what} {tokens} tokens, more than compute.tokens_per_micro_batch {self.most}, and a row is never cut; "
                f"raise it to {tokens} or more, {remedy}"
            )


@dataclass(frozen=True)
class _Draw:
    """Who draws how many responses to a prompt that then go through a model at once, and the tokens of a given one beside."""

    who: str
    prompt: Prompt
    responses: int
    other_side: int = 0


def _draws(
    recipe: Recipe, train: Sequence[Prompt], held_out: Mapping[str, Sequence[Prompt]], pairs: Sequence[Pair] | None
) -> Iterator[_Draw]:
    """Of all that a run draws, the longest prompts. `pairs` is None where a weaker policy makes them."""
    candidates = recipe.data.candidates_per_prompt
    if pairs is None:
        for prompts in (train, *held_out.values()):
            yield _Draw("the weaker policy", _longest(prompts), 2)
    for name, arm in recipe.arms.items():
        if arm.data == "offline":
            continue
        given = None if arm.data == "online" else pairs  # the weaker policy's have prompts of `train`
        prompts = train if given is None else start_prompts(recipe.data, arm.data, given, train)
        of_pair = candidates if uses_reward_model(arm) else 2
        yield _Draw(f"arm {name}", _longest(prompts), getattr(arm, "samples_per_prompt", of_pair))
        if given is not None and arm.data != "on_policy":  # one side is drawn, and the other is the given pair's
            chosen = arm.data == "chosen_on_policy"
            others = {p.prompt.id: len(p.rejected_ids if chosen else p.chosen_ids) for p in given}
            yield from (_Draw(f"arm {name}", p, 1, others[p.id]) for p in prompts)
    if any(uses_reward_model(arm) for arm in recipe.arms.values()):
        yield _Draw(
            "the reward model's stage", _longest(train[-recipe.reward_model.start_policy_prompts :]), candidates
        )


def _longest(prompts: Sequence[Prompt]) -> Prompt:
    return max(prompts, key=lambda p: len(p.token_ids))


def start_prompts(data: DataSettings, mode: DataMode, pairs: Sequence[Pair], train: Sequence[Prompt]) -> list[Prompt]:
    """Those that the start policy answers for an arm's pairs. The off-policy pairs' prompts come first, so that all
    scenarios learn from the same prompts as far as they go."""
    prompts = {p.prompt.id: p.prompt for p in pairs}
    if mode == "on_policy":
        prompts |= {p.id: p for p in train if p.id not in prompts}
    return list(prompts.values())[: data.on_policy_prompts]


def rows_of(pairs: Sequence[Pair]) -> list[Row]:
    """One row a pair: the chosen response first."""
    return [Row(p.id, p.prompt.token_ids, (p.chosen_ids, p.rejected_ids)) for p in pairs]
