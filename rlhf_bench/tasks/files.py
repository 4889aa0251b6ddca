"""Prompts, reference answers, demonstrations and preference pairs from the user's own JSONL or Parquet files.

Each split is a file. A prompt's text may stand in one split only, and once: a repeat is refused with both places, and
so is a preference pair on a held-out prompt. Texts are taken as they stand, with no template around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from rlhf_bench.tasks._answers import judge_exact, judge_number, reference_number
from rlhf_bench.tasks._base import ALL_SPLITS, Task, choose, generator
from rlhf_bench.tasks._rows import FileRow, read_rows
from rlhf_bench.types import BadInput, Demonstration, Judgement, Prompt, Split, TextPair


class FilesSettings(BaseModel):
    """Which files to read, which columns of them, and how answers are judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["files"] = Field("files", description="Prompts and pairs from local JSONL or Parquet files.")
    prompts: Path = Field(description="Training prompts: .jsonl or .parquet, one prompt a row.")
    held_out: Path = Field(description="Held-out prompts like the training ones (in_distribution).")
    out_of_distribution: Path | None = Field(None, description="Held-out prompts longer or harder than in training.")
    unseen: Path | None = Field(None, description="Held-out prompts about things that training never shows.")
    pairs: Path | None = Field(None, description="Preference pairs for the offline methods; none if left out.")
    id_column: str | None = Field(
        None, description="Column of prompt files with a name of its own for each row; null numbers the rows."
    )
    prompt_column: str = Field("prompt", description="Column with the prompt, in every file.")
    reference_column: str = Field(
        "reference", description="Column with the right answer: needed in prompt files, optional in the pairs file."
    )
    response_column: str | None = Field(
        "response",
        description="Column of the training prompts with the response to imitate; null if there are no demonstrations.",
    )
    chosen_column: str = Field("chosen", description="Column of the pairs file with the preferred response.")
    rejected_column: str = Field("rejected", description="Column of the pairs file with the other response.")
    judge: Literal["exact", "number"] = Field(
        "exact",
        description="exact: the response is the reference; number: the number after the marker equals the reference's.",
    )
    marker: str = Field("####", min_length=1, description="What stands before the answer, for judge: number.")


@dataclass
class _Reader:
    """Reads the files in order and remembers every prompt's place, so that a repeat can name both."""

    settings: FilesSettings
    places: dict[str, str] = field(default_factory=dict)

    def split(self, split: Split, path: Path, key: str) -> list[tuple[FileRow, Prompt]]:
        entries = []
        ids: dict[str, str] = {}
        for row in read_rows(path, key):
            prompt = self._prompt(row, split)
            if first := ids.get(prompt.id):
                raise BadInput(f"{row.where}: the same id '{prompt.id}' as {first}; give every prompt its own")
            if first := self.places.get(prompt.text):
                raise BadInput(f"{row.where}: the same prompt as {first}; keep each prompt once and in one file")
            ids[prompt.id] = self.places[prompt.text] = row.where
            entries.append((row, prompt))
        return entries

    def _prompt(self, row: FileRow, split: Split) -> Prompt:
        settings = self.settings
        name = f"{row.number:06d}" if settings.id_column is None else row.answer(settings.id_column)
        return Prompt(f"files/{split}/{name}", row.text(settings.prompt_column), self._reference(row))

    def _reference(self, row: FileRow) -> str:
        reference = row.answer(self.settings.reference_column)
        if self.settings.judge == "number" and reference_number(reference, self.settings.marker) is None:
            raise BadInput(
                f"{row.where}: column '{self.settings.reference_column}' has no single number to compare with "
                f"({reference[:40]!r}); correct it or set task.judge: exact"
            )
        return reference

    def pairs(self, path: Path, train: dict[str, Prompt]) -> list[TextPair]:
        """The pairs. One on a training prompt shares it; another prompt's reference is "" if its row gives none."""
        settings, pairs = self.settings, []
        prompts = dict(train)
        for row in read_rows(path, "task.pairs"):
            text = row.text(settings.prompt_column)
            if text in self.places and text not in train:
                raise BadInput(f"{row.where}: a pair on the held-out prompt {self.places[text]}; remove one of the two")
            if text not in prompts:
                reference = self._reference(row) if settings.reference_column in row.values else ""
                prompts[text] = Prompt(f"files/pairs/{row.number:06d}", text, reference)
            chosen, rejected = row.text(settings.chosen_column), row.text(settings.rejected_column)
            if chosen == rejected:
                raise BadInput(f"{row.where}: chosen and rejected are the same text; remove the row")
            pairs.append(TextPair(prompts[text], chosen, rejected))
        return pairs


def build(settings: FilesSettings) -> Task:
    """Reads and checks every file. BadInput names the first row that is wrong."""
    reader = _Reader(settings)
    paths = {
        "train": ("task.prompts", settings.prompts),
        "in_distribution": ("task.held_out", settings.held_out),
        "out_of_distribution": ("task.out_of_distribution", settings.out_of_distribution),
        "unseen": ("task.unseen", settings.unseen),
    }
    splits: dict[Split, list[Prompt]] = {}
    responses: dict[str, str] = {}
    for split in ALL_SPLITS:
        key, path = paths[split]
        if path is None:
            continue
        entries = reader.split(split, path, key)
        splits[split] = [prompt for _, prompt in entries]
        if split == "train" and settings.response_column is not None:
            responses = {prompt.id: row.text(settings.response_column) for row, prompt in entries}
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
        notes=(f"prompts: {counts}; preference pairs: {len(pairs)}",),
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


def _judge_of(settings: FilesSettings) -> Callable[[Prompt, str], Judgement]:
    if settings.judge == "number":
        return lambda prompt, response: judge_number(response, prompt.reference, settings.marker)
    return lambda prompt, response: judge_exact(response, prompt.reference)


def _corpus(splits: dict[Split, list[Prompt]], responses: dict[str, str], pairs: list[TextPair]) -> list[str]:
    prompts = [text for split in splits.values() for prompt in split for text in (prompt.text, prompt.reference)]
    pair_texts = [text for pair in pairs for text in (pair.prompt.text, pair.chosen, pair.rejected)]
    return list(dict.fromkeys([*prompts, *responses.values(), *pair_texts]))
