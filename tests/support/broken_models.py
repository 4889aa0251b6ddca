"""What can be wrong with a folder that holds a model: each function here takes the folder and does it. And the sound one."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

from rlhf_bench.models.loading import load_model, write_random_model
from rlhf_bench.models.settings import ModelSettings
from rlhf_bench.models.tokenizer import build_tokenizer
from rlhf_bench.tasks.arithmetic import ArithmeticSettings, build

SUMS = build(ArithmeticSettings()).corpus()


SIZES = {"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 16, "max_length": 32}


def write_sound_model(folder, **other):
    """A folder as save_pretrained writes it: a small Llama and its tokenizer. `other`: sizes."""
    sizes = ModelSettings(**SIZES | other)
    note = write_random_model(sizes, build_tokenizer(sizes.tokenizer, SUMS), 0, folder)
    load_model(str(note), "causal", "float32", 0).lm.save_pretrained(folder)
    note.unlink()
    return folder


def changed_json(name, **values):
    """A change of a JSON file in the folder; None takes a key away."""

    def change(folder):
        data = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({k: v for k, v in data.items() if v is not None}))

    return change


def changed_weights(change):
    """A change of the tensors by name."""

    def rewrite(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors) or tensors, folder / "model.safetensors", {"format": "pt"})

    return rewrite


def without(name):
    return lambda folder: (folder / name).unlink()


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut_short(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def broken_header(folder):
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[10:20] = b"\xff" * 10
    (folder / "model.safetensors").write_bytes(weights)


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def a_lost_shard(folder):
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def a_strange_index(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["model.safetensors"]}')
    (folder / "model.safetensors").unlink()


def a_larger_tokenizer(folder):
    build_tokenizer(ModelSettings().tokenizer, [*SUMS, "abcdefgh"]).save_pretrained(folder)


def no_files(folder):
    shutil.rmtree(folder)


def a_file(folder):
    shutil.rmtree(folder)
    folder.touch()
