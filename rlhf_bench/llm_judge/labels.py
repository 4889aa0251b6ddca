"""Pairs of responses that people have judged: PandaLM's file, or rows of one's own."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_bench.core.contests import Contest
from rlhf_bench.core.errors import BadInput

LABELS = {"a": 1.0, "b": 0.0, "tie": 0.5}
"""Of the column `label` -> the preference for `a`."""
PEOPLE = ("annotator1", "annotator2", "annotator3")
OF_PANDALM = ("instruction", "input", "response1", "response2")
MAX_PROBLEMS = 10


@dataclass(frozen=True, slots=True)
class Labelled:
    """Contests with people's preference for each one's `own` response; `note`: what of the file they are."""

    contests: tuple[Contest, ...]
    labels: tuple[float, ...]
    note: str

    def shuffled(self) -> Labelled:
        """In an order of chance, always the same: where a budget ends early, what was judged is a random sample."""
        order = list(range(len(self.contests)))
        random.Random(0).shuffle(order)
        return replace(
            self, contests=tuple(self.contests[i] for i in order), labels=tuple(self.labels[i] for i in order)
        )


def read_labelled(path: Path) -> Labelled:
    """A JSON list in PandaLM's form (https://github.com/WeOpenML/PandaLM), of which the pairs count that all three people call
    better on the same side; or JSON lines with `prompt`, `a`, `b` and `label` (a, b or tie). Raises BadInput with a line for each
    row that is wrong, at most ten."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise BadInput(
            f"--agreement {path}: cannot be read ({reason}); give a file in JSON, docs/llm_judge.md says how"
        ) from None
    found = _pandalm(path, text) if text.lstrip().startswith("[") else _rows(path, text)
    if not found.contests:
        raise BadInput(f"--agreement {path}: holds no pair that people have judged ({found.note}); give one that does")
    return found.shuffled()


def _rows(path: Path, text: str) -> Labelled:
    problems, contests, labels = [], [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        row = _object(line)
        wrong = _wrong_texts(row, ("prompt", "a", "b"))
        if not wrong and row.get("label") not in LABELS:
            wrong = f"label is {row.get('label')!r:.40}; write a, b or tie"
        if wrong:
            problems.append(f"--agreement {path}: line {number}: {wrong}")
            continue
        contests.append(Contest(*(str(row[key]) for key in ("prompt", "a", "b"))))
        labels.append(LABELS[row["label"]])
    _refuse(problems)
    return Labelled(tuple(contests), tuple(labels), f"{len(contests)} pairs of {path.name}")


def _pandalm(path: Path, text: str) -> Labelled:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"--agreement {path}: is no JSON ({error}); give a file in JSON, docs/llm_judge.md says how"
        ) from None
    problems, contests, labels = [], [], []
    for number, row in enumerate(rows):
        row = row if isinstance(row, dict) else {}
        wrong = _wrong_texts(row, OF_PANDALM)
        verdicts = [row.get(person) for person in PEOPLE]
        if not wrong and not all(isinstance(v, int) and v in (0, 1, 2) for v in verdicts):
            wrong = f"{', '.join(PEOPLE)} are {verdicts!r:.60}; write 0 (tie), 1 or 2"
        if wrong:
            problems.append(f"--agreement {path}: entry {number}: {wrong}")
        elif set(verdicts) in ({1}, {2}):
            instruction, given, *responses = (str(row[key]) for key in OF_PANDALM)
            contests.append(Contest("\n\n".join(filter(None, (instruction, given))), *responses))
            labels.append(float(verdicts[0] == 1))
    _refuse(problems)
    note = f"the {len(contests)} of {len(rows)} pairs of {path.name} on whose better response three people agree"
    return Labelled(tuple(contests), tuple(labels), note)


def _object(line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _wrong_texts(row: Mapping[str, Any], names: Iterable[str]) -> str:
    wanted = [
        name for name in names if not isinstance(row.get(name), str | int | float)
    ]  # PandaLM has numbers as answers
    return f"{', '.join(wanted)}: no text; write the row as a JSON object with texts under these keys" if wanted else ""


def _refuse(problems: list[str]) -> None:
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[:MAX_PROBLEMS], f"and {len(problems) - MAX_PROBLEMS} more rows of the same file"]
    if problems:
        raise BadInput(*problems)
