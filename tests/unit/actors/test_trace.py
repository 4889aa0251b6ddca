"""The Chrome trace: all calls of all processes on one axis, and none hidden behind another."""

import random

import pytest

from actors.monitoring.trace import ENABLED, Traced, trace_events, traced


def test_calls_that_overlap_are_on_separate_lines_and_none_is_lost():
    rng = random.Random(0)
    tracks = {
        name: [(f"{name} {i}", 1e9 + rng.uniform(0, 10), rng.uniform(0, 2)) for i in range(60)] for name in ("driver", "learner 0")
    }  # fmt: skip
    events = trace_events(tracks)
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == list(tracks)
    first = min(began for calls in tracks.values() for _, began, _ in calls)
    for number, calls in enumerate(tracks.values()):
        drawn = [e for e in events if e["ph"] == "X" and e["pid"] == number]
        assert sorted((e["name"], e["ts"], e["dur"]) for e in drawn) == sorted(
            (name, round((began - first) * 1e6), round(seconds * 1e6)) for name, began, seconds in calls
        )
        lines: dict[int, list] = {}
        for e in sorted(drawn, key=lambda e: e["ts"]):
            lines.setdefault(e["tid"], []).append(e)
        for line in lines.values():
            assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in zip(line, line[1:], strict=False))
        most = max(sum(o["ts"] <= e["ts"] < o["ts"] + o["dur"] for o in drawn) for e in drawn)
        assert len(lines) == most  # no more lines than calls ever overlap


def test_a_process_without_calls_has_its_track():
    events = trace_events({"driver": [("learning", 5.0, 1.0)], "scorer 0": []})
    assert [e["ts"] for e in events if e["ph"] == "X"] == [0]
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} == {"driver", "scorer 0"}


class Role(Traced):
    @traced
    def __init__(self, folder):
        self.folder = folder

    @traced
    def join(self, address, port):
        pass

    @traced
    def load(self, name, folder):
        raise OSError(folder)


def test_a_role_records_its_start_and_its_calls_by_model_also_those_that_fail(monkeypatch):
    monkeypatch.setenv(ENABLED, "1")
    role = Role("/models/one")
    role.join("10.0.0.1", 4000)
    with pytest.raises(OSError, match="/models/two"):
        role.load("policy", "/models/two")
    calls, clock = role.profile()
    assert [name for name, _, _ in calls] == ["start", "join", "load policy"]
    assert all(began <= clock and seconds >= 0 for _, began, seconds in calls)


def test_without_a_profile_nothing_is_recorded():
    assert Role("/models/one").profile()[0] == []
