"""SIGTERM and its like within the time for a checkpoint and outside of it, in a process of its own."""

import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import sys, time
from rlhf_bench.experiment.shutdown import Stopped, grace_period, raise_on_signals

raise_on_signals()
how, seconds = sys.argv[1], float(sys.argv[2])
try:
    if how == "outside":
        print("ready", flush=True)
        time.sleep(30)
    with grace_period(seconds) as grace:
        print("ready", flush=True)
        for update in range(300):
            if how == "stops" and grace.number is not None:
                print("checkpoint", flush=True)
                grace.raise_if_stopped()
            if how == "fails" and grace.number is not None:
                raise ValueError("an engine was lost too")
            if how == "ends" and grace.number is not None:
                break
            time.sleep(0.1)
        print("done", flush=True)
except Stopped as stop:
    print("stopped", stop, flush=True)
    sys.exit(128 + stop.number)
"""


def ends(how, seconds, *signals):
    """Exit code, what was printed, and the seconds that it took after the first signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    said, errors = process.communicate(timeout=30)
    return process.returncode, said.split("\n")[:-1], errors, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_waits_for_a_checkpoint_and_the_code_tells_which_it_was(number):
    code, said, errors, _ = ends("stops", 20, number)
    assert code == 128 + number and said == ["checkpoint", f"stopped {number.name}"]
    assert errors == f"{number.name}: a checkpoint follows after this update; a second signal stops at once\n"


def test_without_a_place_to_stop_it_stops_when_the_time_is_over():
    code, said, _, seconds = ends("never", 2, signal.SIGTERM)
    assert code == 143 and said == ["stopped SIGTERM"] and 1.5 < seconds < 15


def test_a_second_signal_stops_at_once():
    code, said, _, seconds = ends("never", 25, signal.SIGTERM, signal.SIGINT)
    assert code == 130 and said == ["stopped SIGINT"] and seconds < 15


def test_a_signal_that_comes_as_the_work_ends_is_not_forgotten():
    code, said, _, _ = ends("ends", 20, signal.SIGTERM)
    assert code == 143 and said == ["done", "stopped SIGTERM"]


def test_a_signal_is_not_forgotten_when_an_error_that_might_be_survived_comes_too():
    code, said, _, _ = ends("fails", 20, signal.SIGTERM)
    assert code == 143 and said == ["stopped SIGTERM"]


def test_where_nothing_can_be_kept_it_stops_at_once():
    code, said, _, seconds = ends("outside", 20, signal.SIGTERM)
    assert code == 143 and said == ["stopped SIGTERM"] and seconds < 10


def test_under_nohup_a_closed_terminal_is_no_reason_to_stop():
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c", SCRIPT, "outside", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    assert process.communicate(timeout=30)[0] == "stopped SIGTERM\n" and process.returncode == 143
