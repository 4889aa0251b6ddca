"""Reward models that cannot be used, and some that can.

`check`, which refuses what `run` would refuse and starts nothing, ends with exit code 2 and one line that names the key, row or file,
and the remedy."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhf_bench.models.settings import ModelSettings
from rlhf_bench.models.tokenizer import build_tokenizer
from tests.support.broken_models import (
    SUMS,
    a_file,
    a_larger_tokenizer,
    changed_json,
    changed_weights,
    cut_short,
    no_files,
    pickled,
    without,
    write_sound_model,
    written,
)
from tests.support.checking import ENOUGH, check, refusal


@pytest.fixture(scope="module")
def sound_reward_model(tmp_path_factory):
    """A folder as save_pretrained writes it: a classifier with one label, and the tokenizer that the recipe trains."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    folder.mkdir()
    write_sound_model(folder)
    save_classifier(folder, 1)
    return folder


def save_classifier(folder, labels):
    config = AutoConfig.from_pretrained(folder, num_labels=labels)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def two_labels(folder):
    save_classifier(folder, 2)


def another_alphabet(folder):
    build_tokenizer(ModelSettings().tokenizer, [text.replace("+", "?") for text in SUMS]).save_pretrained(folder)


REWARDS, NO_REWARD = (
    r"reward_model\.name_or_path: ",
    r"reward_model\.name_or_path: .* cannot be used as a reward model: ",
)
REWARD_MODELS = {
    "no folder": (no_files, REWARDS + r"there is no folder .*; correct the path, or give a .*id"),
    "a file": (a_file, REWARDS + r".* is a file; give the folder it is in"),
    "no config": (without("config.json"), NO_REWARD + r"it has no config\.json; give a folder that save_pretrained wrote"),
    "a config that is no JSON": (written("config.json", b"{"), NO_REWARD + r".*not a valid JSON file.*; give .*"),
    "two labels": (two_labels, NO_REWARD + r"it has 2 labels, .*; save one with .*num_labels=1"),
    "a language model": (changed_json("config.json", architectures=["LlamaForCausalLM"]),
                         NO_REWARD + r"it is a LlamaForCausalLM; save one with AutoModelForSequenceClassification and num_labels=1"),
    "a language model's weights": (changed_weights(lambda t: t.pop("score.weight") is None),
                                   REWARDS + r"the weights of .* lack 1 of .* tensors, first score\.weight; give .*"),
    "an encoder": (changed_json("config.json", model_type="bert", architectures=["BertForSequenceClassification"]),
                   NO_REWARD + r"bert also attends to later tokens .*; give one that is a decoder only"),
    "quantized weights": (changed_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
                          NO_REWARD + r".*quantized.*; give it as it was before"),
    "no weights": (without("model.safetensors"), REWARDS + r".* has no weights; put model\.safetensors there, or .*"),
    "pickled weights": (pickled, REWARDS + r".* has only pickled weights \(pytorch_model\.bin\), .*; convert them .*"),
    "weights cut short": (cut_short, REWARDS + r".*model\.safetensors is damaged or cut short .*; copy or .*"),
    "another width": (changed_json("config.json", hidden_size=32),
                      REWARDS + r".*model\.safetensors: \S+ has shape \[.*\], and config\.json makes it \[.*\]; give .*"),
    "a head of two answers": (changed_weights(lambda t: t.update({"score.weight": torch.zeros(2, 16)})),
                              REWARDS + r".*score\.weight has shape \[2, 16\], and config\.json makes it \[1, 16\]; give .*"),
    "fewer positions": (changed_json("config.json", max_position_embeddings=16),
                        REWARDS + r".* has 16 positions, fewer than model\.max_length 32; lower that, or give another one"),
    "fewer tokens": (lambda folder: (changed_json("config.json", vocab_size=10)(folder), changed_weights(lambda t: t.update(
                         {"model.embed_tokens.weight": t["model.embed_tokens.weight"][:10].clone()}))(folder)),
                     REWARDS + r".* has a vocabulary of 10, and the policy's token ids go up to 15; .*give one with the policy's tokenizer"),
    "other tokens": (another_alphabet, REWARDS + r"the tokenizer of .* has \S+(?: id)? for '.', and the policy's has \d+; .*the policy's tokenizer"),
    "a broken tokenizer": (written("tokenizer.json", b"{"), REWARDS + r"the tokenizer of .* cannot be read \(.*\); copy or download it again"),
}  # fmt: skip


