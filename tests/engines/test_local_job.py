"""`cluster/local_job.py` on real clusters: two at once, which must not mix."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.running import numbered_with

LAUNCH = """
import sys
from pathlib import Path
sys.path.insert(0, {cluster!r})
from local_job import run_on_local_cluster
sys.exit(run_on_local_cluster(["python", "driver.py", "two words"], Path({directory!r})))
"""
FAILS = """
import os, sys, ray
ray.init()
print("argument", sys.argv[1], "commit", repr(os.environ["RLHF_BENCH_COMMIT"]))
sys.exit(7)
"""
STOPS = """
import signal, sys, time
def stop(number, frame):
    time.sleep(4)  # longer than Ray waits unless it is told to
    print("state written")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("running")
time.sleep(120)
"""


def launch(directory: Path, driver: str) -> subprocess.Popen:
    directory.mkdir(exist_ok=True)
    (directory / "driver.py").write_text(driver)
    code = LAUNCH.format(cluster=str(Path(__file__).parents[2] / "cluster"), directory=str(directory))
    own = os.environ | {"LOCAL_JOB": str(directory)}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own
    )


def test_a_job_whose_ray_was_killed_ends_with_one_line(tmp_path):
    job = launch(tmp_path / "job", STOPS)
    try:
        while job.stdout.readline() != "running\n":
            assert job.poll() is None
        found = numbered_with(f"LOCAL_JOB={tmp_path / 'job'}").items()
        (of_ray,) = (n for n, command in found if command.split(" ")[0].endswith("/gcs_server"))
        os.kill(of_ray, signal.SIGKILL)
        said = job.communicate(timeout=60)[0].splitlines()
        assert job.returncode == 1 and "Traceback (most recent call last):" not in said, said
        assert [line for line in said if line.startswith("failed: Ray itself has ended (")], said
    finally:
        job.terminate()
        job.wait(timeout=60)


def test_a_tree_that_is_too_large_for_a_job_is_refused_by_the_name_of_what_fills_it(tmp_path):
    directory = tmp_path / "job"
    (directory / "kept").mkdir(parents=True)
    (directory / "ignored").mkdir()
    (directory / ".gitignore").write_text("/ignored\n")
    (directory / "kept" / "weights").write_bytes(os.urandom(101 * 2**20))  # which no packing makes smaller
    (directory / "ignored" / "weights").write_bytes(bytes(200 * 2**20))
    subprocess.run(["git", "init", "-q"], cwd=directory, check=True)
    job = launch(directory, FAILS)
    said = job.communicate(timeout=120)[0].splitlines()
    assert job.returncode == 1 and "Traceback (most recent call last):" not in said
    (line,) = [line for line in said if line.startswith("failed: ")]
    assert (
        "holds 101 MiB" in line and "most of it is kept (101 MiB): move it elsewhere, or name it in .gitignore" in line
    )


def test_exit_codes_pass_and_a_stop_leaves_time_to_write(tmp_path):
    stops, fails = launch(tmp_path / "stops", STOPS), launch(tmp_path / "fails", FAILS)
    try:
        said = ""
        while "running\n" not in said:
            line = stops.stdout.readline()
            assert line, said
            said += line
        stops.send_signal(signal.SIGINT)
        started = time.monotonic()
        said += stops.communicate(timeout=180)[0]
        assert stops.returncode == 130 and "state written" in said, said
        assert time.monotonic() - started > 4

        said = fails.communicate(timeout=180)[0]
        assert fails.returncode == 7 and "argument two words commit ''" in said, said
    finally:
        for process in (stops, fails):
            process.terminate()  # takes its cluster along; no effect where it has ended
            process.wait(timeout=60)
