"""MLflow: one experiment per recipe, a parent run per comparison, a nested child per arm and seed.

    driver ── start_comparison, start_arm, log, end_arm ──> outbox on disk ──> one thread ──> MLflow

The driver only appends to the outbox. To import MLflow and to make a new sqlite store takes seconds, and a server may be
slow or away for days: the thread waits for that, keeps the order, and retries while the run continues. What MLflow has
not received by the end, or when the driver is killed, waits in the outbox for the next run in the same directory. What
MLflow refuses is named by `Tracker.finish`, never dropped in silence.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rlhf_bench.core.text import without_passwords
from rlhf_bench.experiment.tracking.mlflow_store import MAX_METRICS, Store, refused, unknown
from rlhf_bench.experiment.tracking.outbox import Item, MetricsLogged, Outbox, Run, RunEnded, RunStarted, Status
from rlhf_bench.experiment.tracking.recorded import Records
from rlhf_bench.experiment.tracking.telling import Telling, first_line, now

FLUSH_SECONDS = 5.0
RETRY_SECONDS = 15.0
PATIENCE_SECONDS = 15.0  # how long `finish` retries while the store is away
FINISH_SECONDS = 120.0  # the longest that `finish` waits for a store that is there but slow


def tracking_uri(uri: str | None, directory: Path) -> str:
    """The store to use: `uri`, else MLFLOW_TRACKING_URI, else a sqlite file beside the run's output `directory`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(directory.resolve().parent / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """The address of a sqlite file. Signs of a path that mean something else in an address are written in codes."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")


def how_to_open(uri: str) -> str:
    """How a reader opens the store: a server's own address, or the command that serves it. Without credentials."""
    shown = without_passwords(uri)
    if uri.startswith(("http://", "https://")):
        return shown
    in_quotes = shown.replace("'", "'\"'\"'")
    return f".venv/bin/mlflow ui --backend-store-uri '{in_quotes}'"


class Tracker(Telling):
    """The driver's side. Only `finish` waits for MLflow, for a bounded time; no method raises because of
    it. All methods that tell MLflow something raise RunFailed where the outbox in `directory` cannot be written.

    `on_warning` gets one line when the store first fails, and one when it first refuses something; it is called from
    the tracker's thread, and not after `finish`. What an earlier run left in the outbox is delivered first.
    """

    def __init__(self, uri: str | None, experiment: str, directory: Path, on_warning: Callable[[str], None] = print):
        super().__init__(directory)
        self.uri = tracking_uri(uri, directory)
        self._experiment = experiment
        self._on_warning = on_warning
        self._outbox = Outbox(directory)
        self._warned: set[str] = set()
        self._lost: list[str] = []
        self.lacks: list[str] = []  # what `finish` has returned
        self._finishing, self._patience_ends = threading.Event(), math.inf
        self._given_up = False
        # A daemon, so that a driver that dies does not wait for a server that is away.
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def finish(self, status: Status) -> list[str]:
        """Close every run that is open, wait until MLflow has it all, and say what it has not got, a line each.

        Waits PATIENCE_SECONDS and one request for a store that is away, FINISH_SECONDS for one that is slow.
        """
        for arm, seed in sorted(self._open):
            self.end_arm(arm, seed, "interrupted" if status == "done" else status, {})
        self._tell(RunEnded(Run(self._run_key), now(), status, {}))
        self._patience_ends = time.monotonic() + PATIENCE_SECONDS
        self._finishing.set()
        self._thread.join(FINISH_SECONDS)
        self._given_up = True
        waiting = sum(1 for _ in self._outbox.waiting())
        self.lacks = list(self._lost)
        if waiting:
            self.lacks.append(
                f"{waiting} records, which wait in {self._outbox.path}: the same command with the same --output delivers "
                f"them; no result in {self._directory} needs them"
            )
        else:
            self._outbox.close() if self._lost else self._outbox.remove()  # what MLflow refused is nowhere else
        return self.lacks

    def _tell(self, item: Item) -> None:
        self._outbox.append(item)

    # Below: the tracker's thread.

    def _work(self) -> None:
        store: Store | None = None
        pause = FLUSH_SECONDS
        while not self._given_up:
            finishing = self._finishing.wait(pause)  # which cuts the pause short
            try:
                store = store or Store(self.uri, self._experiment, self._directory, self._start_of)
                self._deliver(store)
            except Exception as error:  # whatever MLflow, its store or the network raises: the run continues
                self._warn(
                    "away",
                    f"MLflow at {self.uri} cannot be reached for now: {first_line(error)}; the run continues, and what MLflow is to "
                    f"get waits in {self._outbox.path}",
                )
                pause = RETRY_SECONDS
                if store:
                    store.forget()
                if finishing and time.monotonic() > self._patience_ends:
                    return
                if finishing:
                    time.sleep(min(1.0, RETRY_SECONDS))
            else:
                pause = FLUSH_SECONDS
                if finishing:
                    return

    def _deliver(self, store: Store) -> None:
        """Send what waits, in order, and mark what is sent or refused for good. Raises where the store is away."""
        for batches, end in _lots(self._outbox.waiting()):
            for batch in batches:
                if self._given_up:
                    return
                self._send(store, batch)
            self._outbox.delivered(end)

    def _start_of(self, run: Run) -> RunStarted:
        """How the run began, as this outbox has it or else DIR's records. LookupError or FileNotFoundError where neither has it."""
        return self._outbox.start_of(run) or Records(self._directory).start(run)

    def _send(self, store: Store, batch: list[Item], again: bool = False) -> None:
        try:
            store.send(batch)
        except Exception as error:
            if not refused(error):
                raise
            store.check_experiment()  # of a deleted one everything is refused, and may be delivered once it is restored
            if unknown(error) and not again:  # the store was set back to an older copy: its runs are looked up anew
                store.forget()
                self._send(store, batch, again=True)
                return
            if len(batch) > 1:  # one by one, so that what is wrong with one step costs no other
                for item in batch:
                    self._send(store, [item])
                return
            self._warn("refused", f"MLflow refused {batch[0]}: {first_line(error)}")
            self._lost.append(f"{batch[0]}: {first_line(error)}")

    def _warn(self, kind: str, line: str) -> None:
        if kind not in self._warned and not self._given_up:
            self._warned.add(kind)
            self._on_warning(without_passwords(line))


def _lots(items: Iterable[tuple[Item, int]]) -> Iterator[tuple[list[list[Item]], int]]:
    """Items as they are sent, in batches: points of one run together, as many as fit into one request, also where those of
    arms beside each other come in turn; anything else alone. Each lot of batches with the outbox's byte behind it."""
    lot: dict[Run, list[Item]] = {}
    metrics: Counter[Run] = Counter()
    end = 0
    for item, after in items:
        own = len(item.metrics) if isinstance(item, MetricsLogged) else MAX_METRICS + 1
        if lot and metrics[item.run] + own > MAX_METRICS:
            yield list(lot.values()), end
            lot, metrics = {}, Counter()
        if not isinstance(item, MetricsLogged):
            yield [[item]], after
            continue
        lot.setdefault(item.run, []).append(item)
        metrics[item.run] += own
        end = after
    if lot:
        yield list(lot.values()), end
