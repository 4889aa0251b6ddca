"""Instructions that rules verify: verdicts by hand and by the library, the task's splits, and IFEval's own prompts."""

import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.core.types import Prompt, Turn
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.tasks import build_task, instructions
from rlhf_bench.tasks.instruction_kinds import _FILLERS, FORBIDDEN, KEYWORDS, KINDS, compatible
from rlhf_bench.tasks.instructions import InstructionsSettings
from rlhf_bench.tasks.judges.ifeval import NEED_DOWNLOAD, judge_ifeval, reference_of
from rlhf_bench.tasks.loading.rows import FileRow

IFEVAL = Path(__file__).parents[4] / "shared" / "data" / "ifeval" / "input_data.jsonl"
needs_data = pytest.mark.skipif(not IFEVAL.is_file(), reason="IFEval's prompts are not at ../shared/data/ifeval")
TASK = build_task(InstructionsSettings())


def row(ids, kwargs):
    return FileRow("mine.jsonl:3", 3, {"prompt": "Say it.", "instruction_id_list": ids, "kwargs": kwargs})


def kinds(prompt):
    return json.loads(prompt.answer)["instruction_id_list"]


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), [
    ("punctuation:no_comma", {}, "Well done.", "Well, done."),
    ("keywords:existence", {"keywords": ["tea"]}, "Tea it is.", "Coffee it is."),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "A teapot.", "Tea, please."),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "Tea or tea.", "Tea."),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "Tea.", "Teeth."),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "One two three.", "One two."),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "One two.", "One two three."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "two"}, "One.\n\nTwo.", "Two.\n\nOne."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", "[a] and b"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Yes.\nP.S. No.", "Yes. No."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "- a\n- b", "- a\n- b\n- c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "So *good*.", "So good."),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1 a Part 2 b", "Part 1 a"),
    ("detectable_format:json_format", {}, '{"a": 1}', "a: 1"),
    ("detectable_format:title", {}, "<<Tea>>\nYes.", "Tea\nYes."),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("combination:two_responses", {}, "Yes.\n******\nNo.", "Yes.\nNo."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Is it?"}, "Is it? It is.", "It is."),
    ("startend:end_checker", {"end_phrase": "The end."}, "So it was. The end.", "The end. So it was."),
    ("startend:quotation", {}, '"Yes."', "Yes."),
    ("change_case:english_lowercase", {}, "this is all in lower case, as it should be.", "This is not all in lower case."),
    ("change_case:english_capital", {}, "THIS IS ALL IN CAPITALS, AS IT SHOULD BE.", "This is not all in capitals."),
    ("language:response_language", {"language": "de"}, "Das ist ein Satz auf Deutsch, wie gewünscht.", "This is English."),
])  # fmt: skip
def test_verdicts_by_hand(name, arguments, right, wrong):
    reference = reference_of(row([name], [arguments]))
    assert judge_ifeval(right, reference).score == 1
    assert judge_ifeval(wrong, reference).score == judge_ifeval("", reference).score == 0


def test_every_kind_of_ifeval_is_verified_above_or_left_out_by_name():
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    (cases,) = (mark.args[1] for mark in test_verdicts_by_hand.pytestmark)
    assert {case[0] for case in cases} | set(NEED_DOWNLOAD) == set(INSTRUCTION_DICT) and len(INSTRUCTION_DICT) == 25


def test_strict_loose_and_how_much_they_weigh():
    reference = reference_of(row(["punctuation:no_comma", "startend:quotation"], [{}, {}]))
    found = judge_ifeval('Sure here it is:\n"Yes."', reference)
    assert found.score == 0.5 and found.weights == {"instruction_strict": 2, "instruction_loose": 2}
    assert found.parts == {"prompt_strict": 0, "instruction_strict": 0.5, "prompt_loose": 1, "instruction_loose": 1}


@pytest.mark.parametrize(("ids", "kwargs", "problem", "kind"), [
    (["punctuation:no_coma"], [{}], "no instruction 'punctuation:no_coma' (did you mean punctuation:no_comma?)", "cannot be"),
    (["punctuation:no_comma"], [], "are not two lists of one length", "cannot be read"),
    ("punctuation:no_comma", "{}", "are not two lists of one length", "cannot be read"),
    (["punctuation:no_comma"], ["{}"], "takes no arguments", "cannot be"),
    ([3], [{}], "no instruction '3'", "cannot be"),
    (["keywords:existence"], [{"keywords": ["("]}], "cannot be verified with", "cannot be"),
    (["keywords:existence"], [{"keywords": "tea"}], "cannot be verified with", "cannot be"),
    (["keywords:letter_frequency"], [{"letter": "#", "let_frequency": 2, "let_relation": "at least"}],
     "cannot be verified with", "cannot be"),
    (["length_constraints:number_words"], [{"num_words": 3}], "takes num_words, relation; correct its kwargs", "cannot be"),
    (["length_constraints:number_words"], [{"num_words": 3, "relation": "about"}], "cannot be verified with", "cannot be"),
    (["length_constraints:number_sentences"], [{"num_sentences": 3, "relation": "at least"}], "a download", "a download"),
])  # fmt: skip
def test_a_row_that_cannot_be_verified_is_named(ids, kwargs, problem, kind):
    with pytest.raises(Unusable, match=r"^mine\.jsonl:3: ") as refused:
        reference_of(row(ids, kwargs))
    assert problem in str(refused.value) and kind in refused.value.kind


