"""Prompts, reference answers, demonstrations and preference pairs of the user's own: files, folders or the Hub.

Each split is a place. A prompt may stand in one split only, and once; a preference pair may not be on a held-out prompt.
What is not so is refused with both places, or left out and counted: `unusable` decides. Texts are taken as they stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from rlhf_bench.core.errors import BadInput, Problems
from rlhf_bench.core.types import (
    ALL_SPLITS,
    MAIN_SPLIT,
    Demonstration,
    Judgement,
    LabelledText,
    Prompt,
    Split,
    TextPair,
)
from rlhf_bench.tasks.base import HELD_OUT_PAIRS, LABELLED, PAIRS, Task, choose, generator
from rlhf_bench.tasks.judges.answers import judge_exact, judge_number, judge_overlap
from rlhf_bench.tasks.judges.boxed import judge_boxed, settle_boxed
from rlhf_bench.tasks.judges.ifeval import judge_ifeval
from rlhf_bench.tasks.loading.data_source import Place
from rlhf_bench.tasks.loading.reader import FilesReader, GivenPairs
from rlhf_bench.tasks.loading.settings import FilesSettings
from rlhf_bench.tasks.loading.trl import ASSISTANT


def build(settings: FilesSettings) -> Task:
    """Reads and checks every place. BadInput names what is wrong with each place, and of each kind of fault the first row."""
    reader, problems = FilesReader(settings), Problems()
    given: dict[Split, tuple[str, Place | None]] = {
        "train": ("task.prompts", settings.prompts),
        "in_distribution": ("task.held_out", settings.held_out or settings.prompts),
        "out_of_distribution": ("task.out_of_distribution", settings.out_of_distribution),
        "unseen": ("task.unseen", settings.unseen),
    }
    # Where repeats are left out, the later one is: a prompt that is held out and in training then stays held out.
    order = ALL_SPLITS if settings.unusable == "refuse" else (*ALL_SPLITS[1:], ALL_SPLITS[0])
    splits, responses = dict[Split, list[Prompt]](), dict[str, str]()
    for split in order:
        key, place = given[split]
        with problems.step():
            if place is not None:
                splits[split], found = reader.split(split, place, key)
                responses |= found
    given_pairs = GivenPairs([], [], [], "", [])
    with problems.step():
        if settings.pairs is not None:
            train, held_out = splits.get("train", []), splits.get(MAIN_SPLIT, [])
            given_pairs = reader.pairs(settings.pairs, train, held_out)
    with problems.step():
        reader.refused.refuse()
    if not problems.found:
        with problems.step():
            _check_share(settings, splits)
    problems.refuse()
    splits = {split: splits[split] for split in ALL_SPLITS if split in splits}
    pairs, held_out_pairs, labelled = given_pairs.training, given_pairs.held_out, given_pairs.labelled
    counts = ", ".join(f"{len(prompts)} {split}" for split, prompts in splits.items())
    on_held_out = f", and {len(held_out_pairs)} on held-out prompts" if held_out_pairs else ""
    return Task(
        name="files",
        prompts=partial(choose_prompts, "files", splits),
        demonstrations=partial(_demonstrations, splits, responses),
        judge=_judge_of(settings),
        settle=_settle_boxed if settings.judge == "boxed" else None,
        pairs=partial(_pairs, pairs) if pairs else None,
        held_out_pairs=partial(_pairs, held_out_pairs) if pairs and held_out_pairs else None,
        labelled=partial(_labelled, labelled) if labelled else None,
        no_pairs=given_pairs.no_pairs,
        corpus=partial(_corpus, splits, responses, [*pairs, *held_out_pairs], labelled),
        splits=tuple(splits),
        sizes={
            **{s: len(found) for s, found in splits.items()},
            PAIRS: len(pairs),
            HELD_OUT_PAIRS: len(held_out_pairs),
            LABELLED: len(labelled),
        },
        notes=(
            f"prompts: {counts}; preference pairs: {len(pairs)}{on_held_out}",
            *given_pairs.notes,
            *([f"rows left out: {reader.left_out}"] if reader.left_out else []),
            *([f"not read: {reader.not_read}"] if reader.not_read else []),
            *_prefilled([prompt for prompts in splits.values() for prompt in prompts]),
        ),
        leaves_out=settings.unusable == "leave_out",
    )


def _prefilled(prompts: list[Prompt]) -> list[str]:
    """What the reader of a score must know where answers are continued."""
    begun = [prompt for prompt in prompts if prompt.turns and prompt.turns[-1].role == ASSISTANT]
    if not begun:
        return []
    said = (
        f"{len(begun)} prompts end with what the assistant has begun to say (first {begun[0].place.rpartition('/')[2]})"
    )
    return [f"{said}: judged is that and the response, as one answer"]


def _check_share(settings: FilesSettings, splits: dict[Split, list[Prompt]]) -> None:
    """BadInput where the share that is held out leaves one side without prompts."""
    sides: list[tuple[Split, str]] = [(MAIN_SPLIT, "raise"), ("train", "lower")]
    for split, remedy in sides:
        if settings.held_out_share is not None and not splits[split]:
            total = sum(len(splits[s]) for s, _ in sides)
            raise BadInput(
                f"task.held_out_share: {settings.held_out_share:g} of {total} prompts leaves none for {split}; {remedy} it"
            )


def choose_prompts(name: str, splits: dict[Split, list[Prompt]], split: Split, count: int, seed: int) -> list[Prompt]:
    """`count` prompts of a split whose prompts are given; the files tasks' `Task.prompts`."""
    return choose(splits.get(split, []), count, generator(name, split, seed), f"{name}, {split} prompts")


