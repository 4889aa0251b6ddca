"""What a file, folder or data set is, told by its columns: the keys of a `files` task that read it, and what was assumed.

Names alone decide, and they are few: TRL's columns, those of widespread question and instruction sets, and PandaLM's. Any
others are named by the user, and where something is missing one line says what."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rlhf_bench.core.errors import BadInput
from rlhf_bench.tasks.judges.answers import reference_number
from rlhf_bench.tasks.judges.ifeval import IDS, KWARGS
from rlhf_bench.tasks.loading.data_source import Place, rows_at
from rlhf_bench.tasks.loading.labelled import COMPLETION, LABEL
from rlhf_bench.tasks.loading.rows import FileRow
from rlhf_bench.tasks.loading.verdicts import said

SAMPLE = 500
"""Rows that are looked at."""
SHORT = 30
"""Characters of a median reference that can be asked for word by word."""
ROLES = ("prompt", "chosen", "rejected", "reference", "response", "answers", "verdicts", "values")
"""What columns can be named to be; and for `values`, what a verdict says for the first answer and for the second."""
PROMPTS = (("prompt",), ("question",), ("instruction", "input"), ("instruction",), ("query",))
REFERENCES = ("reference", "answer", "output")
ANSWERS = (("response1", "response2"), ("response_1", "response_2"), ("response_a", "response_b"))
VERDICTS = ("preference", "winner", "verdict")
PLACES = ("prompts", "pairs", "folder")
GSM8K = ("train.jsonl", "test.jsonl", "example_model_solutions.jsonl")


@dataclass
class Layout:
    """Keys of the recipe's `task`, and (key, what was assumed) for a reader."""

    task: dict[str, Any]
    assumed: list[tuple[str, str]] = field(default_factory=list)

    def seen_from(self, folder: Path) -> dict[str, Any]:
        """The task, with the paths of files that are there as a recipe in that folder names them."""

        def seen(value: Any) -> Any:
            if not isinstance(value, str) or Path(value).is_absolute() or not Path(value).exists():
                return value
            path = os.path.relpath(value, folder)
            return path if path.startswith("../") else f"./{path}"

        return {key: seen(value) if key in PLACES else value for key, value in self.task.items()}


def layout_of(source: str, named: Mapping[str, Sequence[str]], share: float) -> Layout:
    """How to read the source. `named`: role -> columns that the user names; `share`: of the prompts to hold out. BadInput, with
    what is there and what is wanted, where the columns are none that are known."""
    folder = Path(source)
    if not named and all((folder / name).is_file() for name in GSM8K):
        return Layout({"kind": "gsm8k", "folder": source}, [("task", f"{', '.join(GSM8K)}: GSM8K's own release")])
    rows = list(rows_at(Place(source=source, rows=SAMPLE), "--data", lambda fault: None))
    columns = list(dict.fromkeys(str(column) for row in rows for column in row.values))
    if missing := [c for role, names in named.items() if role != "values" for c in names if c not in columns]:
        raise BadInput(f"--map: {source} has no column {missing[0]} (there is: {', '.join(columns)}); correct the name")
    layout = Layout({"kind": "files", "prompts": source, "held_out_share": share, "unusable": "leave_out"})
    roles = {role: list(names) for role, names in named.items()}
    for role, guess in _GUESSES.items():
        if role not in roles and (found := guess(columns, roles)):
            roles[role] = found
    _set_sides(layout, roles, rows, source, columns)
    _set_answers(layout, roles, rows)
    layout.assumed.append(
        (
            "task",
            f"{share:.0%} of the prompts are held out, with all pairs on them; every row of a prompt is on one side",
        )
    )
    layout.assumed.append(("task", "rows that cannot be used are left out and counted"))
    return layout


def _first(options: Sequence[Sequence[str]]) -> Callable[[list[str], Mapping[str, Any]], list[str]]:
    return lambda columns, roles: next((list(o) for o in options if set(o) <= set(columns)), [])


def _verdicts(columns: list[str], roles: Mapping[str, Any]) -> list[str]:
    if "answers" not in roles:
        return []
    return [c for c in columns if c.startswith("annotator")] or [c for c in VERDICTS if c in columns][:1]


_GUESSES: dict[str, Callable[[list[str], Mapping[str, Any]], list[str]]] = {
    "prompt": _first(PROMPTS),
    "chosen": _first([("chosen",)]),
    "rejected": _first([("rejected",)]),
    "answers": lambda columns, roles: [] if {"chosen", "rejected"} & set(roles) else _first(ANSWERS)(columns, roles),
    "verdicts": _verdicts,
    "reference": _first([(name,) for name in REFERENCES]),
    "response": _first([("response",)]),
}
"""Role -> the columns that are taken for it, in this order."""


