"""What all tests share.

RLHF_BENCH_NO_SKIPS=1 (set by .ci/run) turns a skipped test into a failed one, where the test is marked `engine` or
its whole module was skipped: on a machine that should have the engines, a skip hides a defect.
"""

import os

import pytest

NO_SKIPS = os.environ.get("RLHF_BENCH_NO_SKIPS") == "1"


def _refuse_skip(report, where: str) -> None:
    if NO_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{where}: skipping is not allowed here (RLHF_BENCH_NO_SKIPS=1). {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if item.get_closest_marker("engine"):
        _refuse_skip(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _refuse_skip(report, collector.nodeid)
    return report
