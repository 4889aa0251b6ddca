"""What listens: the sockets of living processes, and the table of docs/security.md that they are held against."""

import re
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import psutil

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
ROW = re.compile(r"^\| (`[^|]+`) \| [^|]+ \| [^|]+ \|$", re.MULTILINE)


def listeners(numbers) -> dict[str, set[str]]:
    """Of the processes with these numbers, those that accept connections over the network, and at which addresses."""
    found: dict[str, set[str]] = {}
    for number in numbers:
        try:
            process = psutil.Process(number)
            addresses = {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
            if addresses:
                found.setdefault(called(process.cmdline()), set()).update(addresses)
        except psutil.NoSuchProcess:
            continue
    return found


def called(command: list[str]) -> str:
    """`gcs_server`, `dashboard.py`, `ray::LearnerRank`, or `rlhf-bench` for a driver."""
    first, script = command[0].split(" ")[0], next((word for word in command if word.endswith(".py")), "")
    if first.startswith("ray::"):
        return "ray::" + re.split(r"[ .:(]", first.removeprefix("ray::"))[0]
    if "ray.util.client.server" in command:
        return "ray.util.client.server"
    if "python" not in Path(first).name:
        return Path(first).name
    return Path(script).name if script else "rlhf-bench"


def allowed() -> set[str]:
    """The processes that the document says may listen."""
    table = PAGE.read_text("utf-8").partition("## What listens")[2].partition("\n## ")[0]
    return {name for names in ROW.findall(table) for name in re.findall(r"`([^`]+)`", names)}


def on_loopback(address: str) -> bool:
    found = ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None  # "::ffff:127.0.0.1"
    return (mapped or found).is_loopback
