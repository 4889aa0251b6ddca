"""The report's second process: its figures, and a report whose second process is killed."""

import os
import signal
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def report_workers():
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::ReportWorker"):
                found.add(int(process.name))
        except OSError:  # it has ended
            continue
    return found


def test_figures_come_from_the_other_process_and_from_this_one_when_that_is_killed(cluster):
    from actors.report_worker import begin_report
    from rlhf_bench.report.page import draw_properties
    from rlhf_bench.results.reader import read_recorded
    from rlhf_bench.results.summary import summarize

    recorded = read_recorded(ROOT / "docs" / "results" / "data" / "verse")
    summary = summarize(recorded)
    said, others = [], report_workers()
    begin = begin_report(said.append)
    drawn = begin(recorded, summary)()
    assert drawn == draw_properties(recorded, summary)
    assert said == []
    (pid,) = report_workers() - others
    pending = begin(recorded, summary)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while pid in report_workers():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert pending() == drawn
    assert len(said) == 1 and "drawn by the driver" in said[0]
