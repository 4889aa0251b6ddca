"""Prompts, reference answers, demonstrations and preference pairs of the user's own: files, folders or the Hub.

Each split is a place. A prompt may stand in one split only, and once; a preference pair may not be on a held-out prompt.
What is not so is refused with both places, or left out and counted: `unusable` decides. Texts are taken as they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from pydantic import Field

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.settings import Section
from rlhf_bench.core.types import ALL_SPLITS, Demonstration, Judgement, Prompt, Split, TextPair
from rlhf_bench.tasks.base import Task, choose, generator
from rlhf_bench.tasks.judges.answers import judge_exact, judge_number, judge_overlap, reference_number
from rlhf_bench.tasks.judges.boxed import judge_boxed
from rlhf_bench.tasks.loading.data_source import Place, PlaceSetting, rows_at
from rlhf_bench.tasks.loading.rows import FileRow, Unusable
from rlhf_bench.tasks.loading.trl import Asked, Columns, answered, asked, preference


class FilesSettings(Section):
    """Where rows are, which columns of them to read, and how answers are judged. docs/data.md has examples."""

    kind: Literal["files"] = Field("files", description="Prompts and pairs of your own: files, folders or the Hub.")
    prompts: PlaceSetting = Field(description="Training prompts, one a row.")
    held_out: PlaceSetting = Field(description="Held-out prompts like the training ones (in_distribution).")
    out_of_distribution: PlaceSetting | None = Field(
        None, description="Held-out prompts longer or harder than in training."
    )
    unseen: PlaceSetting | None = Field(None, description="Held-out prompts about things that training never shows.")
    pairs: PlaceSetting | None = Field(None, description="Preference pairs for the offline methods; none if left out.")
    id_column: str | None = Field(
        None, description="Column of prompts with a name of its own for each row; null numbers the rows."
    )
    prompt_column: str = Field(
        "prompt",
        description="Column with the prompt: a text or messages. Where it is missing, the prompt is what chosen and rejected share.",
    )
    reference_column: str = Field(
        "reference", description="Column with the right answer: needed beside prompts, optional beside pairs."
    )
    response_column: str | None = Field(
        "response",
        description="Column of the training prompts with the response to imitate; null if there are no demonstrations.",
    )
    chosen_column: str = Field("chosen", description="Column with the preferred response: a text or messages.")
    rejected_column: str = Field("rejected", description="Column with the other response: a text or messages.")
    max_prompt_characters: int | None = Field(None, ge=1, description="Leave out rows with a longer prompt.")
    max_response_characters: int | None = Field(None, ge=1, description="Leave out rows with a longer response.")
    unusable: Literal["refuse", "leave_out"] = Field(
        "refuse",
        description="Rows with an empty text, a repeated prompt, equal sides, or a training prompt that is held out: refuse them with their places, or leave_out and count them.",
    )
    judge: Literal["exact", "number", "boxed", "overlap"] = Field(
        "exact",
        description="exact: the response is the reference; number: the number after the marker equals the reference's; "
        "boxed: the last \\boxed{} equals the reference's, by math-verify; overlap: the words shared with the reference.",
    )
    marker: str = Field("####", min_length=1, description="What stands before the answer, for judge: number.")

    @property
    def columns(self) -> Columns:
        return Columns(self.prompt_column, self.chosen_column, self.rejected_column)


class _Long(Unusable):
    """Beyond the recipe's limits, and so left out even where `unusable` is refuse."""


