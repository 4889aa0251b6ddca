"""`rlhf-bench cache`: what is kept, and its removal by kind."""

import pytest

from rlhf_bench.cli import main as cli
from rlhf_bench.training.cache import Cache


@pytest.fixture
def filled(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    cache = Cache(tmp_path / "cache")
    for kind, key in (("base", 1), ("base", 2), ("own-pairs", 1)):
        cache.get(kind, key, lambda folder: (folder / "weights").write_bytes(bytes(2**20)) and {})
    (tmp_path / "cache" / ".base-1.abc").mkdir()
    (tmp_path / "cache" / "notes").mkdir()  # nobody's
    return cache


def said(capsys, *arguments):
    code = cli.exit_code(lambda: cli.app(["cache", *arguments], standalone_mode=False))
    return code, capsys.readouterr()


def test_every_kind_is_shown_with_its_number_and_size(filled, capsys):
    code, told = said(capsys)
    first, *lines = told.out.splitlines()
    assert code == 0 and first == f"{filled.folder}: 3.0 MiB"
    assert [line.split()[:4] for line in lines] == [
        ["base", "2", "2.0", "MiB"], ["own-pairs", "1", "1.0", "MiB"], ["unfinished", "1", "0.0", "MiB"],
    ]  # fmt: skip


def test_what_is_named_is_removed_and_nothing_else(filled, capsys):
    code, told = said(capsys, "--clear", "base", "--clear", "unfinished")
    assert code == 0 and sum(line.endswith("  removed") for line in told.out.splitlines()) == 2
    assert list(filled.folders()) == ["own-pairs"] and (filled.folder / "notes").is_dir()
    assert said(capsys, "--clear", "all")[0] == 0
    assert filled.folders() == {} and (filled.folder / "notes").is_dir()


def test_an_unknown_kind_removes_nothing(filled, capsys):
    code, told = said(capsys, "--clear", "base", "--clear", "weights")
    assert code == 2 and "--clear: nothing of kind weights" in told.err and "base, own-pairs" in told.err
    assert len(filled.folders()["base"]) == 2
