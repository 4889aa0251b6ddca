"""`make chaos`: every fault in every phase of a run, and the end of the driver in every phase. Prints a table, writes it as
JSON, and fails where results differ from those of an undisturbed run. (Loss of a node: tests/end_to_end/test_lost_node.py.)

python -m tests.chaos [--json FILE] [--only kill|freeze|exhaust|drivers]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.chaos.compare import differences
from tests.chaos.faults import KINDS, PHASES, ROLES, Outcome, every_fault
from tests.chaos.runs import outcomes_in, undisturbed, with_faults, with_killed_drivers, write_recipe

MAX_SECONDS = 60.0
DRIVERS = "drivers"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("outputs/chaos.json"))
    parser.add_argument("--only", choices=(*KINDS, DRIVERS), action="append", help="only these; may be repeated")
    asked = parser.parse_args()
    chosen = asked.only or (*KINDS, DRIVERS)
    faults = [f for f in every_fault() if f.kind in chosen]
    updates = 3 * max(len(faults), len(PHASES))
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        recipe = write_recipe(folder, updates)
        print(f"an undisturbed run of {updates} updates ...", flush=True)
        plain = undisturbed(folder, recipe)
        problems: list[str] = []
        drivers: dict[str, float] = {}
        try:
            if faults:
                print(f"the same with {len(faults)} faults ...", flush=True)
                disturbed, _ = with_faults(folder, recipe, faults, seconds=60.0 * len(faults) + 300)
                problems += differences(disturbed, plain, ["ppo"])
            if DRIVERS in chosen:
                print("the same with the driver killed in every phase ...", flush=True)
                killed, drivers = with_killed_drivers(folder, recipe, PHASES)
                problems += [f"killed drivers: {line}" for line in differences(killed, plain, ["ppo"])]
        except (AssertionError, subprocess.TimeoutExpired) as error:  # the table shows how far it came
            problems.append(f"a run did not end: {error}")
        outcomes = outcomes_in(folder)
    show(outcomes, drivers)
    missing = len(faults) - len(outcomes)
    noticed = [o.seconds for o in outcomes if o.noticed] + list(drivers.values())
    slow = [seconds for seconds in noticed if seconds > MAX_SECONDS]
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(
        json.dumps(
            {
                "faults": [[o.fault.kind, o.fault.role, o.fault.phase, o.noticed, o.seconds] for o in outcomes],
                "drivers": drivers, "differences": problems, "not_reached": missing,
            },
            indent=1,
        )
    )  # fmt: skip
    for line in problems:
        print(f"differs: {line}")
    recovery = f"recovery median {median(noticed):.1f} s, longest {max(noticed):.1f} s" if noticed else "no recovery"
    print(
        f"{len(noticed)} faults noticed and survived, {len(outcomes) + len(drivers) - len(noticed)} not noticed, "
        f"{missing} not reached; {recovery}; records and weights {'DIFFER' if problems else 'equal'}; results: {asked.json}"
    )
    return 1 if problems or missing or slow else 0


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
