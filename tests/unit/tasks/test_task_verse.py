"""The verse task: its words, its demonstrations and the five parts of its judgement."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf_bench.core.types import Prompt
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer, encode_prompt
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks import verse_words as lexicon
from rlhf_bench.tasks.verse import DEFECTS, Brief, VerseSettings, write

TASK = build_task(VerseSettings())
CATS = Brief(2, 4, "cats", "day")
PROMPT = Prompt("p", CATS.text, CATS.answer)
POEM = "the whisker / kittens sleep near bay / lions wait by hay"


def test_prompt_reads_as_a_request():
    assert PROMPT.text == "write 2 lines of 4 words on cats rhyming with day :"
    assert Brief.of(PROMPT) == CATS


@pytest.mark.parametrize(
    "response, wrong_parts",
    [
        (POEM, {}),
        ("the whisker / kittens sleep near bay", {"lines": 0, "words": 0.5, "rhyme": 0.5}),
        (POEM + " / cats play under clay", {"lines": 0}),
        (POEM + " /", {"lines": 0, "words": 2 / 3, "rhyme": 2 / 3}),
        ("the whisker / kittens sleep bay / lions wait by hay", {"words": 0.5}),
        ("the whisker / kittens <unk> near bay / lions wait by hay", {"words": 0.5}),
        ("the whisker / kittens sleep near bay / lions wait by night", {"rhyme": 0.5}),
        ("the whisker / kittens sleep near bay / lions wait by bay", {"rhyme": 0.5}),
        ("the whisker / kittens sleep near day / lions wait by hay", {"rhyme": 0.5}),
        ("the whisker / dogs sleep near bay / hounds wait by hay", {"topic": 0}),
        ("the bark / kittens sleep near bay / lions wait by hay", {"title": 0}),
        ("whisker / kittens sleep near bay / lions wait by hay", {"title": 0}),
        ("the old whisker / kittens sleep near bay / lions wait by hay", {"title": 0}),
        ("", {"lines": 0, "words": 0, "rhyme": 0, "topic": 0, "title": 0}),
    ],
)
def test_judge_on_hand_made_poems(response, wrong_parts):
    parts = {"lines": 1, "words": 1, "rhyme": 1, "topic": 1, "title": 1} | wrong_parts
    judgement = TASK.judge(PROMPT, response)
    assert judgement.parts == pytest.approx(parts)
    assert judgement.score == pytest.approx(sum(parts.values()) / 5)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(4, 8), st.floats(0, 1), st.integers(0, 10**6))
def test_noise_free_demonstrations_are_right(lines, words, spread, seed):
    most = VerseSettings(
        min_lines=2 + round(spread * (lines - 2)),
        max_lines=lines,
        min_words=4 + round(spread * (words - 4)),
        max_words=words,
        noise=0,
    )
    task = build_task(most)
    for demonstration in task.demonstrations(10, seed):
        assert task.judge(demonstration.prompt, demonstration.response).score == 1


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_lowers_its_own_part(defect):
    rng = random.Random(0)
    for prompt in TASK.prompts("train", 200, 3):
        judgement = TASK.judge(prompt, write(Brief.of(prompt), rng, defect))
        assert judgement.parts[defect] < 1 and judgement.score < 1
        assert all(judgement.parts[part] == 1 for part in {"topic", "title"} - {defect})


@pytest.mark.parametrize("split", TASK.splits)
def test_a_right_poem_exists_for_every_prompt(split):
    rng = random.Random(1)
    task = build_task(VerseSettings(max_lines=5, max_words=8))
    assert all(task.judge(p, write(Brief.of(p), rng)).score == 1 for p in task.prompts(split, 100, 0))


def test_share_of_defective_demonstrations_is_the_noise():
    task = build_task(VerseSettings(noise=0.4))
    demonstrations = task.demonstrations(3000, 2)
    defective = sum(task.judge(d.prompt, d.response).score < 1 for d in demonstrations) / len(demonstrations)
    assert defective == pytest.approx(0.4, abs=4 * (0.4 * 0.6 / 3000) ** 0.5)


@settings(max_examples=200)
@given(st.text() | st.lists(st.sampled_from(POEM.split() + ["/"])).map(" ".join))
def test_judge_takes_any_text(response):
    judgement = TASK.judge(PROMPT, response)
    assert 0 <= judgement.score <= 1 and all(0 <= part <= 1 for part in judgement.parts.values())
    assert judgement.score == pytest.approx(sum(judgement.parts.values()) / 5)


def test_splits_are_disjoint_for_any_seeds():
    texts = {split: {p.text for seed in range(4) for p in TASK.prompts(split, 500, seed)} for split in TASK.splits}
    assert sum(map(len, texts.values())) == len(set().union(*texts.values()))
    ids = [prompt.id for split in TASK.splits for prompt in TASK.prompts(split, 50, 0)]
    assert len(set(ids)) == len(ids)


def test_training_never_shows_a_reserved_topic():
    reserved = {word for topic in lexicon.RESERVED_TOPICS.values() for word in topic.nouns + topic.titles}
    shown = {word for d in TASK.demonstrations(3000, 0) for word in (d.prompt.text + " " + d.response).split()}
    assert not reserved & shown
    assert {Brief.of(p).topic for p in TASK.prompts("unseen", 200, 0)} == set(lexicon.RESERVED_TOPICS)


def test_out_of_distribution_asks_for_one_line_or_word_more_or_fewer():
    briefs = [Brief.of(p) for p in TASK.prompts("out_of_distribution", 500, 0)]
    assert {b.lines for b in briefs} == {2, 3, 4} and {b.words for b in briefs} == {3, 4, 5, 6, 7}
    assert all(b.lines == 4 or b.words in (3, 7) for b in briefs)


def test_same_seed_same_data():
    again = build_task(VerseSettings())
    assert TASK.prompts("train", 100, 5) == again.prompts("train", 100, 5) != TASK.prompts("train", 100, 6)
    assert TASK.prompts("train", 10, 5) == TASK.prompts("train", 100, 5)[:10]
    assert TASK.demonstrations(100, 5) == again.demonstrations(100, 5)


def test_corpus_has_every_word():
    task = build_task(VerseSettings(max_lines=5, max_words=8, noise=0.5))
    known = {word for text in task.corpus() for word in text.split()}
    assert 300 <= len(known) <= 600
    needed = {w for split in task.splits for p in task.prompts(split, 500, 0) for w in p.text.split()}
    needed |= {w for d in task.demonstrations(2000, 0) for w in d.response.split()}
    assert needed <= known


def test_bpe_makes_a_word_a_token():
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=1536), TASK.corpus())
    for demonstration in TASK.demonstrations(200, 0):
        prompt, response = demonstration.prompt.text, demonstration.response
        assert len(encode_prompt(tokenizer, prompt)) == 1 + len(prompt.split())
        inside = response.partition(" ")[2]  # the first word, with no space before it, may take a few
        assert len(tokenizer.backend_tokenizer.encode(" " + inside)) == len(inside.split())


def test_every_content_word_stands_in_one_table():
    topics = [*lexicon.TOPICS.values(), *lexicon.RESERVED_TOPICS.values()]
    content = [*lexicon.RHYMES, *(t.nouns for t in topics), *(t.titles for t in topics)]
    fillers = {*lexicon.TITLE_OPENERS, *lexicon.DETERMINERS, *lexicon.SINGULAR_DETERMINERS, *lexicon.ADJECTIVES}
    fillers |= {*lexicon.VERBS, *lexicon.ADVERBS, *lexicon.PREPOSITIONS, *lexicon.ASKING}
    counts = Counter(word for words in content for word in words) + Counter(fillers)
    assert [word for word, count in counts.items() if count > 1] == []
    assert all(len(family) == 8 for family in lexicon.RHYMES)


def test_ranges_the_wrong_way_round_are_refused():
    with pytest.raises(ValidationError, match="min_lines is above max_lines"):
        VerseSettings(min_lines=4, max_lines=2)
    with pytest.raises(ValidationError, match="min_words is above max_words"):
        VerseSettings(min_words=8, max_words=5)
