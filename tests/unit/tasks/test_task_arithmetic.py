"""The arithmetic task: what it asks, what it accepts, and that its splits never touch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Prompt
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.arithmetic import ArithmeticSettings

SHAPES = st.builds(
    ArithmeticSettings,
    digits=st.integers(2, 4),
    terms=st.integers(2, 4),
    working=st.booleans(),
    noise=st.just(0.0),
)


def operands(prompt: Prompt) -> list[int]:
    return [int(operand) for operand in prompt.text.removesuffix("=").split("+")]


@settings(max_examples=20, deadline=None)
@given(SHAPES, st.integers(0, 10**6))
def test_noise_free_demonstrations_are_right(shape, seed):
    task = build_task(shape)
    for demonstration in task.demonstrations(20, seed):
        judgement = task.judge(demonstration.prompt, demonstration.response)
        assert judgement.score == 1 and set(judgement.parts.values()) == {1.0}
        assert int(demonstration.response.split(";")[-1]) == sum(operands(demonstration.prompt))


@pytest.mark.parametrize("working", [False, True])
def test_fully_noisy_demonstrations_are_plausible_and_wrong(working):
    task = build_task(ArithmeticSettings(terms=3, working=working, noise=1.0))
    for demonstration in task.demonstrations(300, 0):
        judgement = task.judge(demonstration.prompt, demonstration.response)
        assert judgement.score == 0 and judgement.parts["answer"] == 0
        error = abs(int(demonstration.response.split(";")[-1]) - sum(operands(demonstration.prompt)))
        assert error in (1, 10, 100)


def test_share_of_wrong_demonstrations_is_the_noise():
    task = build_task(ArithmeticSettings(digits=3, noise=0.3))
    demonstrations = task.demonstrations(4000, 1)
    wrong = sum(1 - task.judge(d.prompt, d.response).score for d in demonstrations) / len(demonstrations)
    assert wrong == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)


def test_working_is_written_as_running_sums():
    task = build_task(ArithmeticSettings(terms=3, working=True))
    prompt = Prompt("p", "12+30+9=", "12+30=42;42+9=51;51")
    assert task.judge(prompt, "12+30=42;42+9=51;51").parts == {"answer": 1, "working": 1}
    assert task.judge(prompt, "12+30=42;42+9=51;52").parts == {"answer": 0, "working": 1}
    lucky = task.judge(prompt, "12+30=43;43+9=51;51")
    assert lucky.score == 0 and lucky.parts == {"answer": 1, "working": 0}
    assert task.judge(prompt, "51").parts == {"answer": 1, "working": 0}


@pytest.mark.parametrize(
    "response, score",
    [
        ("95", 1),
        (" 95\n", 1),
        ("", 0),
        ("95 5", 0),
        ("95;", 0),
        ("095", 0),
        ("95.0", 0),
        ("9 5", 0),
        ("+95", 0),
        ("٩٥", 0),
    ],
)
def test_only_the_exact_answer_counts(response, score):
    task = build_task(ArithmeticSettings())
    assert task.judge(Prompt("p", "37+58=", "95"), response).score == score


@settings(max_examples=200)
@given(st.text(), st.booleans())
def test_judge_takes_any_text(response, working):
    task = build_task(ArithmeticSettings(working=working))
    prompt = task.prompts("train", 1, 0)[0]
    judgement = task.judge(prompt, response)
    assert judgement.score == float(response.strip() == prompt.answer)


def test_the_one_right_response_is_the_only_text_that_scores():
    """Expected scores rest on it."""
    task = build_task(ArithmeticSettings())
    for prompt in task.prompts("in_distribution", 20, 0):
        assert task.judge(prompt, task.right_response(prompt)).score == 1
        assert sum(task.judge(prompt, str(number)).score for number in range(250)) == 1


@pytest.mark.parametrize("shape", [ArithmeticSettings(), ArithmeticSettings(digits=3, terms=3, working=True)])
def test_splits_are_disjoint_for_any_seeds(shape):
    task = build_task(shape)
    texts = {split: {p.text for seed in range(4) for p in task.prompts(split, 400, seed)} for split in task.splits}
    sums = {split: {tuple(sorted(map(int, t[:-1].split("+")))) for t in found} for split, found in texts.items()}
    splits = list(sums)
    for position, split in enumerate(splits):
        for other in splits[position + 1 :]:
            assert not sums[split] & sums[other]
    ids = [prompt.id for split in splits for prompt in task.prompts(split, 50, 0)]
    assert len(set(ids)) == len(ids) and ids[0] == "arithmetic/train/000000"


def test_unseen_sums_have_exactly_one_operand_that_training_never_has():
    task = build_task(ArithmeticSettings())
    trained = {number for prompt in task.prompts("train", 5000, 0) for number in operands(prompt)}
    held = {number for prompt in task.prompts("in_distribution", 300, 0) for number in operands(prompt)}
    assert len(trained) == 81 and held <= trained
    for prompt in task.prompts("unseen", 300, 0):
        assert sum(number not in trained for number in operands(prompt)) == 1


def test_out_of_distribution_sums_are_one_digit_or_one_term_longer():
    task = build_task(ArithmeticSettings(digits=2, terms=2))
    shapes = {tuple(len(str(n)) for n in operands(p)) for p in task.prompts("out_of_distribution", 200, 0)}
    assert shapes == {(3, 3), (2, 2, 2)}


def test_same_seed_same_prompts_and_fewer_are_a_prefix():
    task, again = build_task(ArithmeticSettings()), build_task(ArithmeticSettings())
    assert task.prompts("train", 200, 5) == again.prompts("train", 200, 5)
    assert task.prompts("train", 20, 5) == task.prompts("train", 200, 5)[:20]
    assert task.prompts("train", 200, 5) != task.prompts("train", 200, 6)
    assert task.demonstrations(200, 5) == again.demonstrations(200, 5)
    assert [d.prompt for d in task.demonstrations(200, 5)] == task.prompts("train", 200, 5)


def test_asking_for_more_than_there_is_names_the_task_and_split():
    task = build_task(ArithmeticSettings(digits=1))
    with pytest.raises(BadInput, match="arithmetic, unseen: 500 different prompts .* allow about 18; ask for fewer"):
        task.prompts("unseen", 500, 0)


@pytest.mark.parametrize("working", [False, True])
def test_corpus_has_every_character(working):
    task = build_task(ArithmeticSettings(terms=3, working=working, noise=0.5))
    needed = {c for split in task.splits for p in task.prompts(split, 200, 0) for c in p.text + p.answer}
    assert needed <= set("".join(task.corpus()))


def test_bpe_keeps_every_digit_a_token():
    task = build_task(ArithmeticSettings(terms=3, working=True))
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=400), task.corpus())
    for prompt in task.prompts("train", 100, 0):
        text = prompt.text + prompt.answer
        assert len(tokenizer.backend_tokenizer.encode(text)) == len(text)


@pytest.mark.parametrize("shape", [ArithmeticSettings(), ArithmeticSettings(terms=3, working=True)])
def test_spread_pairs_set_right_against_wrong_at_every_number_of_changed_digits(shape):
    assert build_task(shape).pairs is None
    task = build_task(shape.model_copy(update={"spread_pairs": True}))
    pairs = task.pairs(1000, 3)
    assert [pair.prompt for pair in pairs] == task.prompts("train", 1000, 3)
    assert task.pairs(20, 3) == pairs[:20] != task.pairs(20, 4)
    shares = []
    for pair in pairs:
        assert task.judge(pair.prompt, pair.chosen).score == 1 and task.judge(pair.prompt, pair.rejected).score == 0
        signs = [(a, b) for a, b in zip(pair.chosen, pair.rejected, strict=True) if not a.isdigit()]
        assert all(a == b for a, b in signs)
        digits = sum(a.isdigit() for a in pair.chosen)
        changed = sum(a != b for a, b in zip(pair.chosen, pair.rejected, strict=True))
        shares.append((changed - 1) / (digits - 1))
        assert 1 <= changed <= digits and pair.rejected.isascii()
    assert {0, 1} <= set(shares)
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=4 * 0.5 / 1000**0.5)
