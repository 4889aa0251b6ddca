"""How busy this machine is: processors, memory, GPUs."""

from __future__ import annotations

import shutil
import subprocess

import psutil

MIB = 2**20
NVIDIA_SMI_SECONDS = 5.0


def begin() -> None:
    """Start measuring processor time: `node_load` gives it since the call before, of the same thread."""
    psutil.cpu_percent()


def node_load() -> dict[str, float]:
    """By the names of MLflow's own system metrics. Sizes in MiB, shares in percent."""
    memory = psutil.virtual_memory()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": (memory.total - memory.available) / MIB,
        "system_memory_usage_percentage": memory.percent,
        **_gpus(),
    }


def _gpus() -> dict[str, float]:
    """Of all NVIDIA GPUs of the machine, also those that this process may not use; empty where there are none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    query = ["--query-gpu=index,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(
            [command, *query],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=NVIDIA_SMI_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {}  # the GPU driver is in trouble; the next call may succeed
    return parsed(told.stdout) if told.returncode == 0 else {}


def parsed(lines: str) -> dict[str, float]:
    """From the output of nvidia-smi, a line per GPU; a number that it does not know, "[N/A]", is left out."""
    found: dict[str, float] = {}
    for line in lines.splitlines():
        index, *numbers = [cell.strip() for cell in line.split(",")]
        names = ("utilization_percentage", "memory_usage_megabytes", "memory_total_megabytes")
        found |= {
            f"gpu_{index}_{name}": float(number)
            for name, number in zip(names, numbers, strict=True)
            if number.replace(".", "", 1).isdigit()
        }
    return found
