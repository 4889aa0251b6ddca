"""All rows of a comparison as token ids: prompts, demonstrations, pairs; and what the data must have for the recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rlhf_bench.core.errors import BadInput, Problems
from rlhf_bench.core.types import LabelledResponse, Pair, Prompt, Row, TextPair
from rlhf_bench.recipe import Recipe
from rlhf_bench.tasks import Task
from rlhf_bench.training.encoding import DrawnFrom, Encoder, drawn_from, draws_of

DATA_SEED = 0
"""Prompts, demonstrations and pairs are the same for every seed of the comparison: seeds vary training, not data."""


@dataclass(frozen=True)
class Prompts:
    """All prompts of a comparison, encoded."""

    train: list[Prompt]
    held_out: dict[str, list[Prompt]]
    tuning: list[Prompt]


@dataclass(frozen=True)
class Pairs:
    """The data's pairs, encoded. `training` is [] where it has none and none are needed, None where a weaker policy makes
    them."""

    training: list[Pair] | None = None
    held_out: list[Pair] = field(default_factory=list)
    labelled: list[LabelledResponse] | None = None  # that come with the data, where an arm learns from them
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedRows:
    """Everything that was encoded."""

    prompts: Prompts
    demonstrations: list[Row]
    pairs: Pairs


def encoded_rows(recipe: Recipe, task: Task, encoder: Encoder, problems: Problems) -> EncodedRows | None:
    """All of them; or None, with all that is wrong added to `problems`: too few rows of several kinds, and rows that do not
    fit."""
    prompts = demonstrations = pairs = None
    with problems.step():
        prompts = _prompts(recipe, task, encoder, problems)
    with problems.step():
        demonstrations = _demonstrations(recipe, task, encoder)
    with problems.step():
        pairs = _pairs(recipe, task, encoder)
    if not task.leaves_out:
        with problems.step():
            encoder.faults.refuse()
    if prompts is None or demonstrations is None or pairs is None or (encoder.faults and not task.leaves_out):
        return None
    with problems.step():
        prompts, pairs = _apart(prompts, pairs)
    with problems.step():
        encoder.check_draws(draws_of(recipe, prompts.train, prompts.held_out, pairs.training, pairs.held_out))
    return EncodedRows(prompts, demonstrations, pairs)


def _apart(prompts: Prompts, pairs: Pairs) -> tuple[Prompts, Pairs]:
    """Without the prompts to train on that held-out pairs have, with a note: an arm that answers a prompt has learned of it, too."""
    known = {p.prompt.token_ids for p in pairs.held_out}
    train = [p for p in prompts.train if p.token_ids not in known]
    left_out = len(prompts.train) - len(train)
    if not left_out:
        return prompts, pairs
    if not train:
        raise BadInput(
            f"data.held_out_pairs: {len(pairs.held_out)} held-out pairs have all prompts to train on; lower it, or raise "
            "data.train_prompts"
        )
    note = f"{left_out} of {len(prompts.train)} prompts to train on are left out, since held-out pairs have them"
    return replace(prompts, train=train), replace(pairs, notes=(*pairs.notes, note))


def learns_from_labels(recipe: Recipe) -> bool:
    """Whether an arm's fixed data are single responses with a label."""
    return any(arm.fixed_responses for arm in recipe.arms.values())


def learns_from_pairs(recipe: Recipe) -> bool:
    """Whether an arm, or a reward model, has a use for off-policy pairs."""
    arms = (arm.data not in ("on_policy", "online") and not arm.fixed_responses for arm in recipe.arms.values())
    models = (one.name_or_path is None and one.pairs != "start_policy" for one in recipe.reward_models.values())
    return any(arms) or any(models)


def check_task(recipe: Recipe, task: Task) -> None:
    missing = [s for s in recipe.evaluation.splits if s not in task.splits]
    if missing:
        raise BadInput(
            f"evaluation.splits: the data has no {missing[0]} prompts (it has {', '.join(task.splits[1:])}); remove it"
        )
    if recipe.evaluation.expected_score and (
        task.right_response is None or recipe.model.tokenizer.kind != "characters"
    ):
        raise BadInput(
            "evaluation.expected_score: needs a task with one right response to a prompt (arithmetic) and a tokenizer that "
            "writes a text in one way (model.tokenizer.kind: characters); set it to false, and samples are scored"
        )


def check_off_policy_pairs(recipe: Recipe, task: Task) -> None:
    """BadInput, a line for each, where something is to learn from off-policy pairs and there are none: none in the data, and
    no fine-tuning, which would give a weaker policy that makes them."""
    if task.no_pairs and not learns_from_labels(recipe):
        raise BadInput(task.no_pairs)
    if task.pairs is not None or (recipe.sft is not None and not task.no_pairs):
        return
    why = "the task's data has none, and with sft: null no weaker policy makes them"
    if task.no_pairs:
        why = "the completions of task.pairs have labels, and no two of them make a pair"
    remedy = "give pairs, or set sft"
    problems = [
        f"arms.{name}.data: {arm.data} needs off-policy pairs; {why}; {remedy}, or use another data mode such as on_policy"
        for name, arm in recipe.arms.items()
        if arm.data not in ("on_policy", "online") and not (arm.fixed_responses and task.labelled is not None)
    ]
    problems += [
        f"{key}.pairs: off_policy needs off-policy pairs; {why}; {remedy}, or use start_policy"
        for key, settings in recipe.reward_models.items()
        if settings.name_or_path is None and settings.pairs == "off_policy"
    ]
    if problems:
        raise BadInput(*problems)


