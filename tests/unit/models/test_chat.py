"""Chat templates in a dozen real shapes: answers begin where prompts end, and end once, alike in training and sampling."""

import json
import pickle
import re
from dataclasses import replace
from datetime import date
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Prompt, Turn
from rlhf_bench.models.chat import ChatTemplate
from rlhf_bench.models.codec import Codec, build_codec, encode_behind
from tests.support.chat_templates import SHAPES, tokenizer_of

DAY = date(2026, 11, 29)
OPENED = "R1: opens <think>, which finished answers lack"
ASKED = Prompt("p", "q one", "")
every_shape = pytest.mark.parametrize("name", SHAPES)


@cache
def codec(name, listed=()):
    tokenizer = tokenizer_of(SHAPES[name])
    return Codec(tokenizer, ChatTemplate(tokenizer, DAY, (tokenizer.eos_token_id, *listed)), listed)


def raw(of, ids):
    """The text of tokens, special ones included."""
    return of.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)


def written(of, name, ids):
    """The same without the spaces that a tokenizer of sentencepiece's older kind puts behind special tokens."""
    text = raw(of, ids)
    for token in SHAPES[name].special if SHAPES[name].sentencepiece == "legacy" else ():
        text = text.replace(f"{token} ", token)
    return text.lstrip()


def conversation(*turns, **more):
    return Prompt("c", " ".join(t[1] for t in turns), "", turns=tuple(Turn(*t) for t in turns), **more)


@every_shape
def test_prompt_and_answer_are_what_the_template_writes(name):
    of, shape = codec(name), SHAPES[name]
    prompt, answer = of.prompt(ASKED), of.answer(ASKED, "a two").ids
    assert written(of, name, prompt) == shape.prompt
    assert written(of, name, prompt + answer) == shape.prompt + shape.answer + (shape.end or "</s>")
    assert of.decode(answer).strip() == shape.answer.strip()


@every_shape
def test_an_answer_ends_with_the_templates_end_of_a_turn_and_sampling_stops_there(name):
    of, shape = codec(name), SHAPES[name]
    end = shape.end or shape.special[1]
    assert of.spelled(of.end) == end
    assert {of.spelled(i) for i in of.end_ids} == {end, shape.special[1]}
    for text in ("a two", f"a two{end}", f"a two{end}\n", f"a two{shape.special[1]} {end}{end}"):
        ids = of.answer(ASKED, text).ids
        assert ids == of.answer(ASKED, "a two").ids
        assert not of.end_ids & set(ids[:-1])


@every_shape
def test_there_is_one_bos(name):
    of, shape = codec(name), SHAPES[name]
    bos = of.tokenizer.bos_token_id
    ids = of.prompt(ASKED)
    assert (ids[0] == bos) == (shape.bos or shape.special[0] == "<|im_start|>")
    assert ids[1] != bos and bos not in of.answer(ASKED, "a two").ids


words = st.lists(st.sampled_from("the fox a two yes no 1 . ?".split()), min_size=1, max_size=6).map(" ".join)


@every_shape
@settings(max_examples=15, deadline=None)
@given(question=words, before=st.lists(st.tuples(words, words), max_size=2), answer=words)
def test_prompt_and_answer_are_the_tokens_of_the_whole(name, question, before, answer):
    """Where the template writes finished answers behind its own generation prompt, and no merge crosses the boundary."""
    of, shape = codec(name), SHAPES[name]
    turns = [t for asked, said in before for t in (Turn("user", asked), Turn("assistant", said))] + [
        Turn("user", question)
    ]
    prompt = conversation(*turns)
    ids = (*of.prompt(prompt), *of.answer(prompt, answer).ids)
    messages = [t.message for t in (*turns, Turn("assistant", answer))]
    whole = of.tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=DAY.strftime)
    if name == OPENED:
        assert raw(of, ids).replace("<think>\n", "") == whole
        return
    if shape.end is None:
        assert written(of, name, ids) == whole.removesuffix("\n\n") + "</s>"
        return
    whole = whole[: whole.rindex(shape.end)] + shape.end
    assert written(of, name, ids) == whole
    expected = tuple(of.tokenizer.backend_tokenizer.encode(whole, add_special_tokens=False).ids)
    if name != "Qwen3: thinks in every last answer":
        assert ids == expected
    assert of.decode(ids[len(of.prompt(prompt)) :]).strip().endswith(answer)


def test_where_a_merge_crosses_the_boundary_the_prompt_keeps_its_tokens():
    of = codec("Qwen3: thinks in every last answer")
    backend = of.tokenizer.backend_tokenizer
    assert backend.encode("\n\n", add_special_tokens=False).tokens == ["ĊĊ"]
    prompt, answer = of.prompt(ASKED), of.answer(ASKED, "a two").ids
    assert raw(of, prompt[-1:]) == "\n" and raw(of, answer[:2]) == "\n</think>"


