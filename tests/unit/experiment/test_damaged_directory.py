"""A directory that has lost something since the last run, and the order in which nothing can be lost."""

import json
import os
import sys
from pathlib import Path

import pandas as pd

from tests.support.side_by_side import PAIRS, Made

ARMS = {"offline": PAIRS, "other": {**PAIRS, "beta": 0.3}}
LOG = []
"""What this process does to the disk while it is wanted: ("sync" | "rename" | "remove", path, new path)."""


def listen(event, arguments):
    if event == "os.rename":
        LOG.append(("rename", Path(arguments[0]), Path(arguments[1])))
    elif event == "shutil.rmtree":
        LOG.append(("remove", Path(arguments[0]), None))


def test_tables_and_policy_of_an_arm_are_on_the_disk_before_its_checkpoints_go(tmp_path, monkeypatch):
    plain = os.fsync

    def fsync(descriptor):
        LOG.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")), None))
        plain(descriptor)

    made = Made(tmp_path, arms={"offline": PAIRS}, seeds=[1], reliability={"checkpoint_seconds": 0})
    monkeypatch.setattr(os, "fsync", fsync)
    sys.addaudithook(listen)
    made.run()
    done = LOG[: LOG.index(("remove", made.directory / "state" / "offline-seed1", None))]
    for place in (made.directory / "parts" / "offline-seed1", made.directory / "checkpoints" / "offline" / "seed-1"):
        ((at, aside),) = [(i, old) for i, (kind, old, new) in enumerate(done) if kind == "rename" and new == place]
        before, after = ({path for kind, path, _ in part if kind == "sync"} for part in (done[:at], done[at:]))
        held = {aside / path.relative_to(place) for path in place.rglob("*") if path.name != "README.md"}
        assert held and held | {aside} <= before
        assert place.parent in after


def test_what_is_lost_is_made_again_or_told_and_no_number_changes(tmp_path):
    first = Made(tmp_path, arms=ARMS, seeds=[1])
    first.run()
    tables = {path.name: pd.read_parquet(path) for path in first.directory.glob("*.parquet")}
    results = json.loads((first.directory / "results.json").read_text())
    weights = first.directory / "checkpoints" / "other" / "seed-1" / "model.safetensors"
    weights.unlink()
    for name in ("results.json", "base.json", "metrics.parquet"):
        (first.directory / name).write_bytes(b"")
    left = first.directory / "state" / "offline-seed1"  # as a run leaves it that is killed just before it removes it
    (left / "round-00000001").mkdir(parents=True)
    again = Made(tmp_path, arms=ARMS, seeds=[1])
    again.run()
    said = " ".join(again.shown.getvalue().split())
    for name in ("results.json", "base.json", "metrics.parquet"):
        assert f"{first.directory / name} is empty: it is made again" in said
    assert (
        f"other · seed 1: {weights} is missing; its numbers stand; bring back a copy of it, or remove parts/other-seed1"
        in said
    )
    assert "offline · seed 1: already done, kept" in said and "offline · seed 1: /" not in said and not left.exists()
    assert json.loads((first.directory / "results.json").read_text())["arms"] == results["arms"]
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, pd.read_parquet(first.directory / name))
