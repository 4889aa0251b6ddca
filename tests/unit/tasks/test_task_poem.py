"""The poem task in English: rhymes by the dictionary, its demonstrations, its pairs and the six parts of its judgement."""

import random
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf_bench.core.types import Prompt, Turn
from rlhf_bench.tasks import build_task, verse
from rlhf_bench.tasks import verse_words as lexicon
from rlhf_bench.tasks.judges.english import names, nearness, rhyme, words_of
from rlhf_bench.tasks.poem import CROSSWISE, DEFECTS, PAIRS, Brief, PoemSettings, write

TASK = build_task(PoemSettings())
PARTS = ("title", "lines", "exact", "words", "rhyme", "topic")


def asked(brief):
    return Prompt("p", brief.text, brief.answer)


PROMPT = asked(Brief(4, 5, "cats", "sleepy", PAIRS))
POEM = """Sleepy Cats

The cat sleeps all day,
Dreaming of games to play.
At night it will creep
While the dogs still sleep."""


@pytest.mark.parametrize(("response", "parts"), [
    (POEM, {}),
    (POEM.replace("Sleepy Cats", '**Title: "Sleepy Cats"**'), {}),
    (POEM.replace("Sleepy Cats", "Cats"), {"title": 0}),
    (POEM.removeprefix("Sleepy Cats"), {"title": 0, "lines": 3 / 4, "exact": 0, "words": 3 / 4, "rhyme": 0, "topic": 0}),
    (POEM.replace("to play", "play"), {"words": 3 / 4}),
    (POEM.replace("to play", "to win"), {"rhyme": 1 / 2}),
    (POEM.replace("play", "day"), {"rhyme": 1 / 2}),  # a word does not rhyme with itself
    (POEM.replace("creep", "play").replace("sleep.", "day."), {"rhyme": 1 / 2}),  # and a rhyme counts once
    (POEM.replace("cat ", "fox "), {"topic": 0}),
    (POEM + "\nOne more line for you", {"lines": 3 / 4, "exact": 0}),
    (POEM.replace("\n", " "), {"title": 0, "lines": 0, "exact": 0, "words": 0, "rhyme": 0, "topic": 0}),
    ("", dict.fromkeys(PARTS, 0)),
])  # fmt: skip
def test_judge_on_hand_made_poems(response, parts):
    expected = dict.fromkeys(PARTS, 1) | parts
    judgement = TASK.judge(PROMPT, response)
    assert judgement.parts == pytest.approx(expected)
    assert judgement.score == pytest.approx(sum(expected.values()) / 6)


def test_crosswise_rhymes():
    ends = ["day", "night", "play", "light"]
    poem = "\n".join(["Sleepy Cats", *(f"The old cat saw {end}" for end in ends)])
    assert TASK.judge(asked(Brief(4, 5, "cats", "sleepy", CROSSWISE)), poem).score == 1
    assert TASK.judge(PROMPT, poem).parts["rhyme"] == 0


@pytest.mark.parametrize(("one", "other", "found"), [
    ("day", "sleigh", True), ("night", "height", True), ("night", "moonlight", True), ("sea", "see", True),
    ("cough", "though", False), ("love", "move", False), ("wind", "kind", True), ("wind", "pinned", True),
    ("day", "day", False), ("xqzt", "wxqzt", False), ("orange", "day", False), ("", "day", False),
])  # fmt: skip
def test_rhymes_are_by_sound(one, other, found):
    assert rhyme(one, other) == rhyme(other, one) == found


def test_words_counts_and_nouns():
    assert (
        words_of("Don't stop — it's a long-lasting, 24/7 <b>joy</b>!")
        == "don't stop it's a long-lasting 24 7 b joy b".split()
    )
    assert names("ponies", ["pony"]) and names("fishes", ["fish"]) and not names("cats", ["catsup"])
    assert [nearness(given, 4) for given in (0, 2, 4, 5, 8, 90)] == [0, 0.5, 1, 0.75, 0, 0]


def test_the_dictionary_agrees_with_the_table_that_writes():
    for family in lexicon.RHYMES:
        assert all(rhyme(*pair) for pair in combinations(family, 2))
    firsts = [family[0] for family in lexicon.RHYMES]
    assert not any(rhyme(*pair) for pair in combinations(firsts, 2))


@given(
    st.sampled_from((2, 4)),
    st.integers(4, 7),
    st.sampled_from(verse.TRAINED_TOPICS),
    st.sampled_from([None, *DEFECTS]),
    st.integers(0, 999),
)
@example(2, 4, "cats", "rhyme", 433)  # "quay" rhymes with "spray" too
def test_a_demonstration_has_the_one_defect_it_was_given(lines, words, topic, defect, seed):
    prompt = asked(brief := Brief(lines, words, topic, "merry", PAIRS))
    judgement = TASK.judge(prompt, written := write(brief, random.Random(seed), defect))
    short = {part for part, score in judgement.parts.items() if score < 1}
    if defect == "lines":
        fewer = {"words", "rhyme"} if written.count("\n") < lines else set()
        assert short == {"lines", "exact"} | fewer
    else:
        assert short == {defect} - {None}


@given(st.text() | st.lists(st.sampled_from(["Sleepy Cats", "\n", "day", "cats play", " "])).map("".join))
def test_any_text_gets_a_judgement(response):
    assert 0 <= TASK.judge(PROMPT, response).score <= 1


def test_splits_are_apart():
    splits = {split: {p.text for seed in (1, 2) for p in TASK.prompts(split, 150, seed)} for split in TASK.splits}
    assert not any(splits[a] & splits[b] for a, b in combinations(TASK.splits, 2))
    briefs = {split: [Brief.of(p) for p in TASK.prompts(split, 150, 3)] for split in TASK.splits}
    assert all(b.lines == 6 or b.words > 6 or b.scheme == CROSSWISE for b in briefs["out_of_distribution"])
    assert {b.topic for b in briefs["unseen"]} == set(verse.RESERVED_TOPICS)
    assert all(b.topic in verse.TRAINED_TOPICS for split in TASK.splits[:3] for b in briefs[split])


def test_noise_is_as_set_and_pairs_are_rule_made():
    demonstrations = TASK.demonstrations(1000, 0)
    wrong = sum(TASK.judge(d.prompt, d.response).score < 1 for d in demonstrations)
    assert wrong == pytest.approx(300, abs=60)
    for pair in TASK.pairs(100, 0):
        assert pair.source == "rule-made" and pair.prompt.turns == (Turn("user", pair.prompt.text),)
        assert TASK.judge(pair.prompt, pair.chosen).score == 1 > TASK.judge(pair.prompt, pair.rejected).score


def test_settings_that_contradict_each_other():
    with pytest.raises(ValidationError, match="min_words is above max_words"):
        PoemSettings(min_words=7, max_words=5)
    with pytest.raises(ValidationError, match="min_lines is above max_lines"):
        PoemSettings(min_lines=4, max_lines=2)
