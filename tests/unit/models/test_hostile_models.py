"""Models that bring pickles or code of their own: nothing of it is run."""

import io
import json
import pickle
import sys

import pytest
import torch

from rlhf_bench.core.errors import BadInput
from rlhf_bench.models.loading import load_model
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.models.validation import pretrained_model
from tests.support.hostile import Bomb, llama


@pytest.mark.parametrize(("file", "config"), [
    ("pytorch_model.bin", {}), ("adapter_model.bin", {"transformers_weights": "adapter_model.bin"}),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["causal", "scalar"])
def test_pickled_weights_are_not_loaded(kind, file, config, tmp_path):
    """Not those either that torch would unpickle with care, and that would otherwise be a model."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = llama(tmp_path / "model", **config)
    torch.save(AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(folder)).state_dict(), folder / file)
    with pytest.raises(OSError, match="model.safetensors"):
        load_model(str(folder), kind, "float32", 0)
    (folder / file).write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    with pytest.raises(OSError, match="model.safetensors"):
        load_model(str(folder), kind, "float32", 0)
    assert not (tmp_path / "marker").exists()


def test_an_adapter_beside_a_model_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = llama(tmp_path / "model")
    AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(folder)).save_pretrained(folder)
    assert pretrained_model(str(folder), 8, False)[1].layers == 1
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}')
    with pytest.raises(BadInput, match="adapter_config.json"):
        pretrained_model(str(folder), 8, False)


@pytest.mark.parametrize("answer", ["y\n" * 20, ""], ids=["yes", "nobody"])
def test_a_models_own_code_is_not_run_nor_asked_about(answer, tmp_path, monkeypatch):
    code = f"from pathlib import Path\nPath({str(tmp_path / 'marker')!r}).write_text('run')\n"
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    folder = llama(tmp_path / "model", model_type="own", auto_map=own)
    (folder / "own.py").write_text(code + "class Own: pass\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": own}))
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))  # transformers would ask, and take a yes
    with pytest.raises(BadInput, match="model.name_or_path"):
        pretrained_model(str(folder), 8, False)
    with pytest.raises(ValueError):
        load_model(str(folder), "causal", "float32", 0)
    with pytest.raises(BadInput, match="tokenizer.name_or_path"):
        build_tokenizer(TokenizerSettings(kind="pretrained", name_or_path=str(folder)), [])
    assert not (tmp_path / "marker").exists() and sys.stdin.read() == answer