def of_reward_model(folder, *overrides):
    return [f"reward_model.name_or_path={json.dumps(str(folder))}", "model.max_length=32", *overrides]


@pytest.mark.parametrize(("change", "line"), REWARD_MODELS.values(), ids=REWARD_MODELS)
def test_reward_models_that_cannot_be_used(change, line, sound_reward_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    folder = shutil.copytree(sound_reward_model, tmp_path / "model")
    change(folder)
    said = refusal(tmp_path / "recipe.yaml", *of_reward_model(folder))
    assert re.fullmatch(line, said), said


@pytest.mark.parametrize("override", ["steps=3", "pairs=off_policy", "learning_rate=1.0e-5", "pairs_per_prompt=2"])
def test_a_reward_model_is_trained_or_given(override, sound_reward_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    said = refusal(tmp_path / "recipe.yaml", *of_reward_model(sound_reward_model, f"reward_model.{override}"))
    key = override.split("=")[0]
    assert re.fullmatch(
        rf"reward_model: {key} is for training a reward model, and name_or_path .*; remove one of the two; .*", said
    ), said


@pytest.mark.parametrize(
    "change", [lambda folder: None, a_larger_tokenizer, without("tokenizer.json")],
    ids=["as it is", "further tokens", "no tokenizer"],
)  # fmt: skip
def test_reward_models_that_can_be_used(change, sound_reward_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    folder = shutil.copytree(sound_reward_model, tmp_path / "model")
    change(folder)
    code, said = check(tmp_path / "recipe.yaml", *of_reward_model(folder, "reward_model.start_policy_prompts=4"))
    assert code == 0, said


def test_a_gold_reward_model_is_refused_by_its_own_name_and_together_with_the_other_one(sound_reward_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    folders = {
        key: shutil.copytree(sound_reward_model, tmp_path / key) for key in ("reward_model", "gold_reward_model")
    }
    two_labels(folders["reward_model"])
    another_alphabet(folders["gold_reward_model"])
    named = [f"{key}.name_or_path={json.dumps(str(folder))}" for key, folder in folders.items()]
    code, said = check(tmp_path / "recipe.yaml", "model.max_length=32", *named)
    first, second = said.strip().splitlines()[-2:]
    assert code == 2 and re.fullmatch(r"(problem: |  )?.*reward_model\.name_or_path: .* it has 2 labels, .*", first), (
        said
    )
    assert re.fullmatch(
        r".*gold_reward_model\.name_or_path: the tokenizer of .* has .*; .*the policy's tokenizer", second
    )


def test_a_gold_reward_model_that_is_sound_is_accepted_and_told(sound_reward_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    gold = f"gold_reward_model.name_or_path={json.dumps(str(sound_reward_model))}"
    own = ["reward_model.start_policy_prompts=4", "gold_reward_model.start_policy_prompts=4"]
    code, said = check(tmp_path / "recipe.yaml", gold, *own, "model.max_length=32")
    assert code == 0, said


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("reward_model.ensemble={size: 1}", r"reward_model\.ensemble\.size: .*greater than or equal to 2.*"),
        ("reward_model.ensemble={size: 3, combine: median}", r"reward_model\.ensemble\.combine: .*'mean' or 'min'.*"),
        ("gold_reward_model={pairs: some}", r"gold_reward_model\.pairs: .*"),
        ("gold_reward_model={name: x}", r"gold_reward_model\.name: unknown key.*"),
    ],
)
def test_settings_of_reward_models_that_cannot_be(override, line, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    said = refusal(tmp_path / "recipe.yaml", override)
    assert re.fullmatch(line, said), said


def test_an_ensemble_is_of_trained_reward_models(sound_reward_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    said = refusal(tmp_path / "recipe.yaml", *of_reward_model(sound_reward_model, "reward_model.ensemble={size: 2}"))
    assert re.fullmatch(
        r"reward_model: ensemble is for training a reward model, .*; remove one of the two; .*", said
    ), said
