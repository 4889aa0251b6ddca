"""`rlhf-bench verify`: what it refuses, before anything starts."""

import json
import os
import shutil
import sys

import pytest
import yaml

from rlhf_bench.cli import main as cli
from rlhf_bench.training.checkpoints import Checkpoints, put
from tests.support.side_by_side import PAIRS, Made


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A page with its recorded data."""
    made = Made(tmp_path_factory.mktemp("made"), arms={"offline": PAIRS}, seeds=[1])
    made.run()
    page = tmp_path_factory.mktemp("docs") / "page.md"
    page.write_text("# r")
    shutil.copytree(made.directory, page.parent / "data" / "page")
    return page


def refused(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["rlhf-bench", "verify", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()


def test_a_page_without_its_data(monkeypatch, capsys, tmp_path):
    (line,) = refused(monkeypatch, capsys, tmp_path / "page.md")
    assert "there is no folder" in line and "data/page" in line


def test_a_directory_in_which_other_code_may_have_made_something(monkeypatch, capsys, recorded, tmp_path):
    (tmp_path / "file").write_text("")
    (line,) = refused(monkeypatch, capsys, recorded, "--output", tmp_path)
    assert line.startswith(f"error: --output {tmp_path}: is not empty")


def test_a_recipe_of_another_version_is_refused_with_the_commit_that_made_it(monkeypatch, capsys, recorded, tmp_path):
    data = tmp_path / "older"
    shutil.copytree(recorded.parent / "data" / "page", data)
    older = yaml.safe_load((data / "recipe.yaml").read_text())
    older["evaluation"]["a_key_of_old"] = 1
    (data / "recipe.yaml").write_text(yaml.safe_dump(older))
    first, last = refused(monkeypatch, capsys, data)
    assert (
        "evaluation.a_key_of_old" in first and "another version of rlhf-bench recorded it (commit not recorded)" in last
    )


def files_of(monkeypatch, capsys, directory):
    """Exit code, the lines that name files, and the last line of `verify DIR --files`."""
    monkeypatch.setattr(sys, "argv", ["rlhf-bench", "verify", str(directory), "--files"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    *named, last = shown.out.splitlines()
    return ended.value.code or 0, named, last


def test_files_are_checked_without_a_run(monkeypatch, capsys, recorded, tmp_path):
    data = recorded.parent / "data" / "page"
    code, named, last = files_of(monkeypatch, capsys, data)
    whole = last.split(" of ")[0]
    assert code == 0 and named == [] and last.startswith(f"{whole} of {whole} files are whole: ")
    directory = tmp_path / "out"
    shutil.copytree(data, directory)
    weights = directory / "checkpoints" / "offline" / "seed-1" / "model.safetensors"
    before = weights.stat()
    weights.write_bytes(bytes(len(weights.read_bytes())))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk does that forgets
    (directory / "parts" / "offline-seed1" / "pairs.parquet").unlink()
    (directory / "base.json").write_text("")
    code, named, last = files_of(monkeypatch, capsys, directory)
    assert code == 1 and last.startswith(f"{int(whole) - 3} of {whole} files are whole")
    assert sorted(named) == [
        "DAMAGED: base.json is empty",
        "DAMAGED: checkpoints/offline/seed-1/model.safetensors does not hold what was written (its SHA-256 is another)",
        "DAMAGED: parts/offline-seed1/pairs.parquet is missing",
    ]


def test_checkpoints_of_arms_in_progress_are_checked_by_their_manifests(monkeypatch, capsys, tmp_path):
    place = tmp_path / "state" / "ppo-seed1"
    Checkpoints(str(place), 2, print).save(3, {"arm": {}}, lambda folder: {"w": put(f"{folder}/w", b"weights")})
    assert files_of(monkeypatch, capsys, tmp_path)[0] == 0
    (place / "round-00000003" / "w").write_bytes(b"weighty")
    code, (line,), _ = files_of(monkeypatch, capsys, tmp_path)
    assert code == 1 and line == f"DAMAGED: {place}/round-00000003 cannot be used: w is damaged"


def test_checksums_lead_to_no_file_outside(monkeypatch, capsys, recorded, tmp_path):
    directory = tmp_path / "out"
    shutil.copytree(recorded.parent / "data" / "page", directory)
    path = directory / "parts" / "offline-seed1" / "checksums.json"
    for outside in ("checkpoints/../../../../dev/zero", "/dev/zero"):
        path.write_text(json.dumps({outside: {"sha256": "", "bytes": 0, "changed_ns": 0}}))
        code, (line,), _ = files_of(monkeypatch, capsys, directory)
        assert code == 1 and line == "DAMAGED: parts/offline-seed1/checksums.json is damaged"