def test_arguments_that_are_null_are_none():
    everything = {"num_words": None, "relation": None, "keywords": None}
    assert json.loads(reference_of(row(["punctuation:no_comma"], [everything])))["kwargs"] == [{}]


def test_a_prompt_says_what_it_asks_for():
    for prompt in TASK.prompts("train", 200, 0):
        assert prompt.turns == (Turn("user", prompt.text),) and 1 <= len(kinds(prompt)) <= 3
        asked = json.loads(prompt.answer)
        for name, arguments in zip(asked["instruction_id_list"], asked["kwargs"], strict=True):
            assert KINDS[name].say(arguments) in prompt.text
            assert reference_of(row([name], [arguments]))


def test_splits_are_apart_and_combinations_are_held_out():
    splits = {split: TASK.prompts(split, 400, 1) + TASK.prompts(split, 400, 2) for split in TASK.splits}
    texts = {split: {p.text for p in found} for split, found in splits.items()}
    assert not any(texts[a] & texts[b] for a, b in combinations(TASK.splits, 2))
    for split, found in splits.items():
        assert all(instructions.is_reserved(kinds(p)) == (split == "out_of_distribution") for p in found)
    topics = instructions.RESERVED_TOPICS
    assert all(any(f"about {topic}." in p.text for topic in topics) for p in splits["unseen"])
    assert not any(f"about {topic}." in p.text for topic in topics for split in TASK.splits[:3] for p in splits[split])
    assert all(len(kinds(p)) == 1 for p in build_task(InstructionsSettings(max_constraints=1)).prompts("train", 50, 0))


def test_kinds_that_the_library_says_conflict_are_not_combined_where_the_writer_cannot():
    assert not compatible("change_case:english_lowercase", "change_case:english_capital")
    assert not compatible("startend:quotation", "detectable_format:title")
    assert all(compatible(*pair) for pair in instructions.reserved_pairs()) and len(instructions.reserved_pairs()) >= 10
    assert not set(KINDS) & set(NEED_DOWNLOAD) and not set(KEYWORDS) & set(FORBIDDEN)


def test_no_keyword_or_forbidden_word_is_in_what_is_written_anyway():
    plain = " ".join(
        [*_FILLERS, *instructions.TOPICS, *instructions.RESERVED_TOPICS, "I enjoy P.S. Write to me soon."]
    ).lower()
    assert not [word for word in KEYWORDS + FORBIDDEN if word in plain]


def test_demonstrations_follow_all_but_the_share_of_noise_and_pairs_differ_by_one():
    shown = TASK.demonstrations(600, 0)
    assert [d.prompt for d in shown] == TASK.prompts("train", 600, 0)
    scores = [TASK.judge(d.prompt, d.response).score for d in shown]
    assert sum(score < 1 for score in scores) == pytest.approx(180, abs=40)
    for pair in TASK.pairs(300, 1):
        assert pair.source == "rule-made" and TASK.judge(pair.prompt, pair.chosen).score == 1
        count = len(kinds(pair.prompt))
        assert TASK.judge(pair.prompt, pair.rejected).score == pytest.approx((count - 1) / count)


REFERENCES = [p.answer for p in TASK.prompts("train", 40, 5)] + [
    reference_of(row([name], [{}])) for name in ("detectable_format:json_format", "combination:two_responses")
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(REFERENCES), st.text() | st.sampled_from(["[" * 3000, "[" * 10**6, "<" * 3000, "9" * 9999]))
def test_any_text_gets_the_same_judgement_again(reference, response):
    judgement = judge_ifeval(response, reference)
    assert 0 <= judgement.score <= 1 and judgement == judge_ifeval(response, reference)


@needs_data
def test_ifevals_own_prompts_are_the_split_unseen():
    task = build_task(InstructionsSettings(ifeval=IFEVAL))
    assert task.notes[0].startswith("unseen: 474 of IFEval's 540 prompts; left out: ")
    assert all(f"with {name}, which needs a download" in task.notes[0] for name in NEED_DOWNLOAD)
    prompts = task.prompts("unseen", 474, 0)
    rows = {r["prompt"]: r for r in map(json.loads, IFEVAL.open(encoding="utf-8"))}
    assert all(kinds(p) == rows[p.text]["instruction_id_list"] for p in prompts)
    assert task.prompts("train", 20, 0) == TASK.prompts("train", 20, 0)
    short = build_task(InstructionsSettings(ifeval=IFEVAL, max_prompt_characters=200)).prompts("unseen", 100, 0)
    assert max(len(p.text) for p in short) <= 200


@needs_data
def test_judged_as_the_library_judges_the_whole_prompt():
    from if_verifiable.common import evaluate_instructions
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    prompts = build_task(InstructionsSettings(ifeval=IFEVAL)).prompts("unseen", 120, 1)
    replies = [d.response for d in TASK.demonstrations(len(prompts), 3)]
    for prompt, reply in zip(prompts, replies, strict=True):
        asked, found = json.loads(prompt.answer), judge_ifeval(reply, prompt.answer).parts
        _, scores = evaluate_instructions(reply, *asked.values(), prompt.text, INSTRUCTION_DICT)
        assert (found["prompt_strict"], found["prompt_loose"]) == (scores.binary_strict, scores.binary_loose)
        assert found["instruction_strict"] == pytest.approx(scores.partial_strict)
        assert found["instruction_loose"] == pytest.approx(scores.partial_loose)


def test_a_prompt_of_ones_own_is_judged_by_its_reference():
    prompt = Prompt("p", "Say it.", reference_of(row(["punctuation:no_comma"], [{}])))
    assert TASK.judge(prompt, "It is said.").score == 1
