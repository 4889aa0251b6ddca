"""`check` says all that is wrong at once: a mistake in one place hides none in another, and makes none up."""

from tests.support.checking import ENOUGH, TRAIN, jsonl, refusals, write_files


def keys(*arguments):
    """What each line of a refusal is about."""
    return [line.partition(":")[0].rpartition("/")[2] for line in refusals(*arguments)]


def test_recipe_data_and_model_are_looked_at_whatever_is_wrong_with_the_others(tmp_path):
    path = write_files(tmp_path, **{"test.jsonl": b"", "pairs.jsonl": b"nonsense\n"})
    wrong = ["sede=1", "arms.b.clip=0.1", "seeds=[-1]", "model.name_or_path=./none",
             "model.tokenizer={kind: pretrained, name_or_path: ./none}"]  # fmt: skip
    found = keys(path, *wrong)
    assert found == ["seeds", "sede", "arms.b.clip", "task.held_out", "pairs.jsonl", "model.name_or_path"]


def test_keys_that_do_not_go_together_are_all_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    lines = refusals(
        tmp_path / "recipe.yaml", "data.max_response_tokens=64", "baseline=none", "model.lora={}", "sft=null",
        "placement={pinned: true, weight_sync: nccl}",
    )  # fmt: skip
    about = ("placement: pinned", "placement: weight_sync", "data.max_response_tokens", "sft: null needs", "model.lora needs",
             "baseline: there is no arm", "arms.b.data: offline needs")  # fmt: skip
    assert len(lines) == len(about), lines
    assert all(sum(part in line for line in lines) == 1 for part in about), lines


def test_a_section_that_is_wrong_is_the_reason_for_no_other_line(tmp_path):
    """With its default in the place of train_prompts there would be too few prompts, and a budget that is missing is none of 1."""
    path = write_files(tmp_path)
    assert keys(path, "data.train_prompts=many") == ["data.train_prompts"]
    assert keys(path, "compute={column: flops}") == ["compute.limit"]
    assert keys(path, "task.judge=nobody", "evaluation.splits=[in_distribution, unseen]") == ["task.judge"]


def test_rows_of_all_kinds_and_files_are_named_with_how_many_more(tmp_path):
    train = jsonl(*TRAIN, {"prompt": "", "reference": "a", "response": "a"}, {"prompt": "x", "reference": {}, "response": "a"},
                  {"prompt": " ", "reference": "a", "response": "a"})  # fmt: skip
    path = write_files(tmp_path, **{"train.jsonl": train, "pairs.jsonl": jsonl({"prompt": "q", "chosen": "a"})})
    empty, other, pair = refusals(path)
    assert "train.jsonl:7" in empty and empty.endswith("(1 more row with an empty text)")
    assert "train.jsonl:8" in other and "pairs.jsonl:1" in pair


def test_rows_that_cannot_be_encoded_make_no_other_problem_up(tmp_path):
    """Too long a prompt makes too long a row as well, and of no pairs none is on a held-out prompt."""
    long = {"prompt": "q" * 90, "reference": "a", "response": "a", "chosen": "yes", "rejected": "no"}
    (prompt,) = refusals(write_files(tmp_path, **{"train.jsonl": jsonl(*TRAIN[:5], long)}))
    assert "train.jsonl:6: the prompt's 91 tokens leave no room" in prompt
    pairs = [long | {"prompt": f"{n}{'q' * 90}"} for n in range(4)]
    (pair,) = refusals(write_files(tmp_path, **{"pairs.jsonl": jsonl(*pairs)}))
    assert pair.endswith("(3 more rows with more tokens than model.max_length)")


def test_budget_and_lengths_and_counts_come_together(tmp_path):
    path = write_files(tmp_path)
    assert keys(path, "data.train_prompts=99", "data.off_policy_pairs=99") == [
        "task files, train prompts",
        "task files, preference pairs",
    ]
    assert keys(path, "compute.limit=10", "placement={learner: {gpus: 1}, device: {memory_gib: 0.5}}") == [
        "placement",
        "compute.limit",
        "compute.limit",
    ]


def test_overrides_and_values_of_a_series_are_all_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    assert keys(tmp_path / "recipe.yaml", "seeds", "name=[", "arms") == ["seeds", "name", "arms"]
    series = "vary={key: sft.steps, values: [0, 5, -1]}"
    assert keys(tmp_path / "recipe.yaml", series) == ["sft.steps", "sft.steps"]