def _prompts(recipe: Recipe, task: Task, encoder: Encoder, problems: Problems) -> Prompts | None:
    """Trials have held-out prompts of the main split to themselves, beyond those of the comparison."""
    evaluated, for_trials = recipe.evaluation.prompts, recipe.tuning.prompts if recipe.tuning else 0
    main = recipe.evaluation.splits[0]

    draws = drawn_from(recipe, task.pairs is not None or task.labelled is not None) if task.leaves_out else DrawnFrom()

    def drawn(split: Any, count: int) -> list[Prompt]:
        fits = partial(encoder.prompt, draws=draws.train if split == "train" else draws.held_out)
        return encoder.usable(lambda n: task.prompts(split, n, DATA_SEED), count, fits, task.leaves_out)

    wanted = {"train": recipe.data.train_prompts} | {
        s: evaluated + (for_trials if s == main else 0) for s in recipe.evaluation.splits if s in task.splits
    }
    found = dict[str, list[Prompt]]()
    for split, count in wanted.items():
        with problems.step():
            found[split] = drawn(split, count)
    if len(found) < 1 + len(recipe.evaluation.splits):
        return None
    train = found.pop("train")
    tuning, found[main] = found[main][evaluated:], found[main][:evaluated]
    return Prompts(train, found, tuning)


def _demonstrations(recipe: Recipe, task: Task, encoder: Encoder) -> list[Row]:
    if recipe.sft is None:
        return []
    count, encode = recipe.sft.demonstrations, encoder.demonstration
    return encoder.usable(lambda n: task.demonstrations(n, DATA_SEED), count, encode, task.leaves_out)


def _pairs(recipe: Recipe, task: Task, encoder: Encoder) -> Pairs:
    pairs = _own_pairs(recipe, task, encoder)
    if task.labelled is None or not learns_from_labels(recipe):
        return pairs
    texts, known = task.labelled, {p.prompt.token_ids for p in pairs.held_out}
    encoded = encoder.usable(
        lambda n: list(enumerate(texts(n, DATA_SEED))),
        recipe.data.labelled_responses,
        lambda one: encoder.labelled(*one),
        task.leaves_out,
    )
    labelled = [one for one in encoded if one.prompt.token_ids not in known]
    if encoded and len({one.desirable for one in labelled}) < 2:
        raise BadInput(
            f"task.pairs: all {len(labelled)} labelled completions to train on have the label "
            f"{str(any(one.desirable for one in labelled)).lower()}, and arms with unpaired: true need both; add completions of the other label, "
            "or raise data.labelled_responses"
        )
    return replace(pairs, labelled=labelled)


def _own_pairs(recipe: Recipe, task: Task, encoder: Encoder) -> Pairs:
    all_pairs = task.pairs if task.labelled is None or learns_from_pairs(recipe) else None
    if all_pairs is None:
        if recipe.sft is not None and task.labelled is None:
            return Pairs()
        return Pairs([], notes=("no off-policy pairs: held-out pairs are among the base policy's own answers",))
    wanted = recipe.data.off_policy_pairs + recipe.data.held_out_pairs
    draws = drawn_from(recipe, True).pairs if task.leaves_out else ()

    def encode(pair: tuple[int, TextPair]) -> Pair:
        return encoder.pair(*pair, draws)

    def drawn_of(pairs: Callable[[int, int], list[TextPair]], count: int) -> list[Pair]:
        return encoder.usable(lambda n: list(enumerate(pairs(n, DATA_SEED))), count, encode, task.leaves_out)

    if task.held_out_pairs is not None:
        held_out = drawn_of(task.held_out_pairs, recipe.data.held_out_pairs)
        return Pairs(drawn_of(all_pairs, recipe.data.off_policy_pairs), held_out)
    encoded = drawn_of(all_pairs, wanted)
    offered, held_out = encoded[: recipe.data.off_policy_pairs], encoded[recipe.data.off_policy_pairs :]
    training = _of_other_prompts(offered, held_out)
    left_out = len(offered) - len(training)
    note = f"{left_out} of {len(offered)} pairs are left out, since held-out pairs have their prompts"
    return Pairs(training, held_out, notes=(note,) if left_out else ())


def _of_other_prompts(pairs: Sequence[Pair], held_out: Sequence[Pair]) -> list[Pair]:
    """Pairs whose prompt no held-out pair has: otherwise memory of a prompt would pass for generalisation."""
    known = {p.prompt.token_ids for p in held_out}
    others = [p for p in pairs if p.prompt.token_ids not in known]
    if pairs and not others:  # where no pair is left to begin with, its own fault has been said
        raise BadInput(
            f"data.held_out_pairs: {len(held_out)} held-out pairs have the prompts of all others, so none is left to train "
            "on; lower it, or give pairs on more prompts"
        )
    return others
