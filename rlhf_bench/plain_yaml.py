"""YAML as plain data: no tag makes an object, and no document can be much larger than it looks."""

from __future__ import annotations

from typing import Any

import yaml

MOST_NODES = 100_000
"""Of a document with its aliases written out: hundreds of times what a recipe has."""


def read_yaml(text: str) -> Any:
    """What `text` says, as mappings, lists, texts and numbers. Raises yaml.YAMLError for whatever cannot be read."""
    try:
        return yaml.load(text, _PlainLoader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply; write it flatter") from None
    except (ValueError, OverflowError) as error:  # a number or date that is none, as in 2024-13-45
        raise yaml.YAMLError(f"{error}; put such a value in quotes") from None


class _PlainLoader(yaml.SafeLoader):
    """Counts nodes while it reads, those behind an alias as often as it stands there: ten lines of aliases of aliases
    are a billion nodes to whatever goes through them."""

    def __init__(self, text: str):
        super().__init__(text)
        self.nodes = 0
        self.sizes: dict[yaml.Node, int] = {}  # of those that have been read to their end

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self.nodes
        node = super().compose_node(parent, index)
        assert node is not None  # there was an event of it
        if not isinstance(event, yaml.AliasEvent):
            self.nodes += 1
            self.sizes[node] = self.nodes - before
        elif node in self.sizes:
            self.nodes += self.sizes[node]
        else:
            raise yaml.MarkedYAMLError(problem="an alias of what it stands in", problem_mark=event.start_mark)
        if self.nodes > MOST_NODES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MOST_NODES} values, aliases written out", problem_mark=event.start_mark
            )
        return node
