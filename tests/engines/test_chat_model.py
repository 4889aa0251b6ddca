"""The pretrained chat model at hand is what it should be: it answers in English, and ends where its turn is over."""

from datetime import date

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_bench.core.types import Prompt, Turn
from rlhf_bench.models.codec import build_codec


def test_its_greedy_answer_is_english(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        found = model.generate(**ids, max_new_tokens=40, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert found[-1] == tokenizer.eos_token_id
    answer = tokenizer.decode(found, skip_special_tokens=True)
    assert "Paris" in answer and {"the", "capital", "of", "is"} <= set(answer.lower().split()), answer


def test_its_prompts_and_answers_are_the_tokens_of_its_template(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    codec = build_codec(tokenizer, smollm2, True, date(2026, 11, 29))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert codec.end == end and codec.end_ids >= {end} and not list(codec.warnings())
    turns = (
        Turn("system", "Be brief."),
        Turn("user", "What's up?"),
        Turn("assistant", "Not  much."),
        Turn("user", "No?\n"),
    )
    for prompt in (Prompt("text", "What is it?", ""), Prompt("conversation", "", "", turns=turns)):
        messages = [t.message for t in prompt.turns] or [{"role": "user", "content": prompt.text}]
        for answer in ("Yes.", " It's 12,345 … ☃\n\nSo.", "1", "\n- a\n- b"):
            whole = tokenizer.apply_chat_template(
                [*messages, {"role": "assistant", "content": answer}], return_dict=False
            )
            asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            ids = codec.answer(prompt, answer).ids
            assert list(codec.prompt(prompt)) == asked
            assert codec.decode(ids) == answer
            if not answer.startswith("\n"):  # which makes one token with the line end before it
                assert [*asked, *ids] == whole[: len(whole) - whole[::-1].index(end)]
            assert codec.answer(prompt, f"{answer}<|im_end|>\n").ids == ids
