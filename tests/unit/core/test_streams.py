"""Nobody reads standard output or standard error any more: `| head`, or a closed terminal."""

import os
import pty
import subprocess
import sys

import pytest

WRITES = """
import os, subprocess, sys
from rlhf_bench.core.streams import outlive_readers
outlive_readers()
print("first", flush=True)
print("first", file=sys.stderr, flush=True)
os.read(0, 1)
for stream in (sys.stdout, sys.stderr):
    for _ in range(3):
        print("to nobody", file=stream, flush=True)
subprocess.run(["sh", "-c", "echo to nobody; echo to nobody >&2"], check=True)
os.write(int(sys.argv[1]), b"done")
print("at the end")
"""


def begin(stream):
    """A process that writes, then waits for a byte, writes again, and says to a pipe of its own that it is done."""
    done, told = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(told)], stdin=subprocess.PIPE, pass_fds=[told], start_new_session=True,
        stdout=stream, stderr=stream,
    )  # fmt: skip
    os.close(told)
    return process, done


def goes_on(process, done):
    process.stdin.write(b"\n")
    process.stdin.flush()
    said = os.read(done, 10)
    os.close(done)
    process.stdin.close()
    return said == b"done" and process.wait(timeout=30) == 0


@pytest.mark.parametrize("open_reader", [os.pipe, pty.openpty], ids=["pipe", "terminal"])
def test_a_process_goes_on_when_nobody_reads(open_reader):
    reader, writer = open_reader()
    process, done = begin(writer)
    os.close(writer)
    assert os.read(reader, 5) == b"first"
    os.close(reader)
    assert goes_on(process, done)


def test_other_errors_are_raised():
    with open("/dev/full", "wb") as full:
        process, done = begin(full)
        process.communicate(b"\n", timeout=30)
    os.close(done)
    assert process.returncode != 0
