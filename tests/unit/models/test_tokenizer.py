"""Tokenizers: lossless, deterministic, and the same after saving and loading."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf_bench.core.errors import BadInput
from rlhf_bench.models.tokenizer import (
    TokenizerSettings,
    build_tokenizer,
    decode_response,
    encode_prompt,
    encode_response,
)
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.arithmetic import ArithmeticSettings
from rlhf_bench.tasks.verse import VerseSettings

TEXTS = ["the cat sat on the mat", "two  spaces,\n a line and a tab\t.", "ñ — 5 ≠ 6 don't .", " at both ends "]
CHARACTERS = TokenizerSettings(kind="characters")
WORDS = TokenizerSettings(kind="words")
BPE = TokenizerSettings(kind="bpe", vocab_size=300)
TRAINED = [CHARACTERS, WORDS, BPE]


@pytest.mark.parametrize("settings", [CHARACTERS, BPE], ids=lambda s: s.kind)
def test_texts_come_back_unchanged(settings):
    tokenizer = build_tokenizer(settings, TEXTS)
    for text in TEXTS:
        assert decode_response(tokenizer, encode_response(tokenizer, text)) == text
        assert tokenizer.unk_token_id not in encode_prompt(tokenizer, text)


def test_words_come_back_with_single_spaces():
    tokenizer = build_tokenizer(WORDS, TEXTS)
    for text in TEXTS:
        assert decode_response(tokenizer, encode_response(tokenizer, text)) == " ".join(text.split())
    assert encode_prompt(tokenizer, "the dog sat")[2] == tokenizer.unk_token_id


@given(st.text(st.sampled_from("the cat.,'5\n\t")))
def test_any_text_of_known_characters_comes_back(text):
    tokenizer = build_tokenizer(CHARACTERS, ["the cat.,'5\n\t"])
    assert decode_response(tokenizer, encode_response(tokenizer, text)) == text
    assert len(encode_response(tokenizer, text)) == len(text) + 1


@given(st.text())
def test_bpe_brings_any_text_back(text):
    assert decode_response(BYTES, encode_response(BYTES, text)) == text


BYTES = build_tokenizer(BPE, TEXTS)


@pytest.mark.parametrize("settings", TRAINED, ids=lambda s: s.kind)
def test_special_tokens_stand_where_they_should(settings):
    tokenizer = build_tokenizer(settings, TEXTS)
    assert [tokenizer.backend_tokenizer.id_to_token(i) for i in range(4)] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    prompt, response = encode_prompt(tokenizer, "the cat"), encode_response(tokenizer, "sat")
    assert prompt[0] == 1 and not {0, 1, 2} & set(prompt[1:])
    assert response[-1] == 2 and not {0, 1, 2} & set(response[:-1])
    assert encode_response(tokenizer, "") == (2,)


def test_only_the_end_is_stripped_from_a_response():
    tokenizer = build_tokenizer(CHARACTERS, ["0123456789"])
    nine, five = encode_response(tokenizer, "95")[:2]
    assert decode_response(tokenizer, (nine, five, 2, 0, 0)) == "95"
    assert decode_response(tokenizer, (nine, five)) == "95"
    assert decode_response(tokenizer, (nine, 0, five, 2)) == "9<pad>5"
    assert decode_response(tokenizer, (nine, 3, 2)) == "9<unk>"
    assert decode_response(tokenizer, ()) == ""


@pytest.mark.parametrize("settings", TRAINED, ids=lambda s: s.kind)
def test_saving_and_loading_changes_nothing(settings, tmp_path):
    tokenizer = build_tokenizer(settings, TEXTS)
    tokenizer.save_pretrained(tmp_path)
    pretrained = TokenizerSettings(kind="pretrained", name_or_path=str(tmp_path))
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), build_tokenizer(pretrained, [])):
        assert loaded.get_vocab() == tokenizer.backend_tokenizer.get_vocab() and len(loaded) == len(tokenizer)
        assert sorted(loaded.all_special_ids) == [0, 1, 2, 3]
        ends = (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id)
        assert ends == (0, 1, 2, 3)
        for text in TEXTS:
            ids = encode_prompt(tokenizer, text) + encode_response(tokenizer, text)
            assert encode_prompt(loaded, text) + encode_response(loaded, text) == ids
            assert decode_response(loaded, ids) == decode_response(tokenizer, ids)


def test_bpe_training_is_deterministic():
    corpus = build_task(VerseSettings()).corpus()
    settings = TokenizerSettings(kind="bpe", vocab_size=600)
    first, *others = (build_tokenizer(settings, corpus).backend_tokenizer.to_str() for _ in range(4))
    assert all(other == first for other in others)
    assert len(build_tokenizer(settings, corpus)) == 600


def test_task_vocabularies_are_small_and_complete():
    sums = build_task(ArithmeticSettings())
    tokenizer = build_tokenizer(CHARACTERS, sums.corpus())
    assert len(tokenizer) == 4 + 12
    verse = build_task(VerseSettings(noise=1))
    words = build_tokenizer(WORDS, verse.corpus())
    for demonstration in verse.demonstrations(300, 0):
        ids = encode_response(words, demonstration.response)
        assert words.unk_token_id not in ids and decode_response(words, ids) == demonstration.response


@pytest.mark.parametrize(
    "values, message",
    [
        ({"kind": "bpe"}, "kind: bpe needs vocab_size"),
        ({"kind": "bpe", "vocab_size": 100}, "greater than or equal to 260"),
        ({"kind": "pretrained"}, "kind: pretrained needs name_or_path"),
        ({"kind": "words", "vocab_size": 500}, "vocab_size belongs to kind: bpe"),
        ({"kind": "characters", "name_or_path": "x"}, "name_or_path belongs to kind: pretrained"),
        ({"kind": "words", "lower": True}, "lower"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        TokenizerSettings(**values)


def save_bare(folder, **specials):
    backend = Tokenizer(models.WordLevel({"<end>": 0, "<unk>": 1, "a": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, **specials).save_pretrained(folder)
    return TokenizerSettings(kind="pretrained", name_or_path=str(folder))


def test_pretrained_without_padding_or_start_token(tmp_path):
    tokenizer = build_tokenizer(save_bare(tmp_path, eos_token="<end>", unk_token="<unk>"), [])
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0
    assert encode_prompt(tokenizer, "a") == (2,) and encode_response(tokenizer, "a") == (2, 0)


def test_pretrained_that_cannot_be_used(tmp_path):
    with pytest.raises(BadInput, match="has no end-of-sequence token.*set eos_token"):
        build_tokenizer(save_bare(tmp_path, unk_token="<unk>"), [])
    with pytest.raises(BadInput, match="model.tokenizer.name_or_path: there is no folder .*nothing; correct the path"):
        build_tokenizer(TokenizerSettings(kind="pretrained", name_or_path=str(tmp_path / "nothing")), [])
