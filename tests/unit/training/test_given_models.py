"""What tells a given model, reward model or tokenizer from another one of its name: content, and nothing of ours in its folder."""

import json
import os
import shutil

import pytest
import torch

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.given import REWARD_MODEL
from rlhf_bench.models.hub import folder_of
from rlhf_bench.models.loading import RewardScaling, load_model
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.results.directory import open_directory
from rlhf_bench.results.given import recorded_given
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import prepare_inputs
from tests.support.broken_models import write_sound_model
from tests.support.given_models import HubCache, write_weights

ONE, OTHER = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_sound_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "given")


@pytest.fixture
def rewarding(sound, tmp_path):
    return write_weights(shutil.copytree(sound, tmp_path / "reward"), scalar=True)


def recipe(model, reward=None):
    place = {
        "name_or_path": str(model),
        "max_length": 32,
        "tokenizer": {"kind": "pretrained", "name_or_path": str(model)},
    }
    settings = {
        "name": "given", "model": place, "compute": {"limit": 1e9}, "arms": {"ppo": {"method": "ppo"}}, "task": {"kind": "arithmetic"},
        "data": {"train_prompts": 2, "max_response_tokens": 6, "off_policy_pairs": 1, "held_out_pairs": 1},
        "sft": {"demonstrations": 2}, "evaluation": {"prompts": 2, "splits": ["in_distribution"]},
    }  # fmt: skip
    return parse_recipe(settings | ({"reward_model": {"name_or_path": str(reward)}} if reward else {}))


def begin(tmp_path, settings):
    """As `run` opens DIR, for the first time or again. Returns the inputs."""
    out = tmp_path / "out"
    inputs = prepare_inputs(settings, Cache(tmp_path / "cache"), before=recorded_given(out))
    open_directory(out, settings, inputs.fingerprint["data"], inputs.codec.day, inputs.given)
    return inputs


def refused(tmp_path, settings):
    with pytest.raises(BadInput) as error:
        begin(tmp_path, settings)
    *found, remedy = error.value.problems
    assert remedy.startswith(f"--output {tmp_path}/out: holds a comparison that began from what it was before")
    return found


def test_weights_that_are_replaced_while_a_run_is_stopped_are_refused_by_key_and_file(folder, rewarding, tmp_path):
    """Also if name, shapes, size and time are the same."""
    settings = recipe(folder, rewarding)
    before, kept = begin(tmp_path, settings), {p: p.stat() for p in (folder, rewarding)}
    assert begin(tmp_path, settings).fingerprint == before.fingerprint
    stats = {}
    for place in kept:
        weights = place / "model.safetensors"
        stats[place] = weights.stat()
        write_weights(place, seed=1, scalar=place == rewarding)
        os.utime(weights, ns=(stats[place].st_atime_ns, stats[place].st_mtime_ns))
        assert weights.stat().st_size == stats[place].st_size
    assert refused(tmp_path, settings) == [
        f"model.name_or_path: {folder} has other model.safetensors",
        f"reward_model.name_or_path: {rewarding} has other model.safetensors",
    ]
    now = prepare_inputs(settings, Cache(tmp_path / "cache"))
    assert now.fingerprint["model"] != before.fingerprint["model"]  # nor are stages taken from the cache


def test_a_tokenizer_that_changes_is_refused_and_files_that_nobody_reads_are_not(folder, tmp_path):
    settings = recipe(folder)
    begin(tmp_path, settings)
    (folder / "README.md").write_text("a word more")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    begin(tmp_path, settings)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert refused(tmp_path, settings) == [
        f"model.name_or_path: {folder} has new chat_template.jinja",
        f"model.tokenizer.name_or_path: {folder} has new chat_template.jinja",
    ]


def test_content_counts_and_not_where_it_is(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "elsewhere")
    first, second = (prepare_inputs(recipe(place), Cache(tmp_path / "cache")) for place in (folder, copied))
    assert first.fingerprint == second.fingerprint
    assert first.given["model.name_or_path"].content["model.safetensors"] == sha256(folder / "model.safetensors")


