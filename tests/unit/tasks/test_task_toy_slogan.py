"""The toy slogan task: its words, its demonstrations and the five parts of its judgement."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf_bench.core.types import Prompt
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer, encode_prompt
from rlhf_bench.tasks import build_task, toy_slogan
from rlhf_bench.tasks.toy_slogan import DEFECTS, Brief, ToySloganSettings, write

TASK = build_task(ToySloganSettings())
BRIEF = Brief(5, "bread", "crisp")
PROMPT = Prompt("p", BRIEF.text, BRIEF.answer)


@pytest.mark.parametrize(("response", "wrong"), [
    ("choose golden crisp bread daily", []),
    ("choose crisp bread daily", ["words"]),
    ("choose golden crisp bread daily now", ["words"]),
    ("choose golden crisp <unk> bread", ["words"]),
    ("golden choose crisp bread daily", ["call"]),
    ("choose golden crisp honey daily", ["product"]),
    ("choose golden crisply bread daily", ["promise"]),
    ("choose crisp crisp bread daily", ["distinct"]),
    ("", ["words", "call", "product", "promise", "distinct"]),
    ("bread", ["words", "call", "promise"]),
])  # fmt: skip
def test_judge_on_hand_made_slogans(response, wrong):
    judgement = TASK.judge(PROMPT, response)
    assert [part for part, score in judgement.parts.items() if score == 0] == wrong
    assert judgement.score == pytest.approx(1 - len(wrong) / 5)


def test_a_prompt_says_what_it_asks_for():
    assert PROMPT.text == "slogan of 5 words for bread with crisp :" and Brief.of(PROMPT) == BRIEF


@given(
    st.integers(4, 8),
    st.sampled_from(toy_slogan.PRODUCTS),
    st.sampled_from(toy_slogan.PROMISES),
    st.sampled_from([None, *DEFECTS]),
    st.integers(0, 999),
)
def test_a_demonstration_has_the_one_defect_it_was_given(words, product, promise, defect, seed):
    brief = Brief(words, product, promise)
    judgement = TASK.judge(Prompt("p", brief.text, brief.answer), write(brief, random.Random(seed), defect))
    assert [part for part, score in judgement.parts.items() if score < 1] == ([defect] if defect else [])


@given(st.text())
def test_any_text_gets_a_judgement(response):
    assert 0 <= TASK.judge(PROMPT, response).score <= 1


def test_no_word_stands_in_two_tables():
    tables = (
        toy_slogan.PRODUCTS,
        toy_slogan.RESERVED_PRODUCTS,
        toy_slogan.PROMISES,
        toy_slogan.CALLS,
        toy_slogan.FILLERS,
        toy_slogan.ENDS,
    )
    assert set(Counter(word for table in tables for word in table).values()) == {1}


def test_splits_are_apart_and_noise_is_as_set():
    splits = {split: TASK.prompts(split, 200, 3) for split in TASK.splits}
    texts = Counter(p.text for found in splits.values() for p in found)
    assert set(texts.values()) == {1}
    assert {Brief.of(p).words for p in splits["out_of_distribution"]} == {3, 8}
    assert {Brief.of(p).product for p in splits["unseen"]} == set(toy_slogan.RESERVED_PRODUCTS)
    demonstrations = TASK.demonstrations(1000, 0)
    assert [d.prompt for d in demonstrations[:200]] == TASK.prompts("train", 200, 0)
    wrong = sum(TASK.judge(d.prompt, d.response).score < 1 for d in demonstrations)
    assert wrong == pytest.approx(300, abs=60)


def test_the_corpus_has_every_word():
    tokenizer = build_tokenizer(TokenizerSettings(kind="words"), TASK.corpus())
    for split in TASK.splits:
        for prompt in TASK.prompts(split, 100, 0):
            assert 3 not in encode_prompt(tokenizer, prompt.text)  # <unk>


def test_settings_that_contradict_each_other():
    with pytest.raises(ValidationError, match="min_words is above max_words"):
        ToySloganSettings(min_words=7, max_words=5)
