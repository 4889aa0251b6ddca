"""Rows that are too wide for a micro-batch or for the context.

`check`, which refuses what `run` would refuse and starts nothing, ends with exit code 2 and one line that names the key, row or file,
and the remedy."""

import re

import pytest

from rlhf_bench.recipe import load_recipe
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import prepare_inputs
from tests.support.checking import FILES, PAIRS, TEST, TRAIN, check, jsonl, one, refusal, write_files


def other_pairs(**changes):
    return {"pairs.jsonl": jsonl(PAIRS[0] | changes, *PAIRS[1:])}  # which is not held out


def more_pairs(**changes):
    return {"pairs.jsonl": jsonl(PAIRS[0] | changes, *PAIRS[1:], {"prompt": "q4?", "chosen": "yes", "rejected": "no"})}


MORE_TRAIN = jsonl(TRAIN[0], {"prompt": "q" * 9, "reference": "a", "response": "a"}, *TRAIN[1:])
OFFLINE = "arms={b: {method: dpo}}"
GSM8K = {
    "train.jsonl": jsonl({"question": "How many?", "answer": "1 + 1 = 2\n#### 2"}),
    "test.jsonl": jsonl({"question": "How few, how many?", "answer": "1\n#### 1"}),
    "example_model_solutions.jsonl": jsonl(
        {"question": "How few?", "ground_truth": "3\nA: 3"}
        | {
            f"{size}_{kind}": {"solution": f"So {n}\nA: {n}", "is_correct": n == 3}
            for n, (size, kind) in enumerate(
                [("6b", "finetuning"), ("6b", "verification"), ("175b", "finetuning"), ("175b", "verification")]
            )
        }
    ),
}
NO_PAIRS = FILES.replace(", pairs: ./pairs.jsonl", "")
# The tokens of a micro-batch, files, overrides, and the line; a training prompt has 4 tokens, a response at most 8.
WIDE = {
    "a given pair": (
        24,
        other_pairs(chosen="y" * 20),
        [OFFLINE],
        r".*pairs\.jsonl:1: prompt, chosen and rejected make 28 tokens, .*",
    ),
    "a demonstration": (
        24,
        {"train.jsonl": one(response="a" * 30)},
        [OFFLINE],
        r".*train\.jsonl:2: prompt and response make 35 tokens, .*",
    ),
    "a graded solution": (
        30,
        GSM8K,
        [
            OFFLINE,
            "task={kind: gsm8k, folder: ./}",
            "sft.demonstrations=1",
            "data.train_prompts=1",
            "data.off_policy_pairs=2",
            "evaluation.prompts=1",
        ],
        r".*solutions\.jsonl:1: prompt, chosen and rejected make 34 tokens, .*",
    ),
    "generated pairs": (
        19,
        {},
        [OFFLINE, NO_PAIRS],
        r".*(train|test)\.jsonl:\d: the prompt with 2 responses of data\.max_response_tokens 8, as the weaker policy draws them, makes 20 tokens, .*",
    ),
    "generated pairs on a long prompt": (
        24,
        {"train.jsonl": one(prompt="q" * 9)},
        [OFFLINE, NO_PAIRS],
        r".*train\.jsonl:2: the prompt with 2 .*26 tokens.*",
    ),
    "generated held-out pairs": (
        24,
        {"test.jsonl": jsonl(*TEST[2:], *({"prompt": "h" * n, "reference": "a"} for n in (9, 10)))},
        [OFFLINE, NO_PAIRS, "evaluation.prompts=4"],
        r".*test\.jsonl:4: the prompt with 2 .*27 tokens.*",
    ),
    "pairs of a task's own prompts": (
        24,
        {},
        [OFFLINE, "task={kind: arithmetic}", "evaluation.splits=[in_distribution, out_of_distribution]"],
        r"prompt arithmetic/out_of_distribution/\d+: the prompt with 2 .*2[56] tokens.*",
    ),
    "samples of an arm": (
        24,
        {},
        [],
        r".*train\.jsonl:\d: the prompt with 4 responses .*, as arm a draws them, makes 36 tokens.*",
    ),
    "a pair's prompt that an arm samples on": (
        24,
        other_pairs(prompt="q" * 9),
        ["arms={b: {method: dpo, data: on_policy}}", "data.held_out_pairs=1", "data.off_policy_pairs=3"],
        r".*pairs\.jsonl:1: the prompt with 2 responses .*, as arm b draws them, makes 26 tokens.*",
    ),
    "a sample beside a given side": (
        20,
        other_pairs(rejected="n" * 12, chosen="y"),
        ["arms={b: {method: dpo, data: chosen_on_policy}}"],
        r".*jsonl:1: the prompt with 1 response of .*, as arm b draws them, and the pair's other side makes 25 tokens.*",
    ),
    "candidates for the reward model": (
        24,
        {},
        ["arms={a: {method: ppo, samples_per_prompt: 1}}", "data.candidates_per_prompt=3"],
        r".*train\.jsonl:\d: the prompt with 3 responses .*, as the reward model's stage draws them, makes 28 tokens.*",
    ),
    "held-out pairs of an arm's own kind": (
        24,
        {"test.jsonl": jsonl({"prompt": "h" * 9, "reference": "a"}, *TEST[1:])},
        ["arms={b: {method: dpo, data: online}}"],
        r".*test\.jsonl:1: the prompt with 2 responses .*, as the evaluation of arm b draws them, makes 26 tokens.*",
    ),
}


