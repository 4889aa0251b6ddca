"""Reads the places of a task of one's own files: every prompt once, in one split, and each row used, refused or counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import MAIN_SPLIT, LabelledText, Prompt, Split, TextPair
from rlhf_bench.core.unusable import LeftOut, Unusable
from rlhf_bench.tasks.base import fraction
from rlhf_bench.tasks.judges.answers import reference_number
from rlhf_bench.tasks.judges.ifeval import IDS, KWARGS, reference_of
from rlhf_bench.tasks.loading.data_source import Place, rows_at
from rlhf_bench.tasks.loading.labelled import COMPLETION, LABEL, LabelledCompletions, label_of
from rlhf_bench.tasks.loading.messages import COLUMNS, check_columns, keys_not_read
from rlhf_bench.tasks.loading.rows import FileRow
from rlhf_bench.tasks.loading.settings import FilesSettings
from rlhf_bench.tasks.loading.trl import Asked, answered, asked, equal_sides, preference
from rlhf_bench.tasks.loading.verdicts import NoPreference, decided, joined

MAX_NAMES = 12
Item = TypeVar("Item")
Key = tuple[str, str]


class _Long(Unusable):
    """Beyond the recipe's limits, or no answer to imitate: left out even where `unusable` is refuse."""


@dataclass
class NotRead:
    """Columns and keys of messages that nothing reads, by name, so that none is dropped in silence."""

    columns: dict[str, None] = field(default_factory=dict)
    keys: dict[str, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.columns or self.keys)

    def __str__(self) -> str:
        parts = {"the columns": self.columns, "the messages' keys": self.keys}
        return "; ".join(f"{what} {_few(list(names))}" for what, names in parts.items() if names)


