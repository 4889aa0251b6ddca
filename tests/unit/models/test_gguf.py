"""GGUF files become the models that they were made of."""

import json
import re
import shutil

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_bench.core.errors import BadInput
from rlhf_bench.models.gguf import convert
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import prepare_inputs
from tests.support.checking import check, refusal, write_files
from tests.support.gguf_files import TEMPLATE, TOKENS, stored, tiny_llama, tiny_tokenizer, write_gguf

KINDS = [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.Q8_0,
         gguf.GGMLQuantizationType.Q4_1]  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


@pytest.fixture(scope="module")
def file(llama, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama)


def of_file(file, *overrides):
    place = json.dumps(str(file))
    tokenizer = f"{{kind: pretrained, name_or_path: {place}, chat_template: own}}"
    return [f"model={{name_or_path: {place}, max_length: 64, tokenizer: {tokenizer}}}", *overrides]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_weights_come_out_as_they_were_stored(kind, llama, tmp_path):
    convert("model.name_or_path", write_gguf(tmp_path / "tiny.gguf", llama, kind), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == stored(llama).keys()
    for name, weight in stored(llama, kind).items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], weight), name


def test_the_folder_computes_what_the_model_computed(llama, file, tmp_path):
    convert("model.name_or_path", file, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, llama(ids).logits)
    assert not hasattr(again.config, "quantization_config") and again.config.rope_parameters["rope_theta"] == 1e5


def test_tokenizer_and_chat_template_come_too(file, tmp_path):
    convert("model.name_or_path", file, tmp_path)
    again, before = AutoTokenizer.from_pretrained(tmp_path), tiny_tokenizer()
    for text in ("hello world", "  é 12\n<|im_end|>hello", "<|im_start|>user\nhello<|im_end|>\n"):
        assert again.encode(text, add_special_tokens=False) == before.encode(text, add_special_tokens=False).ids
        assert again.decode(again.encode(text)) == text
    assert again.chat_template == TEMPLATE and (again.bos_token_id, again.eos_token_id) == (1, 2)
    assert len(again) == len(TOKENS)


def test_check_takes_the_file_and_converts_it_once(file, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    recipe = write_files(tmp_path)
    code, said = check(recipe, *of_file(file))
    assert code == 0 and said == f"model.name_or_path: converting {file}, once\n"
    assert check(recipe, *of_file(file)) == (0, "")
    assert check(recipe, *of_file(shutil.copy(file, tmp_path / "copy.GGUF"))) == (0, "")  # by content, not by name
    assert len(list((tmp_path / "cache").glob("converted-*"))) == 1


def test_other_content_under_the_same_name_is_another_model(llama, tmp_path):
    place = str(tmp_path / "model.gguf")
    model = {"name_or_path": place, "max_length": 64, "tokenizer": {"kind": "pretrained", "name_or_path": place}}

    def prepared():
        sizes = {"data": {"train_prompts": 2, "max_response_tokens": 6, "off_policy_pairs": 1, "held_out_pairs": 1},
                 "sft": {"demonstrations": 2}, "evaluation": {"prompts": 2, "splits": ["in_distribution"]}}  # fmt: skip
        recipe = {"name": "tiny", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e12}, "model": model}
        return prepare_inputs(parse_recipe(recipe | {"arms": {"dpo": {"method": "dpo"}}} | sizes), Cache(tmp_path))

    write_gguf(place, llama)
    first = prepared()
    assert prepared().fingerprint == first.fingerprint
    write_gguf(place, llama, gguf.GGMLQuantizationType.Q8_0)
    second = prepared()
    assert second.fingerprint["model"] != first.fingerprint["model"] and second.model != first.model
    assert second.shape == first.shape


def test_a_part_of_a_model_is_refused_and_not_filled_with_random_numbers(llama, tmp_path):
    lost = "model.layers.1.mlp.up_proj.weight"
    file = write_gguf(tmp_path / "part.gguf", llama, without=[lost])
    with pytest.raises(
        BadInput, match=rf"lacks 1 of the model's tensors, first {re.escape(lost)}; give the whole model"
    ):
        convert("model.name_or_path", file, tmp_path)


BAD = {
    "missing": (lambda file: file.unlink(), r"model\.name_or_path: .*bad\.gguf cannot be read \(No such file.*\); correct the path"),
    "no GGUF": (lambda file: file.write_bytes(b"<html>" * 99), r"model\.name_or_path: .*bad\.gguf cannot be converted \(.+\); give another .*"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:-5000]), r"model\.name_or_path: .* cannot be converted \(.+\); give another .*"),
    "empty": (lambda file: file.write_bytes(b""), r"model\.name_or_path: .* cannot be converted \(.+\); give another .*"),
    "another kind": (lambda file: file.write_bytes(file.read_bytes().replace(b"llama", b"mamma")),
                     r"model\.name_or_path: .* cannot be converted \(.*mamma.*\); give another .*"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "line"), BAD.values(), ids=BAD)
def test_files_that_cannot_be_used_get_one_line(change, line, file, tmp_path):
    recipe, bad = write_files(tmp_path), tmp_path / "bad.gguf"
    shutil.copy(file, bad)
    change(bad)
    code, said = check(recipe, *of_file(bad))
    *_, last = said.splitlines()
    assert code == 2 and re.fullmatch("error: " + line, last), said
    assert len(said.splitlines()) <= 2  # one says that it is converted


def test_the_folder_of_a_gguf_file_leads_to_the_file(file, tmp_path):
    assert f"give the GGUF file in it, {file}" in refusal(write_files(tmp_path), *of_file(file.parent))
