"""Fresh models: a folder that says how its weights are drawn, and what is known of it without drawing them."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_bench.core.types import Row
from rlhf_bench.models.flops import ModelShape
from rlhf_bench.models.loading import (
    RewardScaling,
    load_model,
    load_reward_model,
    member_folder,
    random_init_shape,
    write_random_model,
)
from rlhf_bench.models.packing import micro_batch
from rlhf_bench.models.settings import ModelSettings
from rlhf_bench.models.tokenizer import build_tokenizer

SETTINGS = ModelSettings(hidden_size=32, layers=3, heads=2, intermediate_size=48, max_length=16)


@pytest.fixture
def fresh(tmp_path):
    tokenizer = build_tokenizer(SETTINGS.tokenizer, ["1+2=3"])
    return write_random_model(SETTINGS, tokenizer, 7, tmp_path), len(tokenizer)


def test_a_fresh_models_weights_are_the_same_every_time_and_hang_on_its_own_seed_only(fresh):
    note, _ = fresh
    one, other = (load_model(str(note), "causal", "float32", seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    note.write_text('{"seed": 8}')
    assert not torch.equal(
        load_model(str(note), "causal", "float32", 1).state_dict()["lm.model.embed_tokens.weight"],
        one["lm.model.embed_tokens.weight"],
    )


def test_a_fresh_models_shape_is_known_without_its_weights(fresh):
    note, vocabulary = fresh
    assert random_init_shape(SETTINGS, vocabulary) == ModelShape.of(load_model(str(note), "causal", "float32", 0).lm)


def test_a_critic_begins_with_the_fresh_policys_backbone(fresh):
    policy, critic = (load_model(str(fresh[0]), kind, "float32", 3).lm for kind in ("causal", "scalar"))
    ours, theirs = policy.base_model.state_dict(), critic.base_model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert critic.score.weight.shape == (1, SETTINGS.hidden_size)


def test_a_critic_that_starts_from_a_given_reward_model_has_its_weights_scale_and_zero(fresh, tmp_path):
    given, made = tmp_path / "given", tmp_path / "made"
    made.mkdir()
    load_model(str(fresh[0]), "scalar", "float32", 3).lm.save_pretrained(given)
    RewardScaling(scale=9.0, offset=9.0).write(given)  # another run's: what counts are the weights
    note = RewardScaling(str(given), scale=0.25, offset=2.0).write(made)
    own = AutoModelForSequenceClassification.from_pretrained(given).state_dict()
    begun, plain = (load_model(str(note), "scalar", "float32", 0), load_model(str(fresh[0]), "scalar", "float32", 3))
    critic = begun.lm.state_dict()
    assert own.keys() == critic.keys()
    for name in own:
        torch.testing.assert_close(critic[name], own[name] * (0.25 if name == "score.weight" else 1.0), rtol=0, atol=0)
    batch = micro_batch([Row("r", (1, 4, 5), ((6, 2), (7, 4, 2)))])
    for found, unscaled in zip(begun(batch), plain(batch), strict=True):  # values, then scores
        torch.testing.assert_close(found, 0.25 * unscaled - 2.0)


def test_a_folder_without_weights_is_refused_where_its_note_is_not_what_is_loaded(fresh):
    with pytest.raises(OSError, match="model.safetensors"):
        load_model(str(fresh[0].parent), "causal", "float32", 0)


def three_members(fresh, folder, offsets=(0.5, -1.0, 0.25), **note):
    """An ensemble of reward models that differ in their heads; and its members by themselves."""
    for index in range(len(offsets)):
        load_model(str(fresh[0]), "scalar", "float32", index).lm.save_pretrained(member_folder(folder, index))
    path = RewardScaling(offsets=offsets, **note).write(folder)
    return path, [load_model(str(member_folder(folder, i)), "scalar", "float32", 0) for i in range(len(offsets))]


BATCH = micro_batch([Row("r", (1, 4, 5), ((6, 2), (7, 4, 2))), Row("s", (1, 4), ((3, 7, 2),))])


@pytest.mark.parametrize(("combine", "by_hand"), [("mean", np.mean), ("min", np.min)])
def test_an_ensemble_combines_its_members_less_their_means(combine, by_hand, fresh, tmp_path):
    path, members = three_members(fresh, tmp_path, combine=combine, scale=2.0, offset=3.0)
    apart = np.stack([m(BATCH)[1].detach().numpy() for m in members]) - np.array([[0.5], [-1.0], [0.25]])
    assert np.ptp(apart, axis=0).min() > 0.01
    _, scores = load_reward_model(str(path), "float32")(BATCH)
    np.testing.assert_allclose(scores.detach().numpy(), 2 * by_hand(apart, axis=0) - 3, atol=1e-5)


@pytest.mark.parametrize("combine", ["mean", "min"])
def test_an_ensemble_of_one_model_many_times_is_that_model(combine, fresh, tmp_path):
    alone = load_model(str(fresh[0]), "scalar", "float32", 5)
    for index in range(3):
        alone.lm.save_pretrained(member_folder(tmp_path, index))
    path = RewardScaling(offsets=(0.0,) * 3, combine=combine).write(tmp_path)
    found = load_reward_model(str(path), "float32")(BATCH)
    for one, other in zip(found, alone(BATCH), strict=True):
        torch.testing.assert_close(one, other)


def test_the_smallest_is_never_above_the_mean(fresh, tmp_path):
    path, _ = three_members(fresh, tmp_path, combine="min")
    least = load_reward_model(str(path), "float32")(BATCH)[1]
    mean = load_reward_model(str(RewardScaling(offsets=(0.5, -1.0, 0.25)).write(tmp_path)), "float32")(BATCH)[1]
    assert (least < mean).all()


def test_a_critic_starts_from_an_ensembles_first_member_on_the_ensembles_scale(fresh, tmp_path):
    path, members = three_members(fresh, tmp_path, scale=2.0, offset=3.0)
    critic = load_model(str(path), "scalar", "float32", 0)
    for found, alone in zip(critic(BATCH), members[0](BATCH), strict=True):
        torch.testing.assert_close(found, 2 * (alone - 0.5) - 3)