def _few(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class GivenPairs:
    """Of the place of pairs: those to train on, those on prompts of the share that is held out, and labelled completions to train
    on. `no_pairs`: why there are none, where completions have labels and no two make a pair."""

    training: list[TextPair]
    held_out: list[TextPair]
    labelled: list[LabelledText]
    no_pairs: str
    notes: list[str]


@dataclass
class FilesReader:
    """Reads the places in order and remembers every prompt's, so that a repeat can name both."""

    settings: FilesSettings
    places: dict[Key, str] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    refused: LeftOut = field(default_factory=LeftOut)  # faults of all places, where none is left out
    not_read: NotRead = field(default_factory=NotRead)

    def _rows(self, place: Place, key: str, read: Callable[[FileRow], Item | None]) -> Iterator[Item]:
        """What `read` makes of the rows, None aside. Rows with a fault are left out, or refused in the end, all at once. BadInput
        where every row is left out."""
        found, left_out, faults = False, LeftOut(), LeftOut()

        def leave_out(fault: Unusable) -> None:
            if self.settings.unusable == "refuse" and not isinstance(fault, _Long | NoPreference):
                faults.add(fault)
                self.refused.add(fault)
                return
            left_out.add(fault)
            self.left_out.add(fault)

        for row in rows_at(place, key, leave_out):
            try:
                check_columns(row, self._named)
                self._note_what_is_not_read(row, key)
                item = read(self._in_our_columns(row, key))
            except Unusable as fault:
                leave_out(fault)
                continue
            found = True
            if item is not None:
                yield item
        if not found and left_out and not faults:
            remedy = ", or remove the key, and a weaker policy makes the pairs" if key == "task.pairs" else ""
            raise BadInput(
                f"{key}: {place.source}: every row is left out ({left_out}); correct the rows or the limits on characters"
                f"{remedy}; the first: {left_out.first}"
            )

    def _in_our_columns(self, row: FileRow, key: str) -> FileRow:
        """With the columns that the settings make of others, as far as rows of that key need them."""
        s = self.settings
        if s.prompt not in row.values and not isinstance(s.prompt_column, str):
            row = joined(row, s.prompt_column)
        v, sides = s.verdicts, s.columns.sides
        if v is None or not (key == "task.pairs" or {s.reference_column, s.response_column} & set(sides)):
            return row
        return decided(row, v.answers, v.columns, v.values, sides)

    @property
    def _named(self) -> tuple[str, ...]:
        s = self.settings
        names = s.id_column, s.reference_column, s.response_column, s.chosen_column, s.rejected_column
        prompt = (s.prompt_column,) if isinstance(s.prompt_column, str) else s.prompt_column
        verdicts = () if s.verdicts is None else (*s.verdicts.answers, *s.verdicts.columns)
        return tuple(name for name in (*prompt, *names, *verdicts) if name is not None)

    def _is_held_out(self, found: Asked) -> bool:
        """By the share that is held out, which all rows of a prompt are or none is."""
        return self.settings.held_out_share is not None and fraction(found.text) < self.settings.held_out_share

    @property
    def _answers(self) -> tuple[str | None, ...]:
        """Columns that hold answers to the row's prompt."""
        s = self.settings
        return s.prompt, s.response_column, s.chosen_column, s.rejected_column

    def _note_what_is_not_read(self, row: FileRow, key: str) -> None:
        read = {*self._named, *COLUMNS, "system", "tools", *([LABEL] if self._is_unpaired(row) else [])}
        read |= {COMPLETION, LABEL} if key == "task.pairs" and self._is_labelled(row) else set()
        read |= {IDS, KWARGS} if self.settings.judge == "ifeval" else set()
        self.not_read.columns |= dict.fromkeys(str(column) for column in row.values if column not in read)
        self.not_read.keys |= dict.fromkeys(sorted(keys_not_read(row, self._named)))

    def split(self, split: Split, place: Place, key: str) -> tuple[list[Prompt], dict[str, str]]:
        """The split's prompts; of the training prompts also the responses, by id."""
        prompts, responses, ids, own = list[Prompt](), dict[str, str](), dict[str, str](), set[Key]()
        column = self.settings.response_column if split == "train" else None

        def read(row: FileRow) -> tuple[Prompt, str] | None:
            self._check_label(row)
            found = asked(row, self.settings.columns)
            if self.settings.held_out_share is not None:
                if self._is_held_out(found) != (split == MAIN_SPLIT):
                    return None
                if self.settings.pairs == place and found.key in own:  # one more pair on the same prompt
                    return None
            prompt = self._prompt(row, split, found)
            if first := ids.get(prompt.id):
                problem = f"the same id '{prompt.id}' as {first}; give every prompt its own"
                raise Unusable(row.where, problem, "with an id that came before")
            if first := self.places.get(found.key):
                problem = f"the same prompt as {first}; keep each prompt once and in one file"
                raise Unusable(row.where, problem, "with a prompt that came before")
            response = answered(row, column, self.settings.columns, found) if column is not None else ""
            self._within_limits(row, prompt.text, response)
            ids[prompt.id] = self.places[found.key] = row.where
            own.add(found.key)
            return prompt, response

        for prompt, response in self._rows(place, key, read):
            prompts.append(prompt)
            if column is not None:
                responses[prompt.id] = response
        return prompts, responses

    def _is_unpaired(self, row: FileRow) -> bool:
        """Whether the answers are TRL's completions, which a label calls good or bad."""
        read = (self.settings.response_column, self.settings.reference_column)
        return COMPLETION in read and COMPLETION in row.values and row.has(LABEL) and LABEL not in read

    def _is_labelled(self, row: FileRow) -> bool:
        """Whether a row among the pairs is a completion with a label, and no pair."""
        return COMPLETION in row.values and row.has(LABEL) and not self.settings.columns.has_pair(row)

    def _check_label(self, row: FileRow) -> None:
        if self._is_unpaired(row) and not label_of(row):
            raise _Long(
                row.where, "no answer to imitate", "with the label false, whose completion is no answer to imitate"
            )

    def _within_limits(self, row: FileRow, prompt: str, *responses: str) -> None:
        longest_response = max(map(len, responses), default=0)
        for what, length in (("prompt", len(prompt)), ("response", longest_response)):
            key = f"max_{what}_characters"
            most = getattr(self.settings, key)
            if most is not None and length > most:
                raise _Long(
                    row.where, f"a {what} of {length} characters; {key} is {most}", f"with a {what} longer than {key}"
                )

    def _prompt(self, row: FileRow, split: Split, found: Asked) -> Prompt:
        column = self.settings.id_column
        name = f"{row.number:06d}" if column is None else row.answer(column)
        return self._of(row, f"files/{split}/{name}", found, self._reference(row, found))

    def _of(self, row: FileRow, name: str, found: Asked, reference: str) -> Prompt:
        return Prompt(name, found.text, reference, turns=found.turns, tools=found.tools, where=row.where)

    def _reference(self, row: FileRow, found: Asked) -> str:
        if self.settings.judge == "ifeval":
            return reference_of(row)
        column = self.settings.reference_column
        reference = answered(row, column, self.settings.columns, found)
        if column in self._answers:  # it continues the prefill, and the judge is given both
            reference = found.prefill + reference
        if self.settings.judge == "number" and reference_number(reference, self.settings.marker) is None:
            problem = (
                f"column '{column}' has no single number to compare with ({reference[:40]!r}); correct it or set "
                "task.judge: exact"
            )
            raise Unusable(row.where, problem, "without a single number in the reference")
        return reference

    def pairs(self, place: Place, train: Sequence[Prompt], held_out: Sequence[Prompt]) -> GivenPairs:
        """A pair on a known prompt shares it; another prompt's reference is "" if its row gives none. BadInput where every row is
        left out: a weaker policy's pairs are not what was asked for."""
        shared = [*train, *(held_out if self.settings.held_out_share is not None else ())]
        prompts: dict[Key, Prompt] = {(prompt.text, prompt.tools): prompt for prompt in shared}
        known, labelled, kept = set(prompts), LabelledCompletions(), list[LabelledText]()

        def prompt_of(row: FileRow, found: Asked, *answers: str) -> Prompt:
            if found.key in self.places and found.key not in known:
                problem = f"a pair on the held-out prompt {self.places[found.key]}; remove one of the two"
                raise Unusable(row.where, problem, "with a pair on a held-out prompt")
            self._within_limits(row, found.text, *answers)
            if found.key not in prompts:
                column = IDS if self.settings.judge == "ifeval" else self.settings.reference_column
                reference = self._reference(row, found) if row.has(column) else ""
                prompts[found.key] = self._of(row, f"files/pairs/{row.number:06d}", found, reference)
            return prompts[found.key]

        def pair(row: FileRow, prompt: Prompt, chosen: str, rejected: str) -> TextPair:
            if chosen == rejected:
                raise equal_sides(row)
            return TextPair(prompt, chosen, rejected, where=row.where)

        def read(row: FileRow) -> tuple[TextPair, bool] | None:
            if not self._is_labelled(row):
                found, chosen, rejected = preference(row, self.settings.columns)
                made = pair(row, prompt_of(row, found, chosen, rejected), chosen, rejected)
                return made, self._is_held_out(found)
            found, good = asked(row, self.settings.columns), label_of(row)
            completion = answered(row, COMPLETION, self.settings.columns, found)
            text = LabelledText(prompt_of(row, found, completion), completion, good, row.where)
            sides, is_held_out = labelled.pair(text), self._is_held_out(found)
            paired = None if sides is None else (pair(row, text.prompt, *sides), is_held_out)
            if not is_held_out:
                kept.append(text)
            return paired

        read_pairs = list(self._rows(place, "task.pairs", read))
        no_pairs = f"task.pairs: {place.source}: {labelled.problem}" if labelled.texts and not read_pairs else ""
        training, apart = ([p for p, out in read_pairs if out == held] for held in (False, True))
        return GivenPairs(training, apart, kept, no_pairs, labelled.notes())
