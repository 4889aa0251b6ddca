"""The monitor's clock stands while its process is stopped: nobody can be heard then."""

import signal
import subprocess
import sys
import time

STOPPED_SECONDS, UNNOTICED_SECONDS = 5.0, 1.0

SCRIPT = """
import sys, time
from actors.supervision.heartbeat import AwakeClock, HeartbeatMonitor
monitor = HeartbeatMonitor()
monitor.beat("echo 0", ("node", 1), "host", {})
print("ready", flush=True)
for _ in sys.stdin:
    listening, silence = monitor.silence()
    print(listening, silence["echo 0"], flush=True)
"""


def test_time_in_which_the_monitor_was_stopped_is_silence_of_nobody():
    monitor = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert monitor.stdout.readline() == "ready\n"
        time.sleep(1.0)
        began = time.monotonic()
        before = ask(monitor)
        monitor.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        monitor.send_signal(signal.SIGCONT)
        after = ask(monitor)
        awake = time.monotonic() - began - STOPPED_SECONDS
        assert all(later - earlier <= awake + UNNOTICED_SECONDS for earlier, later in zip(before, after, strict=True))
    finally:
        monitor.kill()
        monitor.wait()


def ask(monitor):
    monitor.stdin.write("\n")
    return [float(seconds) for seconds in monitor.stdout.readline().split()]
