"""Files of DIR that a full disk, a loss of power or a hand has damaged: noticed, and named with what to do or made again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rlhf_bench.core.errors import BadInput, RunFailed
from rlhf_bench.core.files import put_in_place, write_text, written_aside
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.results.directory import first_day, open_directory, run_key
from rlhf_bench.results.integrity import discard_damaged, policy_damage, sums_of
from rlhf_bench.results.reader import read_recorded
from rlhf_bench.results.schema import TABLES
from rlhf_bench.results.store import ArmRecords, merge_parts

ROOT = Path(__file__).parents[3]
RECIPE = parse_recipe({"name": "r", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e9}, "seeds": [1],
                       "arms": {"a": {"method": "dpo"}, "b": {"method": "ppo"}}})  # fmt: skip
POLICY = "checkpoints/a/seed-1"


@pytest.fixture
def begun(tmp_path):
    """DIR of a comparison of two arms, of which one has ended."""
    directory = tmp_path / "out"
    open_directory(directory, RECIPE, "data")
    folder = directory / POLICY
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("card")
    ArmRecords(directory, "a", "dpo", "offline", 1).finish({}, {"seed": 1}, sums_of(folder, POLICY))
    return directory


def refusal(directory, recipe=RECIPE):
    """The one line."""
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(BadInput) as refused:
        open_directory(directory, recipe, "data")
    assert before == {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    (line,) = refused.value.problems
    return line.removeprefix(f"--output {directory}: ")


def shortened(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_whole_files_are_taken_and_not_written_again(begun):
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*") if path.is_file()}
    open_directory(begun, RECIPE, "data")
    assert before == {path: path.stat().st_mtime_ns for path in begun.rglob("*") if path.is_file()}


@pytest.mark.parametrize("spoil", [emptied, shortened, flipped, os.unlink])
@pytest.mark.parametrize("name", [*(table.file for table in TABLES.values()), "result.json"])
def test_a_damaged_record_of_a_finished_arm_is_named_with_what_to_do(begun, name, spoil):
    spoil(begun / "parts" / "a-seed1" / name)
    line = refusal(begun)
    assert line.startswith(f"parts/a-seed1/{name} ")
    assert line.endswith("; bring back a copy of it, or remove parts/a-seed1, and that arm and seed runs again")


@pytest.mark.parametrize("spoil", [emptied, shortened])
def test_damaged_checksums_are_named_too(begun, spoil):
    spoil(begun / "parts" / "a-seed1" / "checksums.json")
    assert refusal(begun).startswith("parts/a-seed1/checksums.json is ")


@pytest.mark.parametrize("spoil", [emptied, shortened, os.unlink])
@pytest.mark.parametrize("name", ["metrics.parquet", "pairs.parquet"])
def test_a_part_of_an_older_version_without_checksums_is_read(begun, name, spoil):
    (begun / "parts" / "a-seed1" / "checksums.json").unlink()
    open_directory(begun, RECIPE, "data")
    spoil(begun / "parts" / "a-seed1" / name)
    assert refusal(begun).startswith(f"parts/a-seed1/{name} is ")


def test_all_of_them_at_once(begun):
    for name in ("metrics.parquet", "result.json"):
        emptied(begun / "parts" / "a-seed1" / name)
    (begun / "tuning.json").write_text("")
    with pytest.raises(BadInput) as refused:
        open_directory(begun, RECIPE, "data")
    assert len(refused.value.problems) == 3


def test_an_empty_recipe_accepts_none_and_one_that_is_cut_short_is_told_from_another(begun):
    whole = (begun / "recipe.yaml").read_text()
    emptied(begun / "recipe.yaml")
    assert refusal(begun).startswith("recipe.yaml is empty; ") and "bring back a copy" in refusal(begun)
    for end in range(1, len(whole) - 1, 97):
        (begun / "recipe.yaml").write_text(whole[:end])
        assert refusal(begun).startswith("recipe.yaml has been cut short, or an older version has written it")
    (begun / "recipe.yaml").unlink()
    assert refusal(begun).startswith("recipe.yaml is missing; ")


def test_an_empty_digest_of_the_data_refuses_no_data_as_others(begun):
    for spoil in (emptied, lambda path: path.write_text("3:da")):
        spoil(begun / "data_digest")
        assert refusal(begun).endswith(
            "; if the files that the task names are what they were, remove it, and it is made again"
        )
    (begun / "data_digest").unlink()
    open_directory(begun, RECIPE, "data")
    with pytest.raises(BadInput, match="on other data"):
        open_directory(begun, RECIPE, "other")


def test_a_lost_key_comes_from_the_results_or_is_asked_for_and_never_another(begun):
    key = run_key(begun)
    assert key == (begun / "run_key").read_text() == run_key(begun)
    emptied(begun / "run_key")
    assert refusal(begun).startswith("run_key is empty; write into it what MLflow shows as the tag run_key ")
    (begun / "results.json").write_text(json.dumps({"run_key": key}))
    open_directory(begun, RECIPE, "data")
    assert run_key(begun) == key
    (begun / "run_key").unlink()
    assert run_key(begun) == key


def test_an_empty_first_day_is_no_date(begun):
    (begun / "first_day").write_text("")
    with pytest.raises(BadInput, match="first_day holds no date"):
        first_day(begun)


@pytest.mark.parametrize(("spoil", "told"), [
    (emptied, "is empty"), (os.unlink, "is missing"), (flipped, "does not hold what was written (its SHA-256 is another)"),
    (lambda path: path.write_bytes(b"other"), "has 5 bytes where 7 were written"),
], ids=["emptied", "removed", "flipped", "replaced"])  # fmt: skip
def test_a_policy_whose_weights_are_gone_or_damaged_is_noticed(begun, spoil, told):
    path = begun / POLICY / "model.safetensors"
    os.utime(path, ns=(0, 0))  # some time ago: a copy, whose content is looked at
    assert policy_damage(begun, "a", 1, trusting=True) == policy_damage(begun, "a", 1, trusting=False) == []
    spoil(path)
    for trusting in (True, False):
        assert policy_damage(begun, "a", 1, trusting) == [f"{POLICY}/model.safetensors {told}"]


def test_a_bit_that_changed_on_the_disk_itself_is_found_where_no_time_is_trusted(begun):
    path = begun / POLICY / "model.safetensors"
    before = path.stat()
    flipped(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert policy_damage(begun, "a", 1, trusting=True) == []
    assert len(policy_damage(begun, "a", 1, trusting=False)) == 1


def test_the_card_of_a_policy_may_be_written_again(begun):
    (begun / POLICY / "README.md").write_text("another card")
    assert policy_damage(begun, "a", 1, trusting=False) == []


@pytest.mark.parametrize("spoil", [emptied, shortened])
@pytest.mark.parametrize("name", ["results.json", "base.json", "metrics.parquet", "ledger.parquet"])
def test_what_every_run_makes_again_is_removed_with_a_word(begun, name, spoil):
    merge_parts(begun, {"a": [1]}, {})
    for file in ("results.json", "base.json"):
        (begun / file).write_text('{"arms": {}}')
    spoil(begun / name)
    said = []
    discard_damaged(begun, said.append)
    (line,) = said
    assert line.startswith(f"{begun / name} is ") and line.endswith(": it is made again")
    assert not (begun / name).exists() and (begun / "results.json").exists() == (name != "results.json")
    assert (begun / "base.json").exists() == (name == "results.json")  # it says what the tables have of base policies


def test_a_table_that_is_gone_is_made_again_with_the_base_policies_that_it_had(begun):
    merge_parts(begun, {"a": [1]}, {})
    (begun / "base.json").write_text("{}")
    (begun / "pairs.parquet").unlink()
    said = []
    discard_damaged(begun, said.append)
    assert said == [f"{begun / 'pairs.parquet'} is missing: it is made again"] and not (begun / "base.json").exists()


def test_a_directory_in_which_nothing_has_ended_lacks_nothing(begun):
    said = []
    discard_damaged(begun, said.append)
    assert said == []


def test_a_device_in_place_of_weights_is_no_file(begun):
    (begun / POLICY / "model.safetensors").unlink()
    (begun / POLICY / "model.safetensors").symlink_to("/dev/zero")
    assert policy_damage(begun, "a", 1, trusting=False) == [f"{POLICY}/model.safetensors is no file"]


def test_a_part_that_is_damaged_meanwhile_ends_the_run_in_one_line(begun):
    emptied(begun / "parts" / "a-seed1" / "metrics.parquet")
    with pytest.raises(
        RunFailed, match=r"^.*parts/a-seed1/metrics\.parquet: cannot be read \(.*\); the same command says"
    ):
        merge_parts(begun, {"a": [1]}, {})


def test_a_report_on_damaged_files_names_them(begun):
    merge_parts(begun, {"a": [1]}, {})
    (begun / "results.json").write_bytes(b"\xff")
    emptied(begun / "metrics.parquet")
    (begun / "base.json").write_text("{}")
    with pytest.raises(BadInput) as refused:
        read_recorded(begun)
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in refused.value.problems] == [
        "results.json",
        "metrics.parquet",
    ]


def test_on_a_full_disk_files_stay_whole_and_the_same_recipe_goes_on(begun):
    """The kernel refuses every byte of this process that would be written to a file."""
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    code = (
        "import json, resource, sys\nfrom pathlib import Path\nfrom rlhf_bench.recipe import parse_recipe\n"
        "from rlhf_bench.results.directory import open_directory\nfrom rlhf_bench.core.errors import BadInput\n"
        "recipe = parse_recipe(json.loads(sys.stdin.read()))\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n    open_directory(Path(sys.argv[1]), recipe, 'data')\nexcept (OSError, BadInput) as error:\n    print(type(error).__name__, error)\n"
    )
    own = RECIPE.resolved()

    def opened(recipe):
        return subprocess.run([sys.executable, "-c", code, str(begun)], input=json.dumps(recipe), text=True, capture_output=True, cwd=ROOT)  # fmt: skip

    same = opened(own)
    assert (same.returncode, same.stdout) == (0, ""), same.stderr  # nothing changes, so nothing is written
    refused = opened(own | {"description": "other words"})
    assert "recipe.yaml" in refused.stdout and "too large" in refused.stdout, refused.stderr
    assert before == {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    open_directory(begun, RECIPE, "data")


def synced(monkeypatch):
    """What is handed to the disk from now on, in order."""
    paths, plain = [], os.fsync

    def fsync(descriptor):
        paths.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_a_file_and_its_folder_are_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    paths = synced(monkeypatch)
    write_text(tmp_path / "file", "text")
    assert [path.parent for path in paths] == [tmp_path, tmp_path.parent] and paths[-1] == tmp_path
    paths.clear()
    write_text(tmp_path / "file", "text")
    assert paths == []


def test_what_killed_processes_have_left_beside_the_files_goes(begun):
    for place in ("", "parts", "checkpoints"):
        (begun / place / ".x.7.tmp").mkdir()
        (begun / place / ".y.7.tmp").write_text("half")
    open_directory(begun, RECIPE, "data")
    assert not list(begun.rglob(".*.tmp"))


def test_a_folder_is_on_the_disk_with_all_that_it_holds_before_it_counts(tmp_path, monkeypatch):
    aside = tmp_path / "aside"
    (aside / "inner").mkdir(parents=True)
    (aside / "a").write_text("a")
    (aside / "inner" / "b").write_text("b")
    paths = synced(monkeypatch)
    put_in_place(aside, tmp_path / "folder")
    assert (
        set(paths) == {aside / "a", aside / "inner" / "b", aside / "inner", aside, tmp_path} and paths[-1] == tmp_path
    )


def test_a_table_that_comes_out_the_same_is_left_as_it_was(tmp_path):
    path = tmp_path / "table.parquet"
    for _ in range(2):
        with written_aside(path) as aside:
            pd.DataFrame({"a": [1]}).to_parquet(aside)
        first = path.stat().st_mtime_ns
    assert path.stat().st_mtime_ns == first and list(tmp_path.iterdir()) == [path]
