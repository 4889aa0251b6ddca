"""One command at a time in a directory, whatever becomes of the one before."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.lock import held

ROOT = Path(__file__).parents[3]
HOLDS = """
import sys, time
from pathlib import Path
from rlhf_bench.core.lock import held
with held(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def enter(directory):
    """What is said."""
    said = []
    with held(directory, said.append):
        pass
    return said


def test_the_second_is_told_who_holds_it_since_when_and_touches_nothing(tmp_path, other):
    before = (tmp_path / "lock").read_text()
    owner = json.loads(before)
    with pytest.raises(BadInput) as refused:
        enter(tmp_path)
    assert str(refused.value) == (
        f"--output {tmp_path}: another command works in it, process {other.pid} on {owner['host']} since {owner['since']}; "
        "wait for its end, or choose another directory"
    )
    assert (tmp_path / "lock").read_text() == before and list(tmp_path.iterdir()) == [tmp_path / "lock"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_an_owner_that_was_killed_has_left_stops_nobody(tmp_path, other, number):
    other.send_signal(number)
    other.wait()
    assert enter(tmp_path) == [] and (tmp_path / "lock").read_text() == ""


def test_one_after_another(tmp_path):
    assert enter(tmp_path / "new" / "out") == [] and enter(tmp_path / "new" / "out") == []


def test_an_owner_on_another_host_that_did_not_end_in_good_order_is_named(tmp_path):
    left = {"process": 7, "host": "elsewhere", "since": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "lock").write_text(json.dumps(left))
    (line,) = enter(tmp_path)
    assert "process 7 on elsewhere since 2026-01-01T00:00:00+00:00 did not end in good order" in line
    (tmp_path / "lock").write_text("{")  # a full disk
    assert enter(tmp_path) == []


def test_a_directory_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(BadInput, match=r"^--output .*: cannot be used \(.*\); choose another directory$"):
            enter(directory)
