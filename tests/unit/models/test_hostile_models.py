"""Models that bring pickles or code of their own: nothing of it is run."""

import io
import json
import pickle
import sys
from datetime import date

import pytest
import torch

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Prompt
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.models.chat import ChatTemplate
from rlhf_bench.models.loading import load_model
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.models.validation import pretrained_model
from tests.support.broken_models import write_sound_model
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


def test_code_that_stands_beside_a_model_that_is_known_is_not_run_either(tmp_path, monkeypatch):
    """transformers knows Llama, so it has the choice between its own class and the folder's."""
    folder = write_sound_model(tmp_path)
    code = f"from pathlib import Path\nPath({str(tmp_path / 'marker')!r}).write_text('run')\n"
    (folder / "own.py").write_text(code + "class Own: pass\n")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    for file, own in (
        ("config.json", dict.fromkeys(names, "own.Own")),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Own"] * 2}),
    ):
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(found | {"auto_map": own}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    pretrained_model(str(folder), 8, True)
    for kind in ("causal", "scalar"):
        assert type(load_model(str(folder), kind, "float32", 0).lm).__module__.startswith("transformers.models.llama")
    build_tokenizer(TokenizerSettings(kind="pretrained", name_or_path=str(folder)), [])
    assert not (tmp_path / "marker").exists() and sys.stdin.read() == "y\n" * 20


ATTACKS = (
    "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ strftime_now.__func__.__globals__['__builtins__']['open']('MARKER', 'w') }}",
    "{{ strftime_now.__self__.tokenizer.save_pretrained('MARKER') }}",
    "{{ raise_exception.__globals__['__builtins__'].open('MARKER', 'w') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
    "{{ ''|attr('__class__') }}{{ ('%c' % 95)|attr('format')|attr('__globals__') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{% set _ = messages.append({'role': 'user', 'content': 'more'}) %}",
    "{% include 'MARKER' %}",
    "{% import 'os' as os %}",
    "{% for n in range(10 ** 9) %}{{ n }}{% endfor %}",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_chat_template_runs_in_a_sandbox(attack, tmp_path):
    """Whatever it asks of Python is refused, as of a row, in one line; or it is left without what it asked for."""
    template = attack.replace("MARKER", str(tmp_path / "marker")) + "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "model").mkdir()
    tokenizer = build_tokenizer(TokenizerSettings(kind="characters"), ["what?"])
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    settings = TokenizerSettings(kind="pretrained", name_or_path=str(tmp_path / "model"), chat_template="own")
    loaded = build_tokenizer(settings, [])
    asked = Prompt("one", "what?", "")
    try:
        shown = ChatTemplate(loaded, date(2026, 1, 2)).prompt(asked)
    except Unusable as refused:
        assert "\n" not in str(refused) and "chat template does not take the prompt" in str(refused)
    else:
        assert shown.endswith("what?") and not set("<>") & set(shown), shown
    assert not (tmp_path / "marker").exists()
