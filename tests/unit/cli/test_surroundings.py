"""What surrounds a run: a user without home or name, a cache that is named oddly, long or odd paths, another locale."""

import io
import os
import shlex
import sqlite3
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from rlhf_bench.cli import main as cli
from rlhf_bench.cli.options import cache_folder
from rlhf_bench.cli.run import name_user
from rlhf_bench.core import files
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.files import short_temporary_folder
from rlhf_bench.experiment.tracking.tracker import how_to_open, sqlite_uri


@pytest.mark.parametrize("value", [None, "", " "])
def test_an_empty_name_of_the_cache_is_none(value, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RLHF_BENCH_CACHE") if value is None else monkeypatch.setenv("RLHF_BENCH_CACHE", value)
    assert cache_folder() == tmp_path / ".cache" / "rlhf-bench"


def test_a_tilde_in_the_name_of_the_cache_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RLHF_BENCH_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("RLHF_BENCH_CACHE", "~nobody-of-that-name/mine")
    with pytest.raises(BadInput, match=r"RLHF_BENCH_CACHE: ~nobody-of-that-name/mine cannot be resolved; set it"):
        cache_folder()


def test_a_user_without_home_and_name_is_told_what_to_set(monkeypatch):
    """As in a container that runs as a number."""
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "RLHF_BENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(BadInput, match=r"RLHF_BENCH_CACHE: is not set, and this user has no home directory; set it"):
        cache_folder()
    with pytest.raises(BadInput, match=r"HOME: is not set, and this user has no home directory; set it"):
        name_user()
    monkeypatch.setenv("HOME", "/tmp")
    name_user()
    assert os.environ["USER"] == "user-54321"
    monkeypatch.delenv("USER")


def test_ray_gets_a_short_folder_where_tmpdir_is_long(monkeypatch, tmp_path):
    def at(place):
        monkeypatch.setattr(files.tempfile, "tempdir", str(place))
        folder = short_temporary_folder("rlhf-ray-")
        folder.rmdir()
        return folder.parent

    assert at("/var/tmp") == Path("/var/tmp")
    assert len(os.fsencode(tmp_path)) > files.MAX_SHORT_BYTES and at(tmp_path) == Path("/tmp")
    monkeypatch.setattr(files.os, "access", lambda place, mode: False)
    with pytest.raises(
        BadInput, match=r"TMPDIR: .* is too long for the sockets of Ray, .*; set it to a folder .* at most 25 bytes"
    ):
        at(tmp_path)


@pytest.mark.parametrize("name", ["plain", "a b", "ü", "a?b", "a#b", "a%20b", "a%b", "50% ?#ü"])
def test_an_output_path_with_signs_of_an_address_names_the_store_in_it(name, tmp_path):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    folder = tmp_path / name
    folder.mkdir()
    uri = sqlite_uri(folder / "mlflow.db")
    with sqlalchemy.create_engine(uri).begin() as connection:
        connection.execute(sqlalchemy.text("create table t (x int)"))
    assert sqlite3.connect(folder / "mlflow.db").execute("select count(*) from t").fetchone() == (0,)
    assert unquote(uri) == f"sqlite:///{folder}/mlflow.db" or "%" in name
    assert shlex.split(how_to_open(uri))[-1] == uri


def test_a_locale_that_lacks_a_character_shows_its_code(monkeypatch):
    latin = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", latin)
    monkeypatch.setattr(sys, "argv", ["rlhf-bench", "--version"])
    monkeypatch.setattr(cli, "raise_on_signals", lambda: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit):
        cli.main()
    print("ü · …")
    latin.flush()
    assert latin.buffer.getvalue().endswith(b"\\xfc \\xb7 \\u2026\n")
