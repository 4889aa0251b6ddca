"""Checkpoints on a disk and in an object store, whole and damaged; an arm's state as plain data and back."""

import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest

from rlhf_bench.core.errors import BadInput, RunFailed
from rlhf_bench.training.checkpoints import Checkpoints, check_writable, fetch, put


@pytest.fixture(params=["disk", "memory"])
def place(request, tmp_path):
    """A folder, or a place in an object store that cannot rename."""
    yield str(tmp_path / "state" / "ppo-seed1") if request.param == "disk" else f"memory://{tmp_path.name}/ppo-seed1"
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(place, said):
    return Checkpoints(place, 2, said.append)


def weights(number):
    return lambda folder: {"policy-00001.safetensors": put(f"{folder}/policy-00001.safetensors", b"w" * number)}


def fill(checkpoints, *numbers):
    for number in numbers:
        checkpoints.save(number, {"arm": {"version": number}}, weights(number))


def spoil(place, file, content):
    with fsspec.open(f"{place}/{file}", "wb") as f:
        f.write(content)


def test_the_newest_one_comes_back_with_its_state_and_files(checkpoints, place):
    assert checkpoints.latest() is None
    fill(checkpoints, 1, 2, 10)
    found = checkpoints.latest()
    assert found.state == {"arm": {"version": 10}} and found.url.endswith("round-00000010")
    assert set(found.files) == {"policy-00001.safetensors", "state.json"}
    with fsspec.open(f"{found.url}/policy-00001.safetensors", "rb") as file:
        assert file.read() == b"w" * 10


def test_older_ones_are_pruned_and_all_of_them_when_the_arm_is_done(checkpoints, place):
    fill(checkpoints, 1, 2, 3)
    files, root = fsspec.core.url_to_fs(place)
    assert sorted(path.rsplit("/", 1)[-1] for path in files.ls(root, detail=False)) == [
        "round-00000002",
        "round-00000003",
    ]
    checkpoints.clear()
    assert checkpoints.latest() is None and not files.exists(root)


@pytest.mark.parametrize("file", ["policy-00001.safetensors", "state.json", "manifest.json"])
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(checkpoints, place, said, file):
    fill(checkpoints, 1, 2)
    spoil(place, f"round-00000002/{file}", b"{")
    assert checkpoints.latest().state == {"arm": {"version": 1}}
    assert len(said) == 1 and "round-00000002" in said[0] and file in said[0]
    assert said[0].endswith("; it is removed, and the one before it is used")


def test_one_of_another_format_is_neither_used_nor_removed(checkpoints, place, said):
    fill(checkpoints, 1)
    manifest = json.loads(fetch(f"{place}/round-00000001/manifest.json"))
    spoil(place, "round-00000001/manifest.json", json.dumps(manifest | {"format": 99}).encode())
    with pytest.raises(RunFailed, match=r"round-00000001: has format 99, .* another --output"):
        checkpoints.latest()
    spoil(place, "round-00000001/manifest.json", json.dumps(manifest).encode())
    assert checkpoints.latest().state == {"arm": {"version": 1}} and said == []


@pytest.mark.parametrize("place", ["memory://checkpoints", "{tmp_path}/new/folder"])
def test_a_place_for_checkpoints_that_can_be_written_is_left_as_it_was(place, tmp_path):
    place = place.format(tmp_path=tmp_path)
    check_writable(place)
    files, root = fsspec.core.url_to_fs(place)
    assert files.ls(root) == []


@pytest.mark.parametrize("place", ["nowhere://bucket/folder", "{tmp_path}/file/folder", "http://127.0.0.1:9/folder"])
def test_a_place_for_checkpoints_that_cannot_be_written_is_refused_in_one_line(place, tmp_path):
    (tmp_path / "file").write_text("")
    place = place.format(tmp_path=tmp_path)
    with pytest.raises(BadInput) as refused:
        check_writable(place)
    assert str(refused.value).startswith(f"reliability.checkpoint_place {place}: cannot be written to (")
    assert "\n" not in str(refused.value)


def test_a_damaged_one_does_not_pass_for_newer_than_those_that_follow(place, said):
    checkpoints = Checkpoints(place, 1, said.append)
    fill(checkpoints, 500)
    spoil(place, "round-00000500/state.json", b"{")
    assert checkpoints.latest() is None
    assert said[0].endswith("; it is removed, and there is none before it: the arm begins anew")
    fill(checkpoints, 1, 2)
    assert checkpoints.latest().state == {"arm": {"version": 2}}


def test_a_file_that_is_gone_counts_as_damage(checkpoints, place, said):
    fill(checkpoints, 1, 2)
    files, root = fsspec.core.url_to_fs(place)
    files.rm(f"{root}/round-00000002/policy-00001.safetensors")
    assert checkpoints.latest().state == {"arm": {"version": 1}} and "is missing" in said[0]


def test_one_that_was_cut_short_is_none_and_stands_in_nobodys_way(checkpoints, place, said):
    fill(checkpoints, 1)

    def dies(folder):
        put(f"{folder}/policy-00001.safetensors", b"half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, {"arm": {"version": 2}}, dies)
    assert checkpoints.latest().state == {"arm": {"version": 1}} and not said
    fill(checkpoints, 2)
    assert checkpoints.latest().state == {"arm": {"version": 2}}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_leaves_the_last_one_good(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), 2, print)
    fill(checkpoints, 1)

    def on_a_full_disk(folder):
        os.symlink("/dev/full", f"{folder}/policy-00001.safetensors")
        return {"policy-00001.safetensors": put(f"{folder}/policy-00001.safetensors", b"w" * 100)}

    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, {}, on_a_full_disk)
    assert checkpoints.latest().state == {"arm": {"version": 1}}


def test_numbers_come_back_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    numbers = [float(x) for x in rng.normal(size=100)] + [float("inf"), float("nan"), 5e-324]
    state = {"numbers": numbers, "generator": rng.bit_generator.state, "numpy": np.float32(0.1)}
    checkpoints = Checkpoints(str(tmp_path), 1, print)
    checkpoints.save(1, state, lambda folder: {})
    found = checkpoints.latest().state
    np.testing.assert_array_equal(found["numbers"], numbers)
    assert found["numpy"] == float(np.float32(0.1))
    again = np.random.default_rng(1)
    again.bit_generator.state = found["generator"]
    assert again.normal() == rng.normal()


def test_a_checkpoint_is_plain_data(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), 1, print)
    fill(checkpoints, 1)
    (folder,) = tmp_path.iterdir()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert json.loads((folder / "manifest.json").read_text())["files"].keys() == {
        "policy-00001.safetensors",
        "state.json",
    }
