"""Completions that a label calls good or bad: TRL's unpaired preferences (`prompt`, `completion`, `label`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_bench.core.types import LabelledText
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.tasks.loading.rows import FileRow

LABEL, COMPLETION = "label", "completion"


def label_of(row: FileRow) -> bool:
    """Whether the row's completion is a good one."""
    label = row.values[LABEL]
    word = label.strip().lower() if isinstance(label, str) else label
    if word not in (True, False, "true", "false", "1", "0"):
        problem = f"column '{LABEL}' is neither true nor false; correct it"
        raise Unusable(row.where, problem, "with a label that is neither true nor false")
    return word in (True, "true", "1")


@dataclass
class LabelledCompletions:
    """All that were read. A good and a bad one of the same prompt make a pair; each is used once for that."""

    texts: list[LabelledText] = field(default_factory=list)
    _waiting: dict[tuple[str, bool], list[str]] = field(default_factory=dict)  # by the prompt's id

    def pair(self, text: LabelledText) -> tuple[str, str] | None:
        """This completion and one that waited for it, the good one first; None where it waits now."""
        self.texts.append(text)
        prompt, own, good = text.prompt.id, text.response, text.desirable
        if others := self._waiting.get((prompt, not good)):
            other = others.pop(0)
            return (own, other) if good else (other, own)
        self._waiting.setdefault((prompt, good), []).append(own)
        return None

    @property
    def without_another(self) -> int:
        """How many found no other to make a pair with."""
        return sum(map(len, self._waiting.values()))

    def notes(self) -> list[str]:
        """What a user must know of them."""
        if not self.texts:
            return []
        good = sum(text.desirable for text in self.texts)
        said = f"labelled completions: {good} true, {len(self.texts) - good} false"
        if not self.without_another:
            return [said]
        return [
            f"{said}; {self.without_another} of them find no other with the same prompt to make a pair with: arms with unpaired: true alone "
            "learn from these"
        ]

    @property
    def problem(self) -> str:
        """Where no two make a pair: why, and the remedy."""
        labels = {text.desirable for text in self.texts}
        if len(labels) == 1:
            one, other = ("true", "false") if labels == {True} else ("false", "true")
            return (
                f"every completion has the label {one}, and methods that learn from labels or pairs need both; add completions "
                f"with the label {other}, of the same prompts for pairs, or remove the key, and a weaker policy makes the pairs"
            )
        return (
            "no prompt has completions of both labels, and a pair takes one of each; add completions of the same prompts with "
            "the other label, or set unpaired: true for arms of kto and use data: on_policy or online for the others, or remove "
            "the key, and a weaker policy makes the pairs"
        )
