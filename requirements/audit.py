"""Ask PyPI, by pip-audit, which packages of the locks have known vulnerabilities. `make check` runs it.

Usage: .venv/bin/python requirements/audit.py

Exit code 1 where one has, with pip-audit's table. 0 where none has, and where PyPI's list cannot be had from here, which a
line says: without a network, or behind a mirror, which serves files alone.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCKS = (("cpu", "dev", "cluster"), ("gpu",))
"""What is asked for at once has each package once. torch-cpu.txt is not among them: PyPI knows torch as gpu.txt names it."""
KNOWN = "urllib3==1.24.1"
"""Has had known vulnerabilities since 2019: who names none has no list."""


def pip_audit(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--progress-spinner=off"]
    return subprocess.run([*command, *options], capture_output=True, text=True, encoding="utf-8")


def has_list() -> bool:
    """Does PyPI tell this machine of vulnerabilities?"""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "known.txt")
        asked.write_text(KNOWN, encoding="utf-8")
        answer = pip_audit("--no-deps", "--timeout=10", "--format=json", "--requirement", str(asked)).stdout
    packages = json.loads(answer)["dependencies"] if answer.startswith("{") else []
    return any(package.get("vulns") for package in packages)


def main() -> int:
    if not has_list():
        print("audit: skipped, since PyPI's list of vulnerabilities cannot be had from here")
        return 0
    codes = []
    for names in LOCKS:
        found = pip_audit(*(f"--requirement={HERE / name}.txt" for name in names))
        print(f"{', '.join(names)}: {found.stderr.strip()}\n{found.stdout}".strip())
        codes.append(found.returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
