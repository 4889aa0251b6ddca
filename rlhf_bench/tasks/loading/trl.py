"""Preference rows in TRL's conventions: standard (texts) or conversational (lists of messages), the prompt in a column of
its own or implicit, as what both answers begin with. A row has one prompt, whoever asks for it: where its columns do not
agree about it, the row is unusable."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from rlhf_bench.core.types import Turn
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.tasks.loading.messages import has_messages, messages, tools_of
from rlhf_bench.tasks.loading.rows import FileRow

ASSISTANT, USER, SYSTEM = "assistant", "user", "system"
_TURN, _HUMAN = "\n\nAssistant:", "\n\nHuman:"
"""What stands before an answer and before a question in HH-RLHF, whose dialogues are one text each."""
Turns = tuple[Turn, ...]


@dataclass(frozen=True)
class Asked:
    """A prompt: its text, and its messages where it came as messages. One message of the user is its text alone, so
    that the same question is the same prompt however a file has it. `tools`: as JSON, for the chat template."""

    text: str
    turns: Turns = ()
    tools: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What makes it another prompt."""
        return self.text, self.tools

    @property
    def prefill(self) -> str:
        """What the assistant has begun to say, and every answer continues; "" where it has not."""
        return self.turns[-1].content if self.turns and self.turns[-1].role == ASSISTANT else ""


@dataclass(frozen=True)
class Columns:
    """The columns' names. `whole`: the prompt's column ends with the answer, a conversation that both are read from."""

    prompt: str
    chosen: str
    rejected: str
    whole: bool = False

    @property
    def sides(self) -> tuple[str, str]:
        return self.chosen, self.rejected

    def explicit(self, row: FileRow) -> bool:
        return row.values.get(self.prompt) is not None

    def has_pair(self, row: FileRow) -> bool:
        return self.chosen in row.values and self.rejected in row.values


def asked(row: FileRow, columns: Columns) -> Asked:
    """The row's prompt: from its column, or else as what `chosen` and `rejected` share."""
    if columns.has_pair(row) and (not columns.explicit(row) or _are_dialogues(row, columns)):
        return preference(row, columns)[0]
    given, shared, plain = _stated(row, columns), _shared_turns(row, columns), not has_messages(row, columns.prompt)
    if columns.whole and not plain and given[-1].role == ASSISTANT:
        given = given[:-1]
    return _asked(row, columns, _agreed(row, given, shared), plain and not shared)


def answered(row: FileRow, column: str, columns: Columns, prompt: Asked) -> str:
    """An answer to the row's prompt: a text or number, or the last message of a conversation; of a side that begins with its
    prompt, what follows it."""
    if column in columns.sides and columns.has_pair(row):
        if not columns.explicit(row) or _are_dialogues(row, columns):
            _, chosen, rejected = preference(row, columns)
            return chosen if column == columns.chosen else rejected
    if not has_messages(row, column):
        return row.answer(column)
    turns = messages(row, column)
    own = prompt.turns or (Turn(USER, prompt.text),)
    if len(_talk(_agreed(row, own, turns[:-1]))) > len(_talk(own)):
        raise _contradiction(row)
    return _last(row, column, turns)


def preference(row: FileRow, columns: Columns) -> tuple[Asked, str, str]:
    """Prompt, chosen answer, rejected answer."""
    if not any([has_messages(row, side) for side in columns.sides]):
        return _of_texts(row, columns)
    up, down = (messages(row, side) for side in columns.sides)
    before = _shared_turns(row, columns)
    prompt = asked(row, columns) if columns.explicit(row) else _asked(row, columns, before)
    if max(len(up), len(down)) > len(before) + 1:
        raise _several_turns(row, columns)
    return prompt, _last(row, columns.chosen, up), _last(row, columns.rejected, down)


def _of_texts(row: FileRow, columns: Columns) -> tuple[Asked, str, str]:
    chosen, rejected = (row.text(side) for side in columns.sides)
    dialogues = _are_dialogues(row, columns)
    if columns.explicit(row) and not dialogues:
        prompt = asked(row, columns)
        _check_one_turn(row, columns, prompt.text, chosen, rejected)
        return prompt, chosen, rejected
    if columns.prompt in row.values and not columns.explicit(row):
        row.text(columns.prompt)  # says that it is null
    if chosen == rejected:
        raise equal_sides(row)
    start = _shared_start(chosen, rejected)
    if not chosen[:start].strip():
        problem = f"no column '{columns.prompt}', and {columns.chosen} and {columns.rejected} do not begin alike"
        raise Unusable(row.where, f"{problem}; name the prompt's column in the recipe", "without a prompt")
    answers = chosen[start:], rejected[start:]
    for column, answer in zip(columns.sides, answers, strict=True):
        if not answer.strip():
            problem = f"column '{column}' has nothing but the prompt that both sides share; give it an answer, "
            raise Unusable(row.where, f"{problem}or name the prompt's column in the recipe", "with an empty text")
    _check_one_turn(row, columns, chosen[:start], *answers)
    stated = _stated(row, columns) if columns.explicit(row) else ()
    if not all(turn.content.strip() in chosen[:start] for turn in stated):
        raise _contradiction(row)
    return _asked(row, columns, (Turn(USER, chosen[:start]),), plain=True), *answers