def sha256(file):
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_folder_is_read_once_until_it_changes(folder, tmp_path):
    cache, settings = Cache(tmp_path / "cache"), recipe(folder)
    prepare_inputs(settings, cache)
    for made in cache.folder.glob("content-*/cache.json"):
        made.write_text(json.dumps(dict.fromkeys(json.loads(made.read_text()), "as it was read")))
    again = prepare_inputs(settings, cache).given["model.name_or_path"].content
    assert set(again.values()) == {"as it was read"}
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert "as it was read" not in prepare_inputs(settings, cache).given["model.name_or_path"].content.values()


def test_a_run_that_does_not_say_what_it_began_from_is_refused(folder, tmp_path):
    begin(tmp_path, recipe(folder))
    (tmp_path / "out" / "given.json").write_text("{")
    with pytest.raises(BadInput, match=r"given\.json, which says from which models .* cannot be read; bring it back"):
        begin(tmp_path, recipe(folder))
    (tmp_path / "out" / "given.json").unlink()
    with pytest.raises(BadInput, match="does not say from which models its comparison began"):
        begin(tmp_path, recipe(folder))


def test_a_hugging_face_id_stays_at_the_commit_that_the_run_began_with(sound, tmp_path, monkeypatch):
    hub, name = HubCache(tmp_path / "hub", monkeypatch), "somebody/model"
    first = shutil.copytree(sound, hub.commit(name, ONE), dirs_exist_ok=True)
    begun = begin(tmp_path, recipe(name))
    assert begun.given["model.name_or_path"].content == {"commit": ONE}

    write_weights(
        shutil.copytree(sound, hub.commit(name, OTHER), dirs_exist_ok=True), seed=1
    )  # the author's next version
    resumed = begin(tmp_path, recipe(name))
    assert (resumed.model, resumed.fingerprint) == (begun.model, begun.fingerprint)
    assert folder_of(resumed.model) == first
    for place, same in ((resumed.model, True), (prepare_inputs(recipe(name), Cache(tmp_path / "cache")).model, False)):
        found = load_model(str(place), "causal", "float32", 0).lm.state_dict()
        own = load_model(str(first), "causal", "float32", 0).lm.state_dict()
        assert all(torch.equal(own[key], found[key]) for key in own) is same
    named = prepare_inputs(recipe(f"{name}@{OTHER}"), Cache(tmp_path / "cache"))  # as a recipe may say itself
    assert named.given["model.name_or_path"].content == {"commit": OTHER}


def test_a_hugging_face_id_that_is_nowhere_is_one_line(tmp_path, monkeypatch):
    HubCache(tmp_path / "hub", monkeypatch)
    with pytest.raises(
        BadInput, match=r"^model\.name_or_path: the Hugging Face Hub gives no nobody/nothing \(.*\); correct"
    ):
        prepare_inputs(recipe("nobody/nothing"), Cache(tmp_path / "cache"))


def test_notes_of_ours_in_a_strangers_folder_are_not_read(folder, rewarding, sound, tmp_path):
    """Neither discard they its weights, nor point elsewhere, nor scale its scores."""
    (folder / "fresh.json").write_text('{"seed": 3}')
    RewardScaling(str(rewarding), 9.0, 9.0).write(folder)
    RewardScaling(str(tmp_path / "elsewhere"), 9.0, 9.0).write(rewarding)
    inputs = prepare_inputs(recipe(folder, rewarding), Cache(tmp_path / "cache"))
    for kind in ("causal", "scalar"):
        found, own = (load_model(str(f), kind, "float32", 5).state_dict() for f in (inputs.weights, sound))
        assert found.keys() == own.keys() and all(torch.equal(found[key], own[key]) for key in own)
    note = RewardScaling(str(inputs.reward_models[REWARD_MODEL]), 0.5, 1.0).write(tmp_path)  # as the stage writes it
    scaled = load_model(str(note), "scalar", "float32", 0)
    plain = load_model(str(rewarding), "scalar", "float32", 0)
    assert torch.equal(scaled.lm.score.weight, 0.5 * plain.lm.score.weight)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="has no weights"):
        prepare_inputs(recipe(folder), Cache(tmp_path / "cache"))
