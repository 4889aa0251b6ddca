"""How busy the machine is that this process runs on: processors, memory, network of the nodes that a run uses, and GPUs."""

from __future__ import annotations

import shutil
import subprocess

import psutil

MIB = 2**20
NVIDIA_SMI_SECONDS = 5.0


def begin() -> None:
    """Processor time is measured from here on: between two calls of one thread."""
    psutil.cpu_percent()


def node_load() -> dict[str, float]:
    """By the names that MLflow's own system metrics have. Sizes in MiB, shares in percent."""
    memory = psutil.virtual_memory()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": (memory.total - memory.available) / MIB,
        "system_memory_usage_percentage": memory.percent,
        **_gpus(),
    }


def _gpus() -> dict[str, float]:
    """Of all NVIDIA GPUs of the machine, whichever of them this process may use; nothing where there are none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    query = ["--query-gpu=index,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run([command, *query], capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS)
    except subprocess.TimeoutExpired:
        return {}  # a driver in trouble; the next call may find it well
    return parsed(told.stdout) if told.returncode == 0 else {}


def parsed(lines: str) -> dict[str, float]:
    """What nvidia-smi says, a line per GPU; a number that it does not know, "[N/A]", is left out."""
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