@pytest.mark.parametrize(("most", "changed", "overrides", "line"), WIDE.values(), ids=WIDE)
def test_what_is_computed_in_one_row_fits_a_micro_batch(most, changed, overrides, line, tmp_path, monkeypatch):
    recipe = write_files(tmp_path, **changed)
    monkeypatch.chdir(tmp_path)
    said = refusal(recipe, *overrides, f"compute.tokens_per_micro_batch={most}")
    assert re.fullmatch(line, said), said
    needed = re.search(r"raise it to (\d+) or more, .*or leave the row out$", said)[1]
    assert "micro_batch" not in check(recipe, *overrides, f"compute.tokens_per_micro_batch={needed}")[1]


# The tokens of a micro-batch, files with one row too wide for what is drawn on it, and overrides.
DRAWN = {
    "train.jsonl:2": {
        "samples of an arm": (36, {"train.jsonl": MORE_TRAIN}, ["arms={a: {method: ppo, feedback: judge}}"]),
        "the weaker policy's": (24, {"train.jsonl": MORE_TRAIN}, [OFFLINE, NO_PAIRS]),
        "candidates for the reward model": (28, {"train.jsonl": MORE_TRAIN}, ["arms={a: {method: ppo, samples_per_prompt: 1}}", "data.candidates_per_prompt=3"]),
    },
    "pairs.jsonl:1": {
        "a pair's prompt": (24, more_pairs(prompt="q" * 9), ["arms={b: {method: dpo, data: on_policy}}"]),
        "a sample beside a given side": (24, more_pairs(rejected="n" * 12), ["arms={b: {method: dpo, data: chosen_on_policy}}"]),
    },
    "test.jsonl:1": {
        "held-out pairs of an arm's own kind": (
            24, {"test.jsonl": jsonl({"prompt": "h" * 9, "reference": "a"}, *TEST)}, ["arms={b: {method: dpo, data: online}}", "evaluation.prompts=4"],
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "most", "changed", "overrides"),
    [pytest.param(place, *row, id=name) for place, rows in DRAWN.items() for name, row in rows.items()],
)
def test_a_row_that_is_too_wide_for_what_is_drawn_on_it_is_left_out_where_such_rows_are(
    place, most, changed, overrides, tmp_path, monkeypatch
):
    recipe = write_files(tmp_path, **changed)
    monkeypatch.chdir(tmp_path)
    task = next((o for o in overrides if o.startswith("task=")), FILES).replace("kind", "unusable: leave_out, kind")
    others = [o for o in overrides if not o.startswith("task=")]
    counts = ["data.off_policy_pairs=3", "data.held_out_pairs=1", f"compute.tokens_per_micro_batch={most}"]
    inputs = prepare_inputs(load_recipe(recipe, [*others, task, *counts]), Cache(tmp_path / "cache"))
    assert (
        f"rows left out as they were encoded: 1 with more tokens than compute.tokens_per_micro_batch (first {place})"
        in inputs.notes
    )
    without = [
        note
        for note in inputs.notes
        if note == "1 of 6 prompts to train on are left out, since held-out pairs have them"
    ]
    assert len(inputs.train) == 6 - len(without) and (inputs.pairs is None or len(inputs.pairs) == 3)
    assert len(inputs.held_out["in_distribution"]) == (4 if place == "test.jsonl:1" else 2)


FULL = other_pairs(prompt="q" * 57)  # 58 tokens of 64, with room for the pair's sides and not for 8 tokens


@pytest.mark.parametrize("mode", ["on_policy", "chosen_on_policy", "rejected_on_policy"])
def test_a_pairs_prompt_leaves_room_for_what_an_arm_draws(mode, tmp_path):
    recipe = write_files(tmp_path, **FULL)
    said = refusal(recipe, f"arms={{b: {{method: dpo, data: {mode}}}}}")
    assert re.fullmatch(
        r".*pairs\.jsonl:1: the prompt's 58 tokens leave no room for data\.max_response_tokens 8, which arm b draws, "
        r"within model\.max_length 64; raise model\.max_length, or leave the row out",
        said,
    ), said


@pytest.mark.parametrize("arms", ["{b: {method: dpo}}", "{b: {method: dpo, data: online}}", "{a: {method: ppo}}"])
def test_a_pairs_prompt_that_no_arm_samples_on_may_fill_the_context(arms, tmp_path):
    assert check(write_files(tmp_path, **FULL), f"arms={arms}") == (0, "")


def test_a_held_out_pairs_prompt_may_fill_the_context(tmp_path):
    """Of the four pairs' prompts one is held out, and the others are sampled on; each of them is the full one in its turn."""
    codes = []
    for full in range(4):
        rows = [pair | {"prompt": "q" * 57} if n == full else pair for n, pair in enumerate(PAIRS)]
        recipe = write_files(tmp_path, **{"pairs.jsonl": jsonl(*rows)})
        codes.append(check(recipe, "arms={b: {method: dpo, data: on_policy}}")[0])
    assert sorted(codes) == [0, 2, 2, 2]


@pytest.mark.parametrize("mode", ["offline", "rejected_on_policy"])
def test_what_is_drawn_into_no_row_may_be_wider(mode, tmp_path):
    recipe = write_files(tmp_path, **other_pairs(rejected="n" * 12, chosen="y"))
    most = {"offline": 19, "rejected_on_policy": 20}[mode]
    assert check(recipe, f"arms={{b: {{method: dpo, data: {mode}}}}}", f"compute.tokens_per_micro_batch={most}") == (
        0,
        "",
    )
