"""Does a disturbed run have the results of an undisturbed one?"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

TABLES = ("metrics", "samples", "pairs", "ledger")
TIMES = ["wall_seconds", "device_seconds", "diagnostics/seconds"]
"""Columns in seconds: only these may differ."""


def table(directory: Path, name: str) -> pd.DataFrame:
    found = pd.read_parquet(directory / f"{name}.parquet")
    return found.drop(columns=[c for c in TIMES if c in found])


def weights(directory: Path, arm: str, seed: int = 1) -> bytes:
    return (directory / "checkpoints" / arm / f"seed-{seed}" / "model.safetensors").read_bytes()


def differences(directory: Path, other: Path, arms: list[str], seed: int = 1) -> list[str]:
    """What differs in records or weights, a line each."""
    found = []
    for name in TABLES:
        try:
            pd.testing.assert_frame_equal(table(directory, name), table(other, name), check_exact=True)
        except AssertionError as error:
            found.append(f"{name}: {' '.join(str(error).split())[:300]}")
    return found + [f"weights of {arm}" for arm in arms if weights(directory, arm, seed) != weights(other, arm, seed)]
