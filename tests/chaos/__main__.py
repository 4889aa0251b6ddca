"""`make chaos`: every fault in every phase of a run, the end of the driver in every phase, and every fault of its directory. Prints a table, writes it as
JSON, and fails where results differ from those of an undisturbed run. (Loss of a node: tests/end_to_end/test_lost_node.py.)

python -m tests.chaos [--json FILE] [--only kill|freeze|exhaust|drivers|files]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.chaos.compare import differences
from tests.chaos.directory import with_damaged_files
from tests.chaos.faults import KINDS, PHASES, ROLES, Fault, Outcome, every_fault
from tests.chaos.runs import outcomes_in, undisturbed, with_faults, with_killed_drivers, write_recipe

MAX_SECONDS = 60.0
DRIVERS, FILES = "drivers", "files"


@dataclass
class Found:
    """What the runs gave."""

    outcomes: list[Outcome] = field(default_factory=list)
    drivers: dict[str, float] = field(default_factory=dict)  # phase -> seconds until a killed driver's run has resumed
    files: list[str] = field(default_factory=list)  # faults of the directory that were told, and survived or refused
    differences: list[str] = field(default_factory=list)

    @property
    def recoveries(self) -> list[float]:
        """Seconds of all that were noticed."""
        return [o.seconds for o in self.outcomes if o.noticed] + list(self.drivers.values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("outputs/chaos.json"))
    parser.add_argument("--only", choices=(*KINDS, DRIVERS, FILES), action="append", help="only these; may be repeated")
    asked = parser.parse_args()
    chosen = asked.only or (*KINDS, DRIVERS, FILES)
    faults = [f for f in every_fault() if f.kind in chosen]
    found = run_all(faults, DRIVERS in chosen, FILES in chosen)
    missing = len(faults) - len(found.outcomes)
    show(found.outcomes, found.drivers)
    write(asked.json, found, missing)
    for line in found.differences:
        print(f"differs: {line}")
    print(f"{summary(found, missing)}; results: {asked.json}")
    return 1 if found.differences or missing or max(found.recoveries, default=0.0) > MAX_SECONDS else 0


def run_all(faults: list[Fault], drivers: bool, files: bool) -> Found:
    updates, found = 3 * max(len(faults), len(PHASES)), Found()
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        recipe = write_recipe(folder, updates)
        print(f"an undisturbed run of {updates} updates ...", flush=True)
        plain = undisturbed(folder, recipe)
        try:
            if faults:
                print(f"the same with {len(faults)} faults ...", flush=True)
                disturbed, _ = with_faults(folder, recipe, faults, seconds=60.0 * len(faults) + 300)
                found.differences += differences(disturbed, plain, ["ppo"])
            if drivers:
                print("the same with the driver killed in every phase ...", flush=True)
                killed, found.drivers = with_killed_drivers(folder, recipe, PHASES)
                found.differences += [f"killed drivers: {line}" for line in differences(killed, plain, ["ppo"])]
            if files:
                print("damaged directories, and two commands in one ...", flush=True)
                found.files, wrong = with_damaged_files(folder, recipe, plain)
                found.differences += wrong
        except (AssertionError, subprocess.TimeoutExpired) as error:  # the table shows how far it came
            found.differences.append(f"a run did not end: {error}")
        found.outcomes = outcomes_in(folder)
    return found


def write(path: Path, found: Found, missing: int) -> None:
    faults = [[o.fault.kind, o.fault.role, o.fault.phase, o.noticed, o.seconds] for o in found.outcomes]
    data = {
        "faults": faults,
        "drivers": found.drivers,
        "files": found.files,
        "differences": found.differences,
        "not_reached": missing,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1))


def summary(found: Found, missing: int) -> str:
    seconds = found.recoveries
    recovery = f"recovery median {median(seconds):.1f} s, longest {max(seconds):.1f} s" if seconds else "no recovery"
    unnoticed = sum(not o.noticed for o in found.outcomes)
    return (
        f"{len(seconds) + len(found.files)} faults noticed and survived or refused, {len(found.files)} of them of the directory, "
        f"{unnoticed} not noticed, {missing} not reached; {recovery}; "
        f"records and weights {'DIFFER' if found.differences else 'equal'}"
    )


def show(outcomes: list[Outcome], drivers: dict[str, float]) -> None:
    """Seconds until the run made progress again; – where the fault was not noticed."""
    shown = {(o.fault.kind, o.fault.role, o.fault.phase): f"{o.seconds:.1f} s" if o.noticed else "–" for o in outcomes}
    table = Table(title="Seconds from the fault until the run made progress")
    for heading in ("fault", *PHASES):
        table.add_column(heading)
    for kind in KINDS:
        for role in ROLES:
            cells = [shown.get((kind, role, phase), "") for phase in PHASES]
            if any(cells):
                table.add_row(f"{kind} {role}", *cells)
    if drivers:
        table.add_row("kill driver", *(f"{drivers[phase]:.1f} s" for phase in PHASES))
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