def _demonstrations(
    splits: dict[Split, list[Prompt]], responses: dict[str, str], count: int, seed: int
) -> list[Demonstration]:
    if not responses:
        raise BadInput("task.response_column: null leaves no demonstrations; name the column or turn off sft")
    prompts = choose_prompts("files", splits, "train", count, seed)
    return [Demonstration(prompt, responses[prompt.id]) for prompt in prompts]


def _pairs(pairs: list[TextPair], count: int, seed: int) -> list[TextPair]:
    return choose(pairs, count, generator("files", "pairs", seed), "files, preference pairs")


def _labelled(labelled: list[LabelledText], count: int, seed: int) -> list[LabelledText]:
    return choose(labelled, count, generator("files", "labelled", seed), "files, labelled responses")


def _judge_of(settings: FilesSettings) -> Callable[[Prompt, str], Judgement]:
    if settings.judge == "number":
        return partial(_judge_number, settings.marker)
    judges = {"exact": judge_exact, "boxed": judge_boxed, "overlap": judge_overlap, "ifeval": judge_ifeval}
    return partial(_judge_text, judges[settings.judge])


def _settle_boxed(asked: Sequence[tuple[Prompt, str]]) -> None:
    settle_boxed((response, prompt.answer) for prompt, response in asked)


def _judge_number(marker: str, prompt: Prompt, response: str) -> Judgement:
    return judge_number(response, prompt.answer, marker)


def _judge_text(judge: Callable[[str, str], Judgement], prompt: Prompt, response: str) -> Judgement:
    return judge(response, prompt.answer)


def _corpus(
    splits: dict[Split, list[Prompt]], responses: dict[str, str], pairs: list[TextPair], labelled: list[LabelledText]
) -> list[str]:
    prompts = [text for split in splits.values() for prompt in split for text in (prompt.text, prompt.answer)]
    pair_texts = [text for pair in pairs for text in (pair.prompt.text, pair.chosen, pair.rejected)]
    labelled_texts = [text for one in labelled for text in (one.prompt.text, one.response)]
    return list(dict.fromkeys([*prompts, *responses.values(), *pair_texts, *labelled_texts]))
