"""How cost grows with size: the exponent of a power law through the measured times, 1 for a line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

from tests.benchmarks.engines import write_large_model
from tests.benchmarks.iteration import dispatched
from tests.benchmarks.learner import PAIRS, SHORT, Ours, write_model
from tests.benchmarks.row import Measured, Row

RUNS = 5
KEPT = Path("docs/results/data/verse")


def exponents(sizes: Sequence[float], seconds: Callable[[int], float], runs: int = RUNS) -> Measured:
    """`seconds(i)`: of one run at `sizes[i]`. Every run over all sizes, in turn, gives one exponent."""
    found, times = [], []
    for _ in range(runs):
        taken = [seconds(i) for i in range(len(sizes))]
        found.append(float(np.polyfit(np.log(sizes), np.log(taken), 1)[0]))
        times.append(taken)
    medians = np.median(times, axis=0)
    notes = ", ".join(f"{size:g}: {t:.3g} s" for size, t in zip(sizes, medians, strict=True))
    return Measured(found, list(medians), list(sizes), "s", notes)


def learner() -> Measured:
    """Seconds of a step against the tokens in it."""
    with tempfile.TemporaryDirectory() as folder:
        data = SHORT.pairs()
        ours = Ours(write_model(Path(folder), "float32"), "float32", data)
        ours.run()
        counts = (PAIRS // 2, PAIRS, 2 * PAIRS, 4 * PAIRS)
        tokens = [sum(row.tokens for row in ours.rows[:count]) for count in counts]
        return exponents(tokens, lambda i: ours.seconds([ours.rows[: counts[i]]]))


def pool() -> Measured:
    """Seconds for the same prompts against the number of sleeping engines: -1 where none of them waits."""
    engines = (2, 4, 8, 16)
    return exponents(engines, lambda i: dispatched(engines[i], 512, 112, token_seconds=0.002)[0][0], runs=3)


def sync_by_parameters() -> Measured:
    return _sync(((4, 1), (7, 1), (14, 1), (28, 1)), by=lambda layers, engines: layers)


def sync_by_engines() -> Measured:
    os.environ["OMP_NUM_THREADS"] = "1"  # as an engine has that shares two cores with others
    return _sync(((7, 1), (7, 2), (7, 4)), by=lambda layers, engines: engines)


def _sync(cases: Sequence[tuple[int, int]], by: Callable[[int, int], int]) -> Measured:
    """Seconds of a sync of a model of so many layers to so many engines, on one machine of two cores. What was sent is
    dropped at once: the weights of all cases together are more than Ray's store holds."""
    from actors.weight_sync import ObjectStoreSync
    from tests.benchmarks.engines import SYNC_PAUSE, learner_and_engines, local_ray, touch_store

    ray = local_ray()
    touch_store(ray)
    with tempfile.TemporaryDirectory() as aside:
        syncs, sizes = [], []
        largest = max(engines for _, engines in cases)
        made: dict[int, tuple[Any, list[Any]]] = {}
        for layers, engines in cases:
            if layers not in made:
                folder = write_large_model(Path(aside) / str(layers), layers=layers)
                made[layers] = learner_and_engines(folder, largest if by(layers, engines) == engines else engines)
            group, actors = made[layers]
            syncs.append(ObjectStoreSync(group, actors[:engines]))
            sizes.append(group.shapes["policy"].parameters if by(layers, engines) == layers else engines)

        def seconds(i: int) -> float:
            began = perf_counter()
            syncs[i].send(0)
            taken = perf_counter() - began
            syncs[i].sent = None
            sleep(SYNC_PAUSE)
            return taken

        for i in range(len(cases)):
            seconds(i)
        return exponents(sizes, seconds)


def write_records(folder: Path, arms: int, seeds: int) -> Path:
    """Copies of the published comparison's first arm and seed, as so many arms and seeds."""
    import json

    import pandas as pd
    import yaml

    folder.mkdir()
    recipe = yaml.safe_load((KEPT / "recipe.yaml").read_text())
    results = json.loads((KEPT / "results.json").read_text())
    arm, own = next(iter(results["arms"].items()))
    names = [f"{arm}-{i}" for i in range(arms)]
    (seed, *_) = own["seeds"]
    results["arms"] = {name: own | {"seeds": [seed | {"seed": s} for s in range(seeds)]} for name in names}
    recipe |= {"arms": dict.fromkeys(names, recipe["arms"][arm]), "seeds": list(range(seeds)), "claims": [], "sweep": {},
               "baseline": names[0], "tuning": None}  # fmt: skip
    for name in ("metrics", "samples", "ledger", "pairs"):
        table = pd.read_parquet(KEPT / f"{name}.parquet")
        others, one = (
            table[table["arm"].isin(["base", "shared"])],
            table[(table["arm"] == arm) & (table["seed"] == seed["seed"])],
        )
        copies = [one.assign(arm=name, seed=s) for name in names for s in range(seeds)]
        pd.concat([others, *copies]).to_parquet(folder / f"{name}.parquet")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "base.json").write_text((KEPT / "base.json").read_text())
    return folder


def report(sizes: Sequence[tuple[int, int]]) -> Measured:
    """Seconds that arms and seeds beyond those of the first size add to writing the report, against their number: much of a
    report costs the same whatever is in it."""
    with tempfile.TemporaryDirectory() as aside:
        folders = [write_records(Path(aside) / f"{arms}x{seeds}", arms, seeds) for arms, seeds in sizes]

        def seconds(folder: Path) -> float:
            from rlhf_bench.report import write_report

            began = perf_counter()
            write_report(folder)
            return perf_counter() - began

        seconds(folders[0])
        least = min(seconds(folders[0]) for _ in range(3))
        (arms, seeds), *larger = sizes
        more = [a * s - arms * seeds for a, s in larger]
        return exponents(more, lambda i: seconds(folders[1 + i]) - least, runs=3)


ROWS = (
    Row("growth_learner", "a step's time against its tokens, exponent", "a line", "at most", 1.1, learner),
    Row("growth_pool", "a pool's time against its engines, exponent", "one over a line", "at most", -0.9, pool),
    Row(
        "growth_sync_parameters",
        "a sync's time against parameters, exponent",
        "a line",
        "at most",
        1.1,
        sync_by_parameters,
    ),
    Row("growth_sync_engines", "a sync's time against engines, exponent", "a line", "at most", 1.1, sync_by_engines),
    Row(
        "growth_report_arms",
        "what further arms of two seeds add to the report's time, exponent",
        "a line",
        "at most",
        1.1,
        partial(report, ((2, 2), (4, 2), (8, 2), (16, 2))),
    ),
    Row(
        "growth_report_seeds",
        "what further seeds of two arms add to the report's time, exponent",
        "a line",
        "at most",
        1.1,
        # From eight on: with fewer, a test of signs tries fewer flips than the number that it tries with many.
        partial(report, ((2, 8), (2, 16), (2, 32), (2, 64))),
    ),
)