@dataclass
class _Reader:
    """Reads the places in order and remembers every prompt's, so that a repeat can name both."""

    settings: FilesSettings
    places: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def _leave_out(self, error: Unusable) -> None:
        if self.settings.unusable == "refuse" and not isinstance(error, _Long):
            raise error
        self.left_out[error.kind] += 1

    def split(self, split: Split, place: Place, key: str) -> tuple[list[Prompt], dict[str, str]]:
        """The split's prompts; of the training prompts also the responses, by id."""
        prompts, responses, ids = list[Prompt](), dict[str, str](), dict[str, str]()
        column = self.settings.response_column if split == "train" else None
        for row in rows_at(place, key):
            try:
                prompt = self._prompt(row, split)
                if first := ids.get(prompt.id):
                    raise BadInput(f"{row.where}: the same id '{prompt.id}' as {first}; give every prompt its own")
                if first := self.places.get(prompt.text):
                    raise Unusable(
                        f"{row.where}: the same prompt as {first}; keep each prompt once and in one file",
                        "with a prompt that came before",
                    )
                response = answered(row, column) if column is not None else ""
                self._within_limits(row, prompt.text, response)
            except Unusable as error:
                self._leave_out(error)
                continue
            ids[prompt.id] = self.places[prompt.text] = row.where
            prompts.append(prompt)
            if column is not None:
                responses[prompt.id] = response
        return prompts, responses

    def _within_limits(self, row: FileRow, prompt: str, *responses: str) -> None:
        most, most_response = self.settings.max_prompt_characters, self.settings.max_response_characters
        if most is not None and len(prompt) > most:
            raise _Long(f"{row.where}: too long", "with a prompt longer than max_prompt_characters")
        if most_response is not None and max(map(len, responses), default=0) > most_response:
            raise _Long(f"{row.where}: too long", "with a response longer than max_response_characters")

    def _prompt(self, row: FileRow, split: Split) -> Prompt:
        settings = self.settings
        name = f"{row.number:06d}" if settings.id_column is None else row.answer(settings.id_column)
        found = asked(row, settings.columns)
        return Prompt(f"files/{split}/{name}", found.text, self._reference(row), turns=found.turns, where=row.where)

    def _reference(self, row: FileRow) -> str:
        column = self.settings.reference_column
        reference = answered(row, column)
        if self.settings.judge == "number" and reference_number(reference, self.settings.marker) is None:
            raise BadInput(
                f"{row.where}: column '{column}' has no single number to compare with "
                f"({reference[:40]!r}); correct it or set task.judge: exact"
            )
        return reference

    def pairs(self, place: Place, train: dict[str, Prompt]) -> list[TextPair]:
        """The pairs. One on a training prompt shares it; another prompt's reference is "" if its row gives none. BadInput
        where every row is left out: a weaker policy's pairs are not what was asked for."""
        pairs, prompts, of_prompts = list[TextPair](), dict(train), self.left_out.copy()
        for row in rows_at(place, "task.pairs"):
            try:
                found, chosen, rejected = preference(row, self.settings.columns)
                if found.text in self.places and found.text not in train:
                    raise Unusable(
                        f"{row.where}: a pair on the held-out prompt {self.places[found.text]}; remove one of the two",
                        "with a pair on a held-out prompt",
                    )
                self._within_limits(row, found.text, chosen, rejected)
                if found.text not in prompts:
                    prompts[found.text] = self._prompt_of_pair(row, found)
                if chosen == rejected:
                    raise Unusable(
                        f"{row.where}: chosen and rejected are the same text; remove the row", "with equal sides"
                    )
            except Unusable as error:
                self._leave_out(error)
                continue
            pairs.append(TextPair(prompts[found.text], chosen, rejected, where=row.where))
        if not pairs:
            raise BadInput(
                f"task.pairs: {place.source}: every row is left out ({_counts(self.left_out - of_prompts)}); correct the rows "
                "or the limits on characters, or remove the key, and a weaker policy makes the pairs"
            )
        return pairs

    def _prompt_of_pair(self, row: FileRow, found: Asked) -> Prompt:
        given = row.values.get(self.settings.reference_column) is not None
        reference = self._reference(row) if given else ""
        return Prompt(f"files/pairs/{row.number:06d}", found.text, reference, turns=found.turns, where=row.where)


def build(settings: FilesSettings) -> Task:
    """Reads and checks every place. BadInput names the first row that is wrong."""
    reader = _Reader(settings)
    given: dict[Split, tuple[str, Place | None]] = {
        "train": ("task.prompts", settings.prompts),
        "in_distribution": ("task.held_out", settings.held_out),
        "out_of_distribution": ("task.out_of_distribution", settings.out_of_distribution),
        "unseen": ("task.unseen", settings.unseen),
    }
    # Where repeats are left out, the later one is: a prompt that is held out and in training then stays held out.
    order = ALL_SPLITS if settings.unusable == "refuse" else (*ALL_SPLITS[1:], ALL_SPLITS[0])
    read = {
        split: reader.split(split, place, key) for split in order for key, place in [given[split]] if place is not None
    }
    splits: dict[Split, list[Prompt]] = {split: read[split][0] for split in ALL_SPLITS if split in read}
    responses = read["train"][1]
    train = {prompt.text: prompt for prompt in splits["train"]}
    pairs = [] if settings.pairs is None else reader.pairs(settings.pairs, train)
    counts = ", ".join(f"{len(prompts)} {split}" for split, prompts in splits.items())
    return Task(
        name="files",
        prompts=partial(choose_prompts, "files", splits),
        demonstrations=partial(_demonstrations, splits, responses),
        judge=_judge_of(settings),
        pairs=partial(_pairs, pairs) if pairs else None,
        corpus=partial(_corpus, splits, responses, pairs),
        splits=tuple(splits),
        notes=(
            f"prompts: {counts}; preference pairs: {len(pairs)}",
            *([f"rows left out: {_counts(reader.left_out)}"] if reader.left_out else []),
        ),
    )


def _counts(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in left_out.items())


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


def _judge_of(settings: FilesSettings) -> Callable[[Prompt, str], Judgement]:
    if settings.judge == "number":
        return partial(_judge_number, settings.marker)
    judges = {"exact": judge_exact, "boxed": judge_boxed, "overlap": judge_overlap}
    return partial(_judge_text, judges[settings.judge])


def _judge_number(marker: str, prompt: Prompt, response: str) -> Judgement:
    return judge_number(response, prompt.answer, marker)


def _judge_text(judge: Callable[[str, str], Judgement], prompt: Prompt, response: str) -> Judgement:
    return judge(response, prompt.answer)


def _corpus(splits: dict[Split, list[Prompt]], responses: dict[str, str], pairs: list[TextPair]) -> list[str]:
    prompts = [text for split in splits.values() for prompt in split for text in (prompt.text, prompt.answer)]
    pair_texts = [text for pair in pairs for text in (pair.prompt.text, pair.chosen, pair.rejected)]
    return list(dict.fromkeys([*prompts, *responses.values(), *pair_texts]))
