"""Preference rows in TRL's conventions: standard (texts) or conversational (lists of messages), the prompt in a column of
its own or implicit, as what both answers begin with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Turn
from rlhf_bench.tasks.loading.rows import FileRow, Unusable

ASSISTANT = "assistant"
_TURN = "\n\nAssistant:"
"""What stands before an answer in HH-RLHF, whose dialogues are one text each."""


@dataclass(frozen=True)
class Asked:
    """A prompt: its text, and its messages where it came as messages. One message of the user is its text alone, so
    that the same question is the same prompt however a file has it."""

    text: str
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Columns:
    prompt: str
    chosen: str
    rejected: str


def asked(row: FileRow, columns: Columns) -> Asked:
    """The row's prompt: from its column, or else as what `chosen` and `rejected` share."""
    if row.values.get(columns.prompt) is not None or not _has_pair(row, columns):
        if isinstance(row.get(columns.prompt), list):
            turns = messages(row, columns.prompt)
            return _of_turns(row, columns.prompt, turns[:-1] if turns[-1][0] == ASSISTANT else turns)
        return Asked(row.text(columns.prompt))
    return preference(row, columns)[0]


def answered(row: FileRow, column: str) -> str:
    """An answer: a text or number, or the last message of a conversation."""
    if not isinstance(row.get(column), list):
        return row.answer(column)
    return _last(row, column, messages(row, column))


def preference(row: FileRow, columns: Columns) -> tuple[Asked, str, str]:
    """Prompt, chosen answer, rejected answer."""
    explicit = row.values.get(columns.prompt) is not None
    sides = [row.get(column) for column in (columns.chosen, columns.rejected)]
    if not any(isinstance(side, list) for side in sides):
        chosen, rejected = row.text(columns.chosen), row.text(columns.rejected)
        if explicit:
            return asked(row, columns), chosen, rejected
        if columns.prompt in row.values:  # there, and null
            row.text(columns.prompt)
        start = _shared_start(chosen, rejected) if chosen != rejected else 0
        if not chosen[:start].strip() and chosen != rejected:
            raise Unusable(
                f"{row.where}: no column '{columns.prompt}', and {columns.chosen} and {columns.rejected} do not begin "
                "alike; name the prompt's column in the recipe",
                "without a prompt",
            )
        for column, side in ((columns.chosen, chosen), (columns.rejected, rejected)):
            if not side[start:].strip():
                raise Unusable(
                    f"{row.where}: column '{column}' has nothing but the prompt that both sides share; give it an answer, "
                    "or name the prompt's column in the recipe",
                    "with an empty text",
                )
        return Asked(chosen[:start]), chosen[start:], rejected[start:]
    up, down = messages(row, columns.chosen), messages(row, columns.rejected)
    before = tuple(os.path.commonprefix([up[:-1], down[:-1]]))
    if explicit and not before:  # the answers alone
        prompt = asked(row, columns)
    else:
        prompt = _of_turns(row, columns.prompt, before)
    if len(up) > len(before) + 1 or len(down) > len(before) + 1:
        raise Unusable(
            f"{row.where}: {columns.chosen} and {columns.rejected} differ in more than their last message; keep what they "
            "share and one answer each",
            "with several turns that differ",
        )
    return prompt, _last(row, columns.chosen, up), _last(row, columns.rejected, down)


def messages(row: FileRow, column: str) -> tuple[Turn, ...]:
    """The column's messages as (role, content). BadInput where it is no list of such."""
    turns = []
    value = row.get(column)
    for message in value if isinstance(value, list) else [None]:
        match message:
            case {"role": str(role), "content": str(content)} if isinstance(message, Mapping):
                turns.append((role, content))
            case _:
                raise BadInput(
                    f"{row.where}: column '{column}' is no list of messages with a text 'role' and a text 'content'; "
                    "write it so, or as one text"
                )
    if not turns:
        raise Unusable(f"{row.where}: column '{column}' is empty; fill it in or remove the row", "with an empty text")
    return tuple(turns)


def _has_pair(row: FileRow, columns: Columns) -> bool:
    return columns.chosen in row.values and columns.rejected in row.values


def _of_turns(row: FileRow, column: str, turns: tuple[Turn, ...]) -> Asked:
    if not turns or not turns[-1][1].strip():
        raise Unusable(f"{row.where}: column '{column}' is empty; fill it in or remove the row", "with an empty text")
    if len(turns) == 1 and turns[0][0] == "user":
        return Asked(turns[0][1], turns)
    return Asked("\n\n".join(f"{role}: {content}" for role, content in turns), turns)


def _last(row: FileRow, column: str, turns: tuple[Turn, ...]) -> str:
    role, content = turns[-1]
    if role != ASSISTANT:
        raise Unusable(
            f"{row.where}: column '{column}' ends with a message of '{role}'; end it with one of '{ASSISTANT}'",
            "that do not end with an answer",
        )
    if not content.strip():
        raise Unusable(f"{row.where}: column '{column}' is empty; fill it in or remove the row", "with an empty text")
    return content


def _shared_start(chosen: str, rejected: str) -> int:
    """Where the answers begin: behind the last turn that both begin with; or else at the word in which they part, so that
    no word is cut in two."""
    shared = len(os.path.commonprefix([chosen, rejected]))
    if (turn := chosen.rfind(_TURN, 0, shared)) >= 0:
        return turn + len(_TURN)
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    return shared - 1 if shared and chosen[shared - 1] == " " else shared