@pytest.mark.parametrize("name", [n for n, shape in SHAPES.items() if shape.sentencepiece])
def test_no_space_stands_twice(name):
    of = codec(name)
    assert of.tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith("▁")
    assert "  " not in raw(of, of.prompt(ASKED) + of.answer(ASKED, "a two").ids)
    plain = Codec(of.tokenizer)
    for asked, said in (("q one", " a two"), ("q:\n", "a two"), ("q one ", "a two")):
        prompt = replace(ASKED, text=asked)
        ids = plain.prompt(prompt)[1:] + plain.answer(prompt, said).ids[:-1]
        assert raw(plain, ids) == asked + said
    assert encode_behind(of.tokenizer, " a") == encode_behind(of.tokenizer, " a two")[:1]


@every_shape
def test_a_system_message_is_in_the_prompt_or_refused_in_one_line(name):
    of, prompt = codec(name), conversation(("system", "be brief"), ("user", "q one"))
    if not SHAPES[name].system:
        with pytest.raises(
            BadInput, match=r"^prompt c: the tokenizer's chat template does not take the prompt \(.*\); "
        ):
            of.prompt(prompt)
        return
    ids, answer = of.prompt(prompt), of.answer(prompt, "a two").ids
    text = raw(of, ids)
    assert "be brief" in text and text.index("be brief") < text.index("q one")
    assert (
        raw(of, answer[:-1]).strip() == SHAPES[name].answer.strip()
    )  # also where the template renders it elsewhere then


@pytest.mark.parametrize(("given", "then"), [
    ("<think>\nhm</think>a two", "hm</think>a two"), ("<think>hm</think>a two", "hm</think>a two"), ("hm</think>a two", "hm</think>a two"),
    ("a two", "a two"),
])  # fmt: skip
def test_what_the_template_opens_is_not_opened_again(given, then):
    of = codec(OPENED)
    answer = of.answer(ASKED, given)
    assert raw(of, answer.ids) == then + "<|end|>"
    assert answer.opened == ("<think>\n" if given == "a two" else "")


def test_a_template_that_writes_answers_as_they_are_behind_an_opened_one():
    shape = SHAPES["ChatML, Qwen"]
    template = shape.template.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    of = build_codec(tokenizer_of(replace(shape, template=template)), None, True, DAY)
    assert raw(of, of.prompt(ASKED)).endswith("assistant\n<think>\n")
    answer = of.answer(ASKED, "<think>\nhm\n</think>\na two")
    assert (raw(of, answer.ids), answer.opened) == ("hm\n</think>\na two<|im_end|>", "")
    assert of.answer(ASKED, "a two").opened == "<think>\n"
    assert raw(of, of.answer(ASKED, "<table>").ids) == "<table><|im_end|>"  # begins with a letter of what was opened


@every_shape
def test_a_prefill_is_continued(name):
    if name in (OPENED, "Qwen3: thinks in every last answer"):
        pytest.skip("what it opens is no prefill's")
    of, prompt = codec(name), conversation(("user", "q one"), ("assistant", "a two"))
    ids, answer = of.prompt(prompt), of.answer(prompt, " yes").ids
    assert raw(of, ids).endswith(SHAPES[name].answer.rstrip())
    assert raw(of, ids + answer).endswith(f"a two yes{SHAPES[name].answer.partition('a two')[2]}{of.spelled(of.end)}")
    assert not of.end_ids & set(answer[:-1])


def test_the_date_is_the_one_given():
    tokenizer = tokenizer_of(SHAPES["Llama 3.2: writes the date"])
    texts = [
        raw(of, of.prompt(ASKED)) for of in (build_codec(tokenizer, None, True, d) for d in (DAY, date(2027, 1, 2)))
    ]
    assert "29 Nov 2026" in texts[0] and texts[1] == texts[0].replace("29 Nov 2026", "02 Jan 2027")
    assert codec("Llama 3.2: writes the date").chat.writes_date and not codec("Llama 3").chat.writes_date


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('never') }}", {"rag": "{{ messages }}"}])
def test_a_template_that_takes_nothing_is_refused_by_its_key(template):
    tokenizer = tokenizer_of(SHAPES["Llama 3"])
    tokenizer.chat_template = template
    with pytest.raises(BadInput, match=r"^model\.tokenizer\.chat_template: .*; "):
        of = build_codec(tokenizer, None, True, DAY)
        of.ends, of.day  # noqa: B018


def test_an_end_within_an_answer_is_refused():
    with pytest.raises(BadInput, match=r"^prompt p: a response has '<\|im_end\|>' before its end, which ends it; take"):
        codec("ChatML, Qwen").answer(ASKED, "a<|im_end|>\n<|im_start|>user\nmore")
    with pytest.raises(BadInput, match="a response has '</s>' before its end"):
        Codec(codec("Vicuna").tokenizer).answer(ASKED, "a</s>b")


