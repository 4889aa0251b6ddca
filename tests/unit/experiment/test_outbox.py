"""What MLflow has yet to be told: what a kill, a full disk and a long outage leave of it. No MLflow here."""

import json
import os
import subprocess
import sys
import tracemalloc

import pytest

from rlhf_bench.core.errors import BadInput, RunFailed
from rlhf_bench.experiment.tracking.outbox import ArtifactAdded, MetricsLogged, Outbox, Run, RunEnded, RunStarted
from rlhf_bench.experiment.tracking.tracker import _lots

ARM = Run("key-1", "dpo", 1)
ITEMS = (
    RunStarted(Run("key-1"), 1, {"task.name": "verse ü"}, {"commit": "abc"}),
    RunStarted(ARM, 2, {"learning_rate": "0.1"}, {}),
    MetricsLogged(ARM, 3, 0, {"train/loss": 0.1, "train/kl": 1e-300}),
    ArtifactAdded(ARM, "../report.html"),
    RunEnded(ARM, 4, "diverged", {"data": "online"}),
)


def waiting(outbox: Outbox) -> list:
    return [item for item, _ in outbox.waiting()]


def filled(directory) -> Outbox:
    outbox = Outbox(directory)
    for item in ITEMS:
        outbox.append(item)
    return outbox


def test_what_was_appended_waits_until_it_is_marked_in_this_process_and_the_next(tmp_path):
    outbox = filled(tmp_path)
    assert waiting(outbox) == waiting(Outbox(tmp_path)) == list(ITEMS)
    ends = [end for _, end in outbox.waiting()]
    outbox.delivered(ends[1])
    assert waiting(outbox) == waiting(Outbox(tmp_path)) == list(ITEMS[2:])
    outbox.append(ITEMS[2])
    outbox.delivered(ends[-1])
    assert waiting(outbox) == waiting(Outbox(tmp_path)) == [ITEMS[2]]


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    """The kinds of lines are part of the file, whatever the classes are called."""
    lines = filled(tmp_path).path.read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["start", "start", "points", "file", "end"]


def test_what_is_all_delivered_takes_no_room_in_the_next_process(tmp_path):
    outbox = filled(tmp_path)
    outbox.delivered([end for _, end in outbox.waiting()][-1])
    again = Outbox(tmp_path)
    assert waiting(again) == [] and again.path.stat().st_size == 0
    again.append(ITEMS[0])
    assert waiting(again) == waiting(Outbox(tmp_path)) == [ITEMS[0]]


@pytest.mark.parametrize("kept", range(0, 40, 3))
def test_a_torn_last_line_is_dropped_and_the_next_stands_on_a_line_of_its_own(kept, tmp_path):
    path = filled(tmp_path).path
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][:kept])
    outbox = Outbox(tmp_path)
    assert waiting(outbox) == list(ITEMS[:-1])
    outbox.append(ITEMS[0])
    assert waiting(Outbox(tmp_path)) == [*ITEMS[:-1], ITEMS[0]]


def test_a_torn_mark_is_dropped_too(tmp_path):
    outbox = filled(tmp_path)
    outbox.delivered([end for _, end in outbox.waiting()][0])
    os.truncate(outbox.path, outbox.path.stat().st_size - 3)
    assert waiting(Outbox(tmp_path)) == list(ITEMS)


@pytest.mark.parametrize("line", ["?", '{"kind": "start"}', '{"kind": "song", "run": ["key-1"]}', "[1]"])
def test_a_line_in_the_middle_that_cannot_be_read_is_named(line, tmp_path):
    path = filled(tmp_path).path
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], line + "\n", *lines[2:]]))
    with pytest.raises(BadInput, match=r"tracking\.jsonl: line 3 cannot be read; remove that line"):
        Outbox(tmp_path)


FILL_UP = """
import resource, sys
from pathlib import Path
from rlhf_bench.experiment.tracking.outbox import Outbox, MetricsLogged, Run
from rlhf_bench.core.errors import RunFailed

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a disk of 1000 bytes
outbox = Outbox(Path(sys.argv[1]))
try:
    for step in range(100):
        outbox.append(MetricsLogged(Run("key-1", "dpo", 1), 0, step, {"train/loss": 0.5}))
except RunFailed as error:
    print(step, error)
"""


def test_a_full_disk_ends_the_run_with_the_files_name_and_harms_no_line_that_is_there(tmp_path):
    out = subprocess.run([sys.executable, "-c", FILL_UP, str(tmp_path)], capture_output=True, text=True, check=True)
    steps, said = out.stdout.strip().split(" ", 1)
    assert said.startswith(f"{tmp_path / 'tracking.jsonl'}: cannot be written: ") and "make room" in said
    assert "\n" not in said
    assert (tmp_path / "tracking.jsonl").read_bytes().endswith(b"}\n")
    assert [item.step for item in waiting(Outbox(tmp_path))] == list(range(int(steps)))


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RunFailed, match=r"absent/tracking\.jsonl: cannot be written: No such file or directory"):
        Outbox(tmp_path / "absent")


def test_an_outbox_of_days_is_read_line_by_line(tmp_path):
    outbox = Outbox(tmp_path)
    metrics = {f"train/{i}": i / 3 for i in range(60)}
    for step in range(3000):
        outbox.append(MetricsLogged(ARM, 0, step, metrics))
    assert outbox.path.stat().st_size > 3e6
    tracemalloc.start()
    assert sum(1 for _ in Outbox(tmp_path).waiting()) == 3000
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3e5


def test_points_of_arms_beside_each_other_share_requests_and_nothing_is_overtaken():
    """Two arms' steps in turn: a request for each arm, up to what else there is in between."""
    one, other = Run("k", "a", 1), Run("k", "b", 1)
    steps = [MetricsLogged(run, 0, step, {"loss": 0.5}) for step in range(5) for run in (one, other)]
    many = [MetricsLogged(one, 0, step, {f"m{i}": 0.0 for i in range(600)}) for step in (6, 7)]
    items = [*steps, RunEnded(one, 0, "done", {}), *many]
    lots = list(_lots((item, at) for at, item in enumerate(items, 1)))
    assert lots == [([steps[::2], steps[1::2]], 10), ([[items[10]]], 11), ([[many[0]]], 12), ([[many[1]]], 13)]
