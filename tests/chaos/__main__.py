"""`make chaos`: every fault in every phase of a run, the end of the driver in every phase, and faults of a whole run: of its directory,
models, MLflow store, signals, cluster and process group. Prints tables, writes them as JSON, and fails where results differ from
those of an undisturbed run, or a fault is not told as promised. (Loss of a node: tests/end_to_end/test_lost_node.py.)

python -m tests.chaos [--json FILE] [--seed N] [--only KIND]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.chaos.compare import differences
from tests.chaos.directory import with_damaged_files
from tests.chaos.faults import KINDS, PHASES, ROLES, Fault, Outcome, every_fault
from tests.chaos.given_models import with_given_models
from tests.chaos.lost_ray import with_lost_ray
from tests.chaos.restored_store import with_restored_store
from tests.chaos.runs import outcomes_in, undisturbed, with_faults, with_killed_drivers, write_recipe
from tests.chaos.signals import with_signals
from tests.chaos.told import Told
from tests.chaos.whole_group import with_killed_groups

MAX_SECONDS = 60.0
UPDATES = 36
"""Of a run beside those with faults of actors: time enough for several ends of it, and for MLflow to get updates more than once."""
DRIVERS = "drivers"
WHOLE: dict[str, Callable[[Told, Path, Path, Path], None]] = {
    "files": with_damaged_files, "models": with_given_models, "store": with_restored_store, "signals": with_signals,
    "ray": with_lost_ray,
}  # fmt: skip
"""Kinds of faults of a whole run; beside them GROUPS, which are drawn."""
GROUPS = "groups"


@dataclass
class Found:
    """What the runs gave."""

    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    drivers: dict[str, float] = field(default_factory=dict)  # phase -> seconds until a killed driver's run has resumed
    whole: dict[str, Told] = field(default_factory=dict)  # by kind
    wrong: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # that each part of the suite took

    @property
    def recoveries(self) -> list[float]:
        """Seconds of all that were noticed."""
        return [o.seconds for o in self.outcomes if o.noticed] + list(self.drivers.values())

    def part(self, name: str, run: Callable[[], object]) -> None:
        """One part of the suite. The others follow also where it fails: the tables show how far it came."""
        print(f"{name} ...", flush=True)
        began = time.monotonic()
        try:
            run()
        except Exception as error:
            self.wrong.append(f"{name}: a run did not end, or not as it should: {type(error).__name__}: {error}")
        self.seconds[name] = time.monotonic() - began


def main() -> int:
    kinds = (*KINDS, DRIVERS, *WHOLE, GROUPS)
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("outputs/chaos.json"))
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments of kills of groups")
    parser.add_argument("--only", choices=kinds, action="append", help="only these; may be repeated")
    asked = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # bars of libraries, as models are written
    chosen = asked.only or kinds
    faults, found = [f for f in every_fault() if f.kind in chosen], Found(asked.seed)
    print(f"--seed {found.seed} repeats the moments of this run's group kills", flush=True)
    with tempfile.TemporaryDirectory() as aside:
        if faults:
            found.part("faults of actors", partial(with_faulty_actors, found, Path(aside) / "actors", faults))
        if set(chosen) - set(KINDS):
            in_whole_runs(found, Path(aside) / "whole", chosen)
    missing = len(faults) - len(found.outcomes)
    show(found.outcomes, found.drivers)
    show_whole(found.whole)
    write(asked.json, found, missing)
    for line in found.wrong:
        print(f"wrong: {line}")
    print(f"{summary(found, missing)}; results: {asked.json}")
    return 1 if found.wrong or missing or max(found.recoveries, default=0.0) > MAX_SECONDS else 0


def with_faulty_actors(found: Found, folder: Path, faults: list[Fault]) -> None:
    folder.mkdir()
    recipe = write_recipe(folder, updates=3 * len(faults))
    plain = undisturbed(folder, recipe)
    try:
        disturbed, _ = with_faults(folder, recipe, faults, seconds=60.0 * len(faults) + 300)
        found.wrong += differences(disturbed, plain, ["ppo"])
    finally:
        found.outcomes = outcomes_in(folder)


def in_whole_runs(found: Found, folder: Path, chosen: Sequence[str]) -> None:
    folder.mkdir()
    recipe, began = write_recipe(folder, UPDATES), time.monotonic()
    print("an undisturbed run ...", flush=True)
    plain = undisturbed(folder, recipe)
    draw = partial(with_killed_groups, seed=found.seed, seconds=time.monotonic() - began)
    if DRIVERS in chosen:
        found.part(DRIVERS, partial(with_drivers, found, folder, recipe, plain))
    for kind, faults in (WHOLE | {GROUPS: draw}).items():
        if kind in chosen:
            found.whole[kind] = Told()
            found.part(kind, partial(faults, found.whole[kind], folder, recipe, plain))
            found.wrong += found.whole[kind].wrong


def with_drivers(found: Found, folder: Path, recipe: Path, plain: Path) -> None:
    killed, found.drivers = with_killed_drivers(folder, recipe, PHASES)
    found.wrong += [f"killed drivers: {line}" for line in differences(killed, plain, ["ppo"])]


def write(path: Path, found: Found, missing: int) -> None:
    faults = [[o.fault.kind, o.fault.role, o.fault.phase, o.noticed, o.seconds] for o in found.outcomes]
    data = {
        "seed": found.seed,
        "faults": faults,
        "drivers": found.drivers,
        "whole": {kind: told.survived for kind, told in found.whole.items()},
        "wrong": found.wrong,
        "not_reached": missing,
        "seconds": found.seconds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False))


def summary(found: Found, missing: int) -> str:
    seconds = found.recoveries
    recovery = f"recovery median {median(seconds):.1f} s, longest {max(seconds):.1f} s" if seconds else "no recovery"
    unnoticed = sum(not o.noticed for o in found.outcomes)
    of_whole = {kind: len(told.survived) for kind, told in found.whole.items()}
    counts = {"actors": len(found.outcomes) - unnoticed, DRIVERS: len(found.drivers)} | of_whole
    shown = ", ".join(f"{kind} {number}" for kind, number in counts.items() if number)
    verdict = f"WRONG OR DIFFERENT: {len(found.wrong)}" if found.wrong else "records and weights equal"
    return (
        f"{sum(counts.values())} faults noticed and survived or refused ({shown}), {unnoticed} not noticed, {missing} not reached; "
        f"{recovery}; {verdict}; seed {found.seed}; "
        f"{sum(found.seconds.values()) / 60:.0f} minutes"
    )


def show_whole(whole: dict[str, Told]) -> None:
    """Faults of a whole run, and what it did."""
    table = Table("kind", "fault", "what the run did", title="Faults of a whole run")
    for kind, told in whole.items():
        for fault, done in told.survived.items():
            table.add_row(kind, fault, done)
    if table.row_count:
        Console(width=140).print(table)


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
