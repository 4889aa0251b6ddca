"""DIR's record of the models and tokenizers that its comparison was given: `given.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.given import COMMIT, Given
from rlhf_bench.core.text import listed
from rlhf_bench.results.schema import GIVEN, RECIPE

_RECORD = TypeAdapter(dict[str, Given])


def recorded_given(directory: Path) -> dict[str, Given] | None:
    """What the comparison in DIR was given when it began, by the recipe's key; None where nothing is recorded. BadInput where
    the record is damaged."""
    path = directory / GIVEN
    try:
        return _RECORD.validate_json(path.read_bytes()) if path.exists() else None
    except (OSError, ValidationError):
        raise BadInput(
            f"--output {directory}: {GIVEN}, which says from which models the comparison began, cannot be read; bring it back, or "
            "choose another directory"
        ) from None


def given_as_text(given: Mapping[str, Given]) -> str:
    return json.dumps(_RECORD.dump_python(dict(given), mode="json"), indent=1)


def replaced(before: Mapping[str, Given], now: Mapping[str, Given]) -> Iterator[str]:
    """A line for everything that is not what it was, with its key and files."""
    for key, given in now.items():
        old, new = (before[key].content if key in before else {}), given.content
        if old == new:
            continue
        if COMMIT in new or COMMIT in old:
            what = f"is at {new.get(COMMIT, 'no commit')}, and was at {old.get(COMMIT, 'none')}"
        else:
            changes = (
                ("other", [file for file in new if file in old and old[file] != new[file]]),
                ("new", [file for file in new if file not in old]),
                ("no", [file for file in old if file not in new]),
            )
            what = "has " + "; ".join(f"{kind} {listed(files)}" for kind, files in changes if files)
        yield f"{key}: {given.name} {what}"


def check_given(directory: Path, given: Mapping[str, Given]) -> None:
    """BadInput where DIR's comparison has begun from other models than these, or does not say from which."""
    if not given or not (directory / RECIPE).exists():
        return
    recorded = recorded_given(directory)
    if recorded is None:
        raise BadInput(
            f"--output {directory}: does not say from which models its comparison began ({GIVEN} is missing: another version of "
            "rlhf-bench has begun it); continue with that version, or choose another directory"
        )
    if found := list(replaced(recorded, given)):
        remedy = (
            f"--output {directory}: holds a comparison that began from what it was before: bring that back, or choose "
        )
        raise BadInput(*found, remedy + "another directory")
