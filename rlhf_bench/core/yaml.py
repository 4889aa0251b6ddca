"""YAML as plain data. YAML allows more than a recipe needs, and some of it is dangerous: tags that create objects, aliases that
make a small document huge, values that stall a reader; or not what it seems: `on` is true, and 010 is 8. All of that is
refused."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml

MAX_CHARACTERS = 256_000  # characters; the longest shipped recipe has some thousands
MAX_VALUES = 50_000  # with every alias written out
MAX_DEPTH = 20
MAX_INTEGER = 2**63 - 1
MAX_DIGITS = 100

PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}
_TYPES = {"bool": "true or false", "int": "a number", "float": "a number"}
_TRAP = re.compile(r"[-+]?(0[0-7_]+|\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?)")
"""Numbers of YAML 1.1 that do not look like what they are: 010 is 8, and 1:30 is 90."""
_UNFIT = re.compile(r"[\x00\ud800-\udfff]")  # other controls are text, and are shown as codes


class Unreadable(yaml.YAMLError):
    """A YAML text that cannot be a recipe. One line: where, what is wrong, the remedy."""


def read_yaml(text: str) -> Any:
    """Mappings, lists, texts, numbers, true, false and null. Raises Unreadable."""
    if len(text) > MAX_CHARACTERS:
        raise Unreadable(
            f"has {len(text)} characters; a recipe has at most {MAX_CHARACTERS}: keep data in files of its own"
        )
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _extent(loader, node, [], {})
        return loader.construct_document(node)
    except RecursionError:
        raise Unreadable(f"is nested more than {MAX_DEPTH} deep; make it flatter") from None
    except Unreadable:
        raise
    except (yaml.YAMLError, ValueError, LookupError) as error:  # the last two: `!!int x`, `!!bool x`
        raise Unreadable(f"not readable as YAML: {' '.join(str(error).split())}; correct or quote it") from None


def _extent(
    loader: Any, node: yaml.Node, above: list[yaml.Node], known: dict[yaml.Node, tuple[int, int]]
) -> tuple[int, int]:
    """How many values the node stands for, with every alias written out, and how deep they are nested."""
    if node in known:
        return known[node]
    if node in above:
        _refuse(node, "contains itself by an alias", "write out what is meant")
    if node.tag not in PLAIN:
        _refuse(
            node,
            f"{node.tag.removeprefix('tag:yaml.org,2002:')} is not a value that a recipe can have",
            "quote it, or remove its tag",
        )
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    else:
        _check_scalar(loader, node)
    extents = [_extent(loader, part, [*above, node], known) for part in parts]
    size, depth = 1 + sum(s for s, _ in extents), 1 + max((d for _, d in extents), default=0)
    if size > MAX_VALUES:
        _refuse(node, f"stands for more than {MAX_VALUES} values", "repeat less by aliases")
    if depth > MAX_DEPTH:
        _refuse(node, f"is nested more than {MAX_DEPTH} deep", "make it flatter")
    known[node] = size, depth
    return size, depth


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            _refuse(key, "a list or mapping where a key belongs", "make the key a text")
        kind = key.tag.rpartition(":")[2]
        if kind not in ("str", "merge"):
            read = f"{'null' if kind == 'null' else _TYPES[kind]}, and a key is a text"
            _refuse(key, f"the key {key.value} is read as {read}", f"quote it: '{key.value}'")
        if (key.tag, key.value) in seen:
            _refuse(key, f"the key {key.value} is there twice", "keep one of the two")
        seen.add((key.tag, key.value))


def _check_scalar(loader: Any, node: yaml.Node) -> None:
    kind = node.tag.rpartition(":")[2]
    if _UNFIT.search(node.value):
        _refuse(node, "has a character that no text has", "remove it")
    if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
        _refuse(node, f"a number of {len(node.value)} digits", f"give at most {MAX_DIGITS}, or quote it")
    if kind == "bool" and node.value.lower() not in ("true", "false"):
        read = "true" if loader.construct_yaml_bool(node) else "false"
        _refuse(node, f"{node.value} is read as {read}", f"quote it: '{node.value}', or write {read}")
    if kind in ("int", "float") and _TRAP.fullmatch(node.value):
        read = loader.construct_yaml_int(node) if kind == "int" else loader.construct_yaml_float(node)
        _refuse(node, f"{node.value} is read as the number {read:g}", f"quote it: '{node.value}', or write the number")
    if kind == "int" and abs(loader.construct_yaml_int(node)) > MAX_INTEGER:
        _refuse(node, f"{node.value} is too large a whole number", f"give at most {MAX_INTEGER}")


def _refuse(node: yaml.Node, problem: str, remedy: str) -> NoReturn:
    raise Unreadable(f"line {node.start_mark.line + 1}: {problem}; {remedy}")
