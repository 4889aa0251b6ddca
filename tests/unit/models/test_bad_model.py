"""Models that cannot be used, and some that can.

`check`, which refuses what `run` would refuse and starts nothing, ends with exit code 2 and one line that names the key, row or file,
and the remedy."""

import json
import re
import shutil

import pytest
import torch

from rlhf_bench.models.loading import load_model
from tests.support.broken_models import (
    a_file,
    a_larger_tokenizer,
    a_lost_shard,
    a_strange_index,
    broken_header,
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
def sound_model(tmp_path_factory):
    return write_sound_model(tmp_path_factory.mktemp("model"))


def of_folder(folder, *overrides):
    place = json.dumps(str(folder))
    return [f"model={{name_or_path: {place}, max_length: 32, tokenizer: {{kind: pretrained, name_or_path: {place}}}}}",
            *overrides]  # fmt: skip


BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
BART = {"model_type": "bart", "architectures": ["BartForCausalLM"]}
CODEGEN = {"model_type": "codegen", "n_embd": 16, "n_head": 4, "rotary_dim": 4, "n_layer": 2}
USED = r"model\.name_or_path: .* cannot be used as a causal language model: "
# What is done to the folder, and the line.
MODELS = {
    "no folder": (no_files, r"model\.name_or_path: there is no folder .*; correct the path, or give a .*id"),
    "a file": (a_file, r"model\.name_or_path: .* is a file; give the folder it is in"),
    "no config": (without("config.json"), USED + r"it has no config\.json; give a folder that save_pretrained wrote"),
    "a config that is no JSON": (written("config.json", b"{"), USED + r".*not a valid JSON file.*; give .*"),
    "a config that is a list": (written("config.json", b"[1]"), USED + r".*; give one that transformers can load"),
    "an unknown architecture": (changed_json("config.json", model_type="nonesuch"), USED + r".*nonesuch.*; give one .*"),
    "an encoder": (changed_json("config.json", **BERT), USED + r"bert also attends to later tokens .*; give one that is a decoder only"),
    "an encoder and a decoder": (changed_json("config.json", **T5), USED + r"t5 has an encoder .*; give one that is a decoder only"),
    "half of an encoder and a decoder": (changed_json("config.json", **BART), USED + r"bart has an encoder .*; give one .*"),
    "attention of its own": (changed_json("config.json", **CODEGEN), USED + r"codegen has an attention implementation of its own.*; give one .*"),
    "quantized weights": (changed_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
                          USED + r".*quantized.*; give it as it was before"),
    "a width that is text": (changed_json("config.json", hidden_size="wide"), USED + r".*hidden_size.*; give one .*"),
    "a negative width": (changed_json("config.json", hidden_size=-16), USED + r".*negative.*; give one .*"),
    "no heads": (changed_json("config.json", num_attention_heads=0), USED + r".*zero.*; give one .*"),
    "a billion layers": (changed_json("config.json", num_hidden_layers=10**9),
                         r"model\.name_or_path: .*config\.json has 1000000000 layers, and its weights are \d+ tensors; give both .*"),
    "no weights": (without("model.safetensors"), r"model\.name_or_path: .* has no weights; put model\.safetensors there, or .*"),
    "pickled weights": (pickled, r"model\.name_or_path: .* has only pickled weights \(pytorch_model\.bin\), .*; convert them .*"),
    "weights cut short": (cut_short, r"model\.name_or_path: .*model\.safetensors is damaged or cut short .*; copy or .*"),
    "a broken header": (broken_header, r"model\.name_or_path: .*model\.safetensors is damaged or cut short .*; copy or .*"),
    "weights of no bytes": (written("model.safetensors", b""), r"model\.name_or_path: .*model\.safetensors is damaged .*; copy .*"),
    "a page in place of weights": (written("model.safetensors", b"<!DOCTYPE html><html></html>"),
                                   r"model\.name_or_path: .*model\.safetensors is damaged .*; copy or download it again"),
    "a lost shard": (a_lost_shard, r"model\.name_or_path: .*index\.json names .*model-00001-of-00001\.safetensors, .*; copy or .*"),
    "a strange index": (a_strange_index, r"model\.name_or_path: .*index\.json maps no weights to files; copy or .*"),
    "another width": (changed_json("config.json", hidden_size=32),
                      r"model\.name_or_path: .*model\.safetensors: \S+ has shape \[.*\], and config\.json makes it \[.*\]; give .*"),
    "another vocabulary": (changed_json("config.json", vocab_size=50),
                           r"model\.name_or_path: .*: model\.embed_tokens\.weight has shape \[16, 16\], .* \[50, 16\]; give .*"),
    "a layer too few": (changed_json("config.json", num_hidden_layers=3),
                        r"model\.name_or_path: the weights of .* lack 9 of the model's \d+ tensors, first model\.layers\.2\.\S+; give .*"),
    "a layer too many": (changed_json("config.json", num_hidden_layers=1),
                         r"model\.name_or_path: the weights of .* have model\.layers\.1\.\S+, beyond the layers .*; give .*"),
    "names of another model": (changed_weights(lambda t: {f"other.{k}": v for k, v in t.items()}),
                               r"model\.name_or_path: the weights of .* lack \d+ of the model's \d+ tensors, .*; give .*"),
    "no norm": (changed_weights(lambda t: t.pop("model.norm.weight") is None),
                r"model\.name_or_path: the weights of .* lack 1 of .* tensors, first model\.norm\.weight; give .*"),
    "whole numbers": (changed_weights(lambda t: {k: v.to(torch.int8) for k, v in t.items()}),
                      r"model\.name_or_path: .*model\.safetensors: \S+ holds I8, no fractions; give .*"),
    "fewer positions": (changed_json("config.json", max_position_embeddings=16),
                        r"model\.max_length: 32 is more than the 16 positions of .*; lower it"),
    "settings of generation that contradict each other": (
        written("generation_config.json", b'{"top_k": 7}'),
        r"model\.name_or_path: .*: its generation_config\.json contradicts itself: `top_k`: `do_sample` .*; correct that file"),
    "no tokenizer": (without("tokenizer.json"), r"model\.tokenizer\.name_or_path: .* \(it has no tokenizer\.json\); give .*"),
    "a broken tokenizer": (written("tokenizer.json", b"{"), r"model\.tokenizer\.name_or_path: cannot load .*; give .*"),
    "an empty tokenizer": (written("tokenizer.json", b"{}"), r"model\.tokenizer\.name_or_path: cannot load .*; give .*"),
    "no chat template": (lambda folder: None, r"model\.tokenizer\.chat_template: .* has none of its own; put .*chat_template\.jinja .*"),
    "no end of sequence": (changed_json("tokenizer_config.json", eos_token=None),
                           r"model\.tokenizer\.name_or_path: .* has no end-of-sequence token, .*; set eos_token in .* or choose another"),
    "more tokens than the model knows": (a_larger_tokenizer,
                                         r"model\.tokenizer\.name_or_path: its token ids go up to 23, and the model .* of 16; give .*"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "line"), MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_used(change, line, sound_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    folder = shutil.copytree(sound_model, tmp_path / "model")
    change(folder)
    chat = ["model.tokenizer.chat_template=own"] if "chat_template" in line else []
    said = refusal(tmp_path / "recipe.yaml", *of_folder(folder, *chat))
    assert re.fullmatch(line, said), said


@pytest.mark.parametrize(("override", "line"), [
    ("model.tokenizer={kind: characters}", r"model\.tokenizer\.kind: characters does not fit .*; use \{kind: pretrained, .*"),
    ("model.name_or_path=./none", r"model\.name_or_path: there is no folder \./none; correct the path, or give .*"),
    ("model.tokenizer.name_or_path=./none", r"model\.tokenizer\.name_or_path: there is no folder \./none; correct .*"),
    ("model.max_length=64", r"model\.max_length: 64 is more than the 32 positions of .*; lower it"),
    ("sft=null", r"arms\.b\.data: offline needs off-policy pairs; .*; give pairs, or set sft, or use another data mode .*"),
])  # fmt: skip
def test_what_does_not_go_with_a_model(override, line, sound_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    said = refusal(tmp_path / "recipe.yaml", *of_folder(sound_model, override))
    assert re.fullmatch(line, said), said


def in_shards(folder):
    load_model(str(folder), "causal", "float32", 0).lm.save_pretrained(folder, max_shard_size=4000)
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 1


def without_padding(folder):
    changed_json("tokenizer_config.json", pad_token=None)(folder)


def of_the_backbone_alone(folder):
    """As a base model is saved: the names without the prefix, the head tied to the embedding."""
    changed_weights(lambda t: {k.removeprefix("model."): v for k, v in t.items()})(folder)


@pytest.mark.parametrize(
    "change", [lambda folder: None, in_shards, without_padding, of_the_backbone_alone, changed_json("config.json", dtype="bfloat16")],
    ids=["as it is", "in shards", "a tokenizer without padding", "the backbone alone", "another number format"],
)  # fmt: skip
def test_models_that_can_be_used(change, sound_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    folder = shutil.copytree(sound_model, tmp_path / "model")
    change(folder)
    code, said = check(tmp_path / "recipe.yaml", *of_folder(folder))
    assert code == 0, said
