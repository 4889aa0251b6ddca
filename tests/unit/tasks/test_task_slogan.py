"""The slogan task in English: its demonstrations, its pairs and the five parts of its judgement."""

import random
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf_bench.core.types import Prompt, Turn
from rlhf_bench.tasks import build_task, slogan
from rlhf_bench.tasks.judges.english import words_of
from rlhf_bench.tasks.slogan import DEFECTS, Brief, SloganSettings, write

TASK = build_task(SloganSettings())
BRIEF = Brief(6, "pencils", "light")
PROMPT = Prompt("p", BRIEF.text, BRIEF.answer)


@pytest.mark.parametrize(("response", "parts"), [
    ("Choose light pencils for bright ideas.", {}),
    ('"Light as air: one pencil, endless."', {}),
    ("**Choose light pencils for bright ideas!**\n", {}),
    ("Choose light pencils for ideas", {"words": 5 / 6, "exact": 0}),
    ("Here is a slogan: choose light pencils for bright ideas", {"words": 2 / 6, "exact": 0}),
    ("Choose light pens for bright ideas", {"product": 0}),
    ("Choose lightweight pencils for bright ideas", {"promise": 0}),
    ("Choose long-lasting pencils for bright ideas", {"promise": 0}),
    ("Light pencils for light bright ideas", {"distinct": 0}),
    ("light " * 20, {"words": 0, "exact": 0, "product": 0, "distinct": 0}),
    ("", {"words": 0, "exact": 0, "product": 0, "promise": 0, "distinct": 0}),
])  # fmt: skip
def test_judge_on_hand_made_slogans(response, parts):
    expected = {"words": 1, "exact": 1, "product": 1, "promise": 1, "distinct": 1} | parts
    judgement = TASK.judge(PROMPT, response)
    assert judgement.parts == pytest.approx(expected)
    assert judgement.score == pytest.approx(sum(expected.values()) / 5)


def test_a_prompt_says_what_it_asks_for():
    said = "Write a slogan of exactly 6 words for pencils. Use the word light. Reply with the slogan only."
    assert PROMPT.text == said and Brief.of(PROMPT) == BRIEF
    assert "Use the words light and pure." in Brief(6, "tea", "light,pure").text
    assert all(p.turns == (Turn("user", p.text),) for split in TASK.splits for p in TASK.prompts(split, 20, 0))


def test_each_of_two_promises_counts_half():
    brief = Brief(5, "tea", "light,pure")
    assert TASK.judge(Prompt("p", brief.text, brief.answer), "Enjoy light tea every day").parts["promise"] == 0.5


@given(
    st.integers(4, 8),
    st.sampled_from(slogan.PRODUCTS),
    st.sampled_from(slogan.PROMISES),
    st.sampled_from([None, *DEFECTS]),
    st.integers(0, 999),
)
def test_a_demonstration_has_the_one_defect_it_was_given(words, product, promise, defect, seed):
    brief = Brief(words, product, promise)
    judgement = TASK.judge(Prompt("p", brief.text, brief.answer), write(brief, random.Random(seed), defect))
    short = {part for part, score in judgement.parts.items() if score < 1}
    assert short == ({"words", "exact"} if defect == "words" else {defect} - {None})


def test_no_head_and_tail_share_a_word_with_each_other_or_a_product_or_a_promise():
    tails = [tail for line in slogan._TAILS for tail in line.split("|")]
    assert all(len(words_of(tail)) == n for n, line in enumerate(slogan._TAILS, 1) for tail in line.split("|"))
    named = {*slogan.PRODUCTS, *slogan.RESERVED_PRODUCTS, *slogan.PROMISES}
    for head, tail in product(slogan._HEADS, tails):
        words = words_of(f"{head} {tail}")
        assert len(set(words)) == len(words) and named.isdisjoint(words)


def test_no_product_is_named_by_another_ones_name():
    every = slogan.PRODUCTS + slogan.RESERVED_PRODUCTS
    assert not [
        pair for pair in combinations(every, 2) if slogan.names(pair[0], [pair[1]]) or slogan.names(*pair[::-1])
    ]


@given(st.text())
def test_any_text_gets_a_judgement(response):
    assert 0 <= TASK.judge(PROMPT, response).score <= 1


def test_splits_are_apart():
    splits = {split: {p.text for seed in (1, 2) for p in TASK.prompts(split, 300, seed)} for split in TASK.splits}
    assert not any(splits[a] & splits[b] for a, b in combinations(TASK.splits, 2))
    briefs = {split: [Brief.of(p) for p in TASK.prompts(split, 300, 3)] for split in TASK.splits}
    assert all(brief.words > 8 or "," in brief.promises for brief in briefs["out_of_distribution"])
    assert {brief.product for brief in briefs["unseen"]} == set(slogan.RESERVED_PRODUCTS)
    assert all(brief.product in slogan.PRODUCTS for split in TASK.splits[:3] for brief in briefs[split])


def test_noise_is_as_set_and_pairs_are_rule_made():
    demonstrations = TASK.demonstrations(1000, 0)
    assert [d.prompt for d in demonstrations[:200]] == TASK.prompts("train", 200, 0)
    wrong = sum(TASK.judge(d.prompt, d.response).score < 1 for d in demonstrations)
    assert wrong == pytest.approx(300, abs=60)
    pairs = TASK.pairs(300, 0)
    assert {pair.source for pair in pairs} == {"rule-made"} and TASK.pairs(50, 0) == pairs[:50]
    for pair in pairs:
        assert TASK.judge(pair.prompt, pair.chosen).score == 1 > TASK.judge(pair.prompt, pair.rejected).score


def test_settings_that_contradict_each_other():
    with pytest.raises(ValidationError, match="min_words is above max_words"):
        SloganSettings(min_words=7, max_words=5)
