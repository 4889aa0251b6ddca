"""Messages of a conversation and tools as a row has them: a list, or JSON text of one. What a chat template may write is
handed on, and what cannot be makes the row unusable; keys that no template knows are named."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from rlhf_bench.core.types import Turn
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.tasks.loading.rows import FileRow, check_characters, kind_of

READ = ("role", "content")
HANDED_ON = ("tool_calls", "tool_call_id", "function_call", "name", "reasoning_content", "reasoning", "thinking")
"""Keys of a message that templates know: without them it would be another message."""
COLUMNS = ("images", "image", "videos", "video", "audios", "audio", "chat_template_kwargs")
"""Columns of TRL's formats that belong to the prompt and are not read."""
_NOTHING = (None, "", "[]", "{}", "null")


def check_columns(row: FileRow, named: Collection[str]) -> None:
    """Unusable where the row has something in one of TRL's columns that is not read. `named`: those that the recipe names."""
    for column in COLUMNS:
        if column in row.values and column not in named and _says(row.values[column]):
            problem = f"column '{column}' belongs to the prompt, and is not read here; remove the column, or leave the row out"
            raise Unusable(row.where, problem, f"with {column}")


def has_messages(row: FileRow, column: str) -> bool:
    """Whether the column holds messages, well written or not, and no text or number."""
    value = _plain(row, column)
    return isinstance(value, list | tuple) or (isinstance(value, Mapping) and "role" in value)


def messages(row: FileRow, column: str) -> tuple[Turn, ...]:
    """The column's messages. Unusable where it is no list of such."""
    value = _plain(row, column)
    found = [value] if isinstance(value, Mapping) else value
    if not isinstance(found, list | tuple):
        found = [None]
    if not found:
        raise row.empty(column)
    return tuple(_turn(row, column, message) for message in found)


def keys_not_read(row: FileRow, columns: Collection[str]) -> set[str]:
    """Keys of messages, such as an id, that no template knows."""
    found: set[str] = set()
    for column in columns:
        value = _plain(row, column) if column in row.values else None
        for part in [value] if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
            if isinstance(part, Mapping):
                found |= {str(key) for key in part if key not in (*READ, *HANDED_ON) and _says(part[key])}
    return found


def tools_of(row: FileRow) -> str:
    """The column `tools`, a list or JSON text of one, as JSON; "" where there are none."""
    value = row.values.get("tools")
    try:
        tools = json.loads(value) if isinstance(value, str) and value.strip() else value
    except (ValueError, RecursionError):
        tools = value
    if not _says(tools):
        return ""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        problem = f"column 'tools' holds {kind_of(tools)}; make it a list of objects, or JSON text of one"
        raise Unusable(row.where, problem, "with tools that cannot be read")
    return _json(tools)


def _turn(row: FileRow, column: str, message: object) -> Turn:
    keys = message if isinstance(message, Mapping) else {}
    handed_on = {key: keys[key] for key in HANDED_ON if _says(keys.get(key))}
    more = _json(handed_on) if handed_on else ""
    match message:
        case {"role": str(role), "content": str(content)}:
            return Turn(role, content, more)
        case {"role": str(role), "content": [*parts]} if all(map(_is_part, parts)):
            return Turn(role, "".join(_text_of(row, column, part) for part in parts), more)
        case {"role": str(role)} if more and keys.get("content") is None:  # a call of a tool has no text
            return Turn(role, "", more)
        case {"role": str(), "content": None}:
            problem = f"column '{column}' has a message whose content is null; fill it in or remove the row"
            raise Unusable(row.where, problem, "with an empty text")
    raise Unusable(
        row.where,
        f"column '{column}' is no list of messages with a text 'role' and a text 'content'; write it so, or as one text",
        "with messages that cannot be read",
    )


def _json(value: object) -> str:
    """The same text for the same value. What data sets fill in with null is left out: a template would write it."""
    return json.dumps(_without_null(value), ensure_ascii=False, default=str)


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_null(part) for key, part in value.items() if part is not None}
    return [_without_null(part) for part in value] if isinstance(value, list | tuple) else value


def _is_part(part: object) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("type"), str)


def _text_of(row: FileRow, column: str, part: Mapping[str, object]) -> str:
    text = part.get("text")
    if part["type"] != "text" or not isinstance(text, str):
        problem = f"column '{column}' has a message with content of type '{part['type']}', and only texts are read"
        raise Unusable(row.where, f"{problem}; leave the row out", "with content that is no text")
    return text


def _says(value: object) -> bool:
    """Whether there is anything in it. Data sets fill what a row lacks with null, lists and all."""
    if isinstance(value, Mapping):
        return any(map(_says, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_says, value))
    return isinstance(value, bytes) or value not in _NOTHING


def _plain(row: FileRow, column: str) -> object:
    """The column's value; JSON text of messages as the messages."""
    value = row.get(column)
    start = value.lstrip()[:1] if isinstance(value, str) else ""
    if not isinstance(value, str) or start not in ("[", "{"):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        if value.lstrip().startswith(("[{'role'", "[{'content'")):
            problem = f"column '{column}' has messages as Python writes them; write them as JSON"
            raise Unusable(row.where, problem, "with messages that cannot be read") from None
        return value
    found = [parsed] if isinstance(parsed, dict) else parsed
    if not found or not all(isinstance(message, dict) and {*READ} <= message.keys() for message in found):
        return value
    check_characters(row.where, parsed)
    return found
