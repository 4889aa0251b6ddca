"""`rlhf-bench track`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from rlhf_bench.cli.options import write_line
from rlhf_bench.core.errors import RunFailed


def track(
    directory: Annotated[Path, typer.Argument(help="the --output of a run that has ended")],
    uri: Annotated[
        str | None,
        typer.Option(help="MLflow's store: a server's address or sqlite:///FILE", show_default="that of the run"),
    ] = None,
) -> None:
    """Send a finished run to MLflow: to another server, or what its own one lacks. What is there already is not sent again.

    Credentials are read from the environment, as by `run`. Exit code 1 where the store cannot be reached or refuses something.

    Example: rlhf-bench track outputs/quickstart --uri http://127.0.0.1:5000
    """
    from rlhf_bench.report.series import series_labels

    send({label: directory / label for label in series_labels(directory) or [""]}, uri)


def send(places: Mapping[str, Path], uri: str | None = None) -> None:
    """Send the comparisons at `places`, by label, to the store at `uri`, or each to its own. RunFailed where it cannot be reached
    or refuses something."""
    from rlhf_bench.experiment.tracking.finished import Sent, send_recorded
    from rlhf_bench.experiment.tracking.tracker import tracking_uri
    from rlhf_bench.results.reader import read_recorded
    from rlhf_bench.results.summary import summarize
    from rlhf_bench.results.tracked import note_tracked

    recorded = {label: read_recorded(place) for label, place in places.items()}  # all of them, before anything is sent
    refused = 0
    for label, found in recorded.items():
        own = tracking_uri((found.recipe.get("tracking") or {}).get("uri"), places[label])
        sent: Sent = send_recorded(uri or own, places[label], summarize(found))
        if uri in (None, own):
            note_tracked(places[label], own, sent.refused)
        for line in sent.lines(uri or own, label):
            write_line(line)
        refused += len(sent.refused)
    if refused:
        raise RunFailed(f"MLflow refused {refused} of them")