def _set_sides(
    layout: Layout, roles: dict[str, list[str]], rows: Sequence[FileRow], source: str, columns: Sequence[str]
) -> None:
    """The prompt's columns, and those of two answers, of which one is preferred."""
    task, pairs = layout.task, {"chosen", "rejected"} <= set(roles)
    if not pairs and roles.get("answers") and roles.get("verdicts"):
        task["verdicts"] = {
            "answers": roles["answers"],
            "columns": roles["verdicts"],
            "values": roles.get("values") or _values(roles["verdicts"], rows),
        }
        pairs = True
        first, second = task["verdicts"]["values"]
        layout.assumed.append(
            (
                "task",
                f"{', '.join(roles['verdicts'])}: verdicts, {first} for {roles['answers'][0]}, {second} for "
                f"{roles['answers'][1]}; anything else is a tie, and more than half must agree",
            )
        )
    elif pairs:
        task |= {f"{side}_column": roles[side][0] for side in ("chosen", "rejected") if roles[side][0] != side}
    implicit = pairs and "verdicts" not in task and "prompt" not in roles
    if not implicit and "prompt" not in roles or not (pairs or _has_answers(roles, columns)):
        raise BadInput(
            f"--data: {source} has the columns {', '.join(columns)}, and what they are is not known; wanted are prompt, chosen "
            "and rejected; or prompt and reference; or prompt, completion and label; name yours with --map prompt=COLUMN "
            "--map chosen=COLUMN …, or --map answers=A,B --map verdicts=COLUMN --map values=1,2"
        )
    if "prompt" in roles and roles["prompt"] != ["prompt"]:
        task["prompt_column"] = roles["prompt"] if len(roles["prompt"]) > 1 else roles["prompt"][0]
        layout.assumed.append(("task", f"the prompt is {' and '.join(roles['prompt'])}"))
    if implicit:
        layout.assumed.append(("task", "the prompt is what chosen and rejected share"))
    labelled = not pairs and {COMPLETION, LABEL} <= set(columns)
    if pairs or labelled:
        task["pairs"] = source
    if labelled:
        said = f"{COMPLETION} and {LABEL}: answers that a label calls good or bad; two of one prompt make a pair"
        layout.assumed.append(("task", said))


def _has_answers(roles: Mapping[str, Any], columns: Sequence[str]) -> bool:
    return "reference" in roles or {COMPLETION, LABEL} <= set(columns) or {IDS, KWARGS} <= set(columns)


def _values(columns: Sequence[str], rows: Sequence[FileRow]) -> list[str]:
    """What verdicts say for the first answer and for the second: 1 and 2 where there is nothing else but 0."""
    found = {said(row.values[column]) for row in rows for column in columns if row.has(column)}
    if {"1", "2"} <= found <= {"0", "1", "2"}:
        return ["1", "2"]
    shown = ", ".join(sorted(found)[:6])
    raise BadInput(
        f"--data: the verdicts in {', '.join(columns)} are {shown}, and which of them is for which answer is not known; "
        "say so with --map values=FIRST,SECOND"
    )


def _set_answers(layout: Layout, roles: Mapping[str, list[str]], rows: Sequence[FileRow]) -> None:
    """Reference, response to imitate, and judge."""
    task, columns = layout.task, {str(column) for row in rows for column in row.values}
    if {IDS, KWARGS} <= columns:
        task |= {"judge": "ifeval", "response_column": None}
        layout.assumed.append(("task", f"{IDS} and {KWARGS}: IFEval's instructions, judged by its verifiers"))
        return
    reference = roles.get("reference", [None])[0]
    if reference is None:
        reference = COMPLETION if {COMPLETION, LABEL} <= columns else task.get("chosen_column", "chosen")
    response = roles.get("response", [reference])[0]
    task |= {f"{key}_column": name for key, name in (("reference", reference), ("response", response)) if name != key}
    task["judge"], why = _judge(reference, rows)
    layout.assumed.append(("task", f"judge: {task['judge']}: {why} ({reference})"))


def _judge(column: str, rows: Sequence[FileRow]) -> tuple[str, str]:
    texts = [str(row.values[column]) for row in rows if row.has(column)]
    if texts and all(reference_number(text, "####") is not None and "####" in text for text in texts):
        return "number", "the number after #### is compared with the reference's"
    if texts and all("\\boxed" in text for text in texts):
        return "boxed", "the last \\boxed{} is compared with the reference's"
    if texts and column not in ("chosen", COMPLETION) and median(map(len, texts)) <= SHORT:
        return "exact", "a response must be the reference, which is short"
    return "overlap", "the words shared with the reference, a substitute where there is no right answer"
