"""Rows of the user's that can be read and not used: refused by name, or left out and counted."""

from __future__ import annotations

from rlhf_bench.core.errors import BadInput


class Unusable(BadInput):
    """A row that cannot be used. `where` is its place, "prompts.jsonl:17"; `kind` completes "rows ..." where such rows are
    counted: "with an empty text"."""

    def __init__(self, where: str, problem: str, kind: str):
        super().__init__(f"{where}: {problem}")
        self.where, self.kind = where, kind


class LeftOut:
    """Rows with faults, each once in its kind, with the line that the first of a kind would be refused with."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._places: dict[str, dict[str, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, fault: Unusable) -> None:
        self._lines.setdefault(fault.kind, str(fault))
        self._places.setdefault(fault.kind, {})[fault.where] = None

    @property
    def first(self) -> str:
        """The line of the first of all."""
        return next(iter(self._lines.values()))

    def __str__(self) -> str:
        """ "2 with equal sides (first pairs.jsonl:3), 1 with …". Results show it, so it names files without their folders."""
        return ", ".join(
            f"{len(places)} {kind} (first {next(iter(places)).rpartition('/')[2]})"
            for kind, places in self._places.items()
        )

    def refuse(self) -> None:
        """BadInput, where there are any, with a line for each kind: its first row, and how many more there are. A kind is passed
        over whose rows all have faults of kinds before it: too long a prompt makes too long a row as well."""
        lines, named = [], set[str]()
        for kind, places in self._places.items():
            if named.issuperset(places):
                continue
            named.update(places)
            more = len(places) - 1
            lines.append(self._lines[kind] + (f" ({more} more row{'s' * (more > 1)} {kind})" if more else ""))
        if lines:
            raise BadInput(*lines)