@pytest.mark.parametrize(("prompt", "what"), [
    (conversation(("system", "be brief"), ("user", "q")), "of a message of 'system'"),
    (conversation(("user", "q"), ("assistant", "", '{"tool_calls": [{"type": "function"}]}'), ("tool", "x")), "of a message's 'tool_calls'"),
    (conversation(("user", "q"), tools='[{"type": "function"}]'), "of the tools"),
])  # fmt: skip
def test_what_a_template_would_drop_is_refused(prompt, what):
    shape = SHAPES["Phi-3: EOS at the very end only"]
    template = shape.template.replace("m in messages", "m in messages if m.role in ('user', 'assistant')")
    of = build_codec(tokenizer_of(replace(shape, template=template)), None, True, DAY)
    with pytest.raises(
        BadInput, match=f"^prompt c: the tokenizer's chat template makes nothing {re.escape(what)}; leave"
    ):
        of.prompt(prompt)


def test_tools_and_other_keys_reach_the_template():
    shape = SHAPES["ChatML, Qwen"]
    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + shape.template.replace(
        "m.content +", "m.content + (m.tool_calls | tojson if m.tool_calls else '') +"
    )
    of = build_codec(tokenizer_of(replace(shape, template=template)), None, True, DAY)
    call = json.dumps({"tool_calls": [{"name": "weather"}]})
    prompt = conversation(
        ("user", "q"), ("assistant", "", call), ("tool", "0", '{"name": "weather"}'), tools='[{"a": 1}]'
    )
    text = raw(of, of.prompt(prompt))
    assert text.startswith('[{"a": 1}]') and '[{"name": "weather"}]<|im_end|>' in text


@pytest.mark.parametrize(("file", "ids", "expected"), [
    ("generation_config.json", [1, 0], {0, 1, 2}), ("generation_config.json", 1, {0, 1, 2}), ("config.json", [1], {0, 1, 2}),
    ("generation_config.json", None, {0, 2}),
])  # fmt: skip
def test_the_models_list_belongs_to_the_ends(file, ids, expected, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_text(json.dumps({"eos_token_id": ids}))
    of = build_codec(tokenizer_of(SHAPES["ChatML, Qwen"]), str(tmp_path), True, DAY)
    assert of.end_ids == expected and of.spelled(of.end) == "<|im_end|>" and of.end == 2
    assert {of.decode((*of.answer(ASKED, "a two").ids[:-1], end)) for end in expected} == {"a two"}
    plain = build_codec(of.tokenizer, str(tmp_path), False, DAY)
    assert plain.end == 0 and plain.end_ids == expected - ({2} - {i for i in [ids] if i == 2})


def test_a_saved_folder_says_where_to_stop(tmp_path):
    """transformers' `generate` stops at every end, the template's first; what else the model's file says stays."""
    tokenizer = tokenizer_of(SHAPES["ChatML, Qwen"])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_attention_heads=1, num_hidden_layers=1, intermediate_size=32
    )
    model = LlamaForCausalLM(config)
    model.generation_config.update(do_sample=True, top_k=7, eos_token_id=0)
    model.save_pretrained(tmp_path)
    build_codec(tokenizer, str(tmp_path), True, DAY).save(tmp_path)
    found = GenerationConfig.from_pretrained(tmp_path)
    assert found.eos_token_id == [2, 0] and found.top_k == 7
    again = build_codec(AutoTokenizer.from_pretrained(tmp_path), str(tmp_path), True, DAY)
    assert again.end == 2 and again.end_ids == {0, 2}
    for end in (2, 0):
        model = LlamaForCausalLM.from_pretrained(tmp_path)
        with torch.no_grad():  # the head sees the same everywhere, and this token is likeliest
            model.model.norm.weight.zero_()
            model.lm_head = torch.nn.Linear(32, len(tokenizer))
            model.lm_head.bias[end] = 9.0
        answer = model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, do_sample=False)
        assert answer.tolist() == [[5, 6, end]]


def test_an_ordinary_token_in_the_models_list_ends_nothing(tmp_path):
    """transformers writes the default of a kind of model, often 2, whatever the tokenizer's EOS is."""
    tokenizer = tokenizer_of(SHAPES["Llama 3"])
    (token,) = tokenizer.backend_tokenizer.encode("!", add_special_tokens=False).ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": token}))
    for chat in (True, False):
        of = build_codec(tokenizer, str(tmp_path), chat, DAY)
        assert token not in of.end_ids and of.answer(ASKED, "yes! no").ids[-1] == of.end
        assert f"list {token} as eos_token_id, which is '!', an ordinary token" in next(of.warnings())


@pytest.mark.parametrize("text", ['{"eos_token_id": 70000}', '{"eos_token_id": ["</s>"]}', "{", "[]"])
def test_a_list_of_ends_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(BadInput, match=r"^model\.name_or_path: generation_config\.json of .*; "):
        build_codec(tokenizer_of(SHAPES["Llama 3"]), str(tmp_path), True, DAY)


@every_shape
def test_a_codec_travels_to_other_processes(name):
    of = pickle.loads(pickle.dumps(codec(name)))
    assert of.answer(ASKED, "a two") == codec(name).answer(ASKED, "a two")
    ids = of.prompt(ASKED)
    assert "".join(of.pieces(ids)).replace("▁", "") == raw(of, ids).lstrip()
