"""What MLflow is told of a comparison that has ended: its files, verdict and scores, finished policies, and what it lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.text import without_passwords
from rlhf_bench.experiment.tracking.metrics import finished_policies
from rlhf_bench.experiment.tracking.mlflow_store import Store, refused
from rlhf_bench.experiment.tracking.outbox import Item
from rlhf_bench.experiment.tracking.recorded import Records
from rlhf_bench.experiment.tracking.telling import Telling, first_line
from rlhf_bench.results.schema import BENCHMARKS, CHECKPOINTS, RECIPE, REPORT, SUMMARY, TABLES, TUNING

if TYPE_CHECKING:
    from rlhf_bench.report import Summary

FILES = (REPORT, SUMMARY, RECIPE, *(table.file for table in TABLES.values()), TUNING, BENCHMARKS)


def tell_finished(to: Telling, directory: Path, summary: Summary, tags: Mapping[str, str]) -> None:
    """`tags`: on every version of a registered policy."""
    from rlhf_bench.experiment.tracking import descriptions

    for name in FILES:
        if (directory / name).exists():
            to.artifact(directory / name)
    to.describe(descriptions.comparison_finished(summary))
    for arm in summary.arms:
        for seed in arm.seeds:
            to.complete(arm.name, seed.seed)
            to.describe(descriptions.arm_finished(arm, seed, summary), arm.name, seed.seed)
    model = (summary.recipe.get("tracking") or {}).get("register_as")
    if model is not None:
        _register(to, model, directory, summary, tags)


def _register(to: Telling, model: str, directory: Path, summary: Summary, tags: Mapping[str, str]) -> None:
    """Every finished policy of the recipe's arms and seeds, also of earlier runs; then their aliases."""
    policies, methods = list(finished_policies(summary)), {arm.name: arm.method for arm in summary.arms}
    for arm, seed, score, _ in policies:
        own = {**tags, "arm": arm, "seed": seed, "score": score, "method": methods[arm]}
        to.register(model, directory / CHECKPOINTS / arm / f"seed-{seed}", arm, seed, own)
    for arm, seed, _, aliases in policies:
        for alias in aliases:
            to.alias(model, alias, arm, seed)


@dataclass
class Sent:
    """What a store did not have, by kind; and what it refused, a line each."""

    added: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = {"runs": "run", "points": "point of a metric", "files": "file", "versions": "version of a policy"}
        plural = {"point of a metric": "points of metrics", "version of a policy": "versions of policies"}
        shown = [
            f"{n} {one if n == 1 else plural.get(one, one + 's')}" for k, one in kinds.items() if (n := self.added[k])
        ]
        return f"sent {', '.join(shown)}" if shown else "has all of it already, nothing was sent"

    def lines(self, uri: str, label: str = "") -> Iterator[str]:
        """`label`: of a series' comparison."""
        yield f"{f'{label}: ' if label else ''}MLflow at {without_passwords(uri)}: {self}"
        yield from (f"  refused: {line}" for line in self.refused)


class _Sender(Telling):
    """Sends at once. Raises RunFailed where the store cannot be reached."""

    def __init__(self, uri: str, records: Records, directory: Path):
        super().__init__(directory, records.tags["run_key"])
        self.uri, self.refused = uri, list[str]()
        try:
            self.store = Store(uri, records.recipe["name"], directory, records.start)
        except Exception as error:  # whatever MLflow, its store or the network raises
            raise self._away(error) from error

    def _tell(self, item: Item) -> None:
        try:
            self.store.send([item])
        except Exception as error:
            if not refused(error):
                raise self._away(error) from error
            self.refused.append(f"{item}: {first_line(error)}")

    def _away(self, error: Exception) -> RunFailed:
        return RunFailed(
            f"MLflow at {without_passwords(self.uri)} cannot be reached: {first_line(error)}; once it can, the same command sends "
            "what it lacks"
        )


def send_recorded(uri: str, directory: Path, summary: Summary) -> Sent:
    """Send what the store lacks of the comparison that is recorded in DIR; everything, where it has nothing of it."""
    records = Records(directory)
    sender = _Sender(uri, records, directory)
    sender.complete()
    tell_finished(sender, directory, summary, records.tags)
    return Sent(sender.store.added, sender.refused)
