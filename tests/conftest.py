"""What all tests share.

Tests under tests/engines and tests/end_to_end start real engines and servers; they carry the mark `engine`.
RLHF_BENCH_NO_SKIPS=1 (set by .ci/run) turns a skipped test into a failed one, where the test is marked `engine` or
its whole module was skipped: on a machine that should have the engines, a skip hides a defect.
"""

import os
from pathlib import Path

import pytest

from tests.support.real_model import chat_model

NO_SKIPS = os.environ.get("RLHF_BENCH_NO_SKIPS") == "1"
WITH_ENGINES = [Path(__file__).parent / folder for folder in ("engines", "end_to_end")]


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if any(folder in item.path.parents for folder in WITH_ENGINES):
            item.add_marker(pytest.mark.engine)


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


@pytest.fixture(scope="session")
def smollm2() -> str:
    """SmolLM2-135M-Instruct as a Hugging Face folder, fetched and converted by the first test that asks for it."""
    return chat_model()