def _stated(row: FileRow, columns: Columns) -> Turns:
    """What the prompt's column says."""
    if has_messages(row, columns.prompt):
        return messages(row, columns.prompt)
    return (Turn(USER, row.text(columns.prompt)),)


def _are_dialogues(row: FileRow, columns: Columns) -> bool:
    """Whether both sides are whole dialogues as HH-RLHF writes them."""
    sides = [row.values.get(side) for side in columns.sides]
    return all(isinstance(s, str) and s.lstrip().startswith(_HUMAN.lstrip()) and _TURN in s for s in sides)


def _check_one_turn(row: FileRow, columns: Columns, prompt: str, *answers: str) -> None:
    if _TURN in prompt and any(mark in answer for mark in (_TURN, _HUMAN) for answer in answers):
        raise _several_turns(row, columns)


def _shared_turns(row: FileRow, columns: Columns) -> Turns:
    """The turns before the answers, of those sides that are conversations."""
    sides = [messages(row, s)[:-1] for s in columns.sides if s in row.values and has_messages(row, s)]
    return tuple(os.path.commonprefix(sides))


def _agreed(row: FileRow, given: Turns, shared: Turns) -> Turns:
    """The one prompt that its column and the turns before the answers speak of: either may leave out how it begins, or its
    system message. Unusable where they contradict each other."""
    systems = {_system(given), _system(shared)} - {()}
    longer, shorter = sorted([_talk(given), _talk(shared)], key=len, reverse=True)
    edges = longer[: len(shorter)], longer[len(longer) - len(shorter) :]
    if len(systems) > 1 or _stripped(shorter) not in map(_stripped, edges):
        raise _contradiction(row)
    system = next(iter(systems), ())
    for turns in (given, shared):  # as it stands, wherever its system messages are
        if _talk(turns) == longer and _system(turns) == system:
            return turns
    return (*system, *longer)


def _asked(row: FileRow, columns: Columns, turns: Turns, plain: bool = False) -> Asked:
    """The prompt of these turns, with what the columns `system` and `tools` add to it. `plain`: it came as a text."""
    tools = tools_of(row)
    if row.has(SYSTEM) and SYSTEM not in (columns.prompt, *columns.sides) and str(row.get(SYSTEM)).strip():
        turns = _agreed(row, turns, (Turn(SYSTEM, row.text(SYSTEM)),))
    if not turns or not (turns[-1].content.strip() or turns[-1].more):
        raise row.empty(columns.prompt)
    kept = () if plain and len(turns) == 1 and not tools else turns
    if len(turns) == 1 and turns[0].role == USER and not turns[0].more:
        return Asked(turns[0].content, kept, tools)
    shown = (f"{turn.role}: {' '.join(filter(None, (turn.content, turn.more)))}" for turn in turns)
    return Asked("\n\n".join(shown), kept, tools)


def _talk(turns: Turns) -> Turns:
    return tuple(turn for turn in turns if turn.role != SYSTEM)


def _system(turns: Turns) -> Turns:
    return tuple(turn for turn in turns if turn.role == SYSTEM)


def _stripped(turns: Turns) -> list[Turn]:
    return [turn._replace(content=turn.content.strip()) for turn in turns]


def _last(row: FileRow, column: str, turns: Turns) -> str:
    role, content, more = turns[-1]
    if role != ASSISTANT:
        problem = f"column '{column}' ends with a message of '{role}'; end it with one of '{ASSISTANT}'"
        raise Unusable(row.where, problem, "that do not end with an answer")
    if more:
        key = next(iter(json.loads(more)))
        problem = f"column '{column}' has an answer with '{key}', and answers are texts here; leave the row out"
        raise Unusable(row.where, problem, f"with '{key}' in an answer")
    if not content.strip():
        raise row.empty(column)
    return content


def equal_sides(row: FileRow) -> Unusable:
    return Unusable(row.where, "chosen and rejected are the same text; remove the row", "with equal sides")


def _several_turns(row: FileRow, columns: Columns) -> Unusable:
    problem = (
        f"{columns.chosen} and {columns.rejected} differ in more than their last message; keep what they share and one "
    )
    return Unusable(row.where, f"{problem}answer each", "with several turns that differ")


def _contradiction(row: FileRow) -> Unusable:
    problem = "the prompt in its column and the messages before the answer contradict each other; keep one of them"
    return Unusable(row.where, problem, "with a prompt that contradicts the conversation")


def _shared_start(chosen: str, rejected: str) -> int:
    """Where the answers begin: behind the last turn that both begin with; or else at the word in which they part, so that
    no word is cut in two."""
    shared = len(os.path.commonprefix([chosen, rejected]))
    if (turn := chosen.rfind(_TURN, 0, shared)) >= 0:
        return turn + len(_TURN)
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    return shared - 1 if shared and chosen[shared - 1] == " " else shared
