"""A recipe as a file that people read: sections in order, and what was assumed as comments above them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

HEAD = """\
# Written by `rlhf-bench init`. `rlhf-bench check FILE` validates it and says what it will cost; `rlhf-bench run FILE` runs it.
# What was assumed stands above each section. docs/recipes.md lists all other keys.
"""


class _Dumper(yaml.SafeDumper):
    """Numbers as a recipe has them, and everything where it belongs."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _number(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = f"{value:.1e}" if value and not 1e-3 <= abs(value) < 1e6 else repr(value)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _number)


def recipe_text(data: Mapping[str, Any], assumed: Sequence[tuple[str, str]]) -> str:
    """The file's text. `assumed`: (section, sentence)."""
    parts = [HEAD]
    for key, value in data.items():
        comments = "".join(f"# {_on_one_line(sentence)}\n" for section, sentence in assumed if section == key)
        flow = None if isinstance(value, dict | list) else False  # innermost mappings and lists on one line
        body = yaml.dump(
            {key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=200
        )
        parts.append(comments + body)
    return "\n".join(parts)


def _on_one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
