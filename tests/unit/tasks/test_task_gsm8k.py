"""GSM8K from its released files: what goes into which split, and that the judge agrees with the release's grades."""

import json
from collections import Counter
from pathlib import Path

import pytest

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Prompt
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.gsm8k import Gsm8kSettings

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"
needs_data = pytest.mark.skipif(not FOLDER.is_dir(), reason="GSM8K's files are not at ../shared/data/gsm8k")


@pytest.fixture(scope="module")
def task():
    return build_task(Gsm8kSettings(folder=FOLDER))


@pytest.fixture(scope="module")
def counts(task):
    """How many prompts each split has, read from the error that asking for too many gives."""
    found = {}
    for split in task.splits:
        with pytest.raises(BadInput) as error:
            task.prompts(split, 10**6, 0)
        found[split] = int(str(error.value).rsplit("at most ", 1)[1])
    return found


def words(text):
    return "".join(character if character.isalpha() else " " for character in text.lower()).split()


def rows(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").open(encoding="utf-8")]


@needs_data
def test_held_out_prompts_are_the_questions_without_graded_solutions(task, counts):
    graded = {" ".join(row["question"].split()) for row in rows("example_model_solutions")}
    held_out = [p for split in task.splits[1:] for p in task.prompts(split, counts[split], 0)]
    assert len(held_out) == len({p.id for p in held_out}) == 319
    assert not {" ".join(p.text.split()) for p in held_out} & graded
    assert counts["train"] == 5769 and counts["out_of_distribution"] == 75


@needs_data
def test_out_of_distribution_questions_take_more_steps_than_training(task, counts):
    steps = {row["question"].strip() + "\n": row["answer"].strip().count("\n") for row in rows("test") + rows("train")}
    assert max(steps[p.text] for p in task.prompts("train", counts["train"], 0)) == 4
    assert min(steps[p.text] for p in task.prompts("out_of_distribution", counts["out_of_distribution"], 0)) == 5
    assert max(steps[p.text] for p in task.prompts("unseen", counts["unseen"], 0)) <= 4


@needs_data
def test_unseen_questions_have_a_word_training_never_has(task, counts):
    texts = [d.prompt.text + d.response for d in task.demonstrations(counts["train"], 0)]
    texts += [pair.prompt.text + pair.chosen + "\n" + pair.rejected for pair in task.pairs(1549, 0)]
    known = {word for text in texts for word in words(text)}
    assert all(set(words(prompt.text)) - known for prompt in task.prompts("unseen", counts["unseen"], 0))


@needs_data
def test_judge_agrees_with_every_grade_of_the_release(task):
    pairs = task.pairs(1549, 0)
    assert all(task.judge(pair.prompt, pair.chosen).score == 1 for pair in pairs)
    assert all(task.judge(pair.prompt, pair.rejected).score == 0 for pair in pairs)
    assert all("####" in text and "\nA: " not in text for pair in pairs for text in (pair.chosen, pair.rejected))
    assert {model for pair in pairs for model in pair.source.split(">")} == {
        "6b_finetuning",
        "6b_verification",
        "175b_finetuning",
        "175b_verification",
    }


@needs_data
def test_pairs_spread_over_the_questions_first(task):
    questions = len({pair.prompt.id for pair in task.pairs(1549, 0)})
    assert set(Counter(pair.prompt.id for pair in task.pairs(questions, 1)).values()) == {1}
    assert task.pairs(50, 1) == task.pairs(50, 1) == task.pairs(200, 1)[:50] != task.pairs(50, 2)


@needs_data
def test_demonstrations_are_right_and_without_calculator_notes(task):
    demonstrations = task.demonstrations(500, 3)
    assert [d.prompt for d in demonstrations] == task.prompts("train", 500, 3)
    assert all(task.judge(d.prompt, d.response).score == 1 and "<<" not in d.response for d in demonstrations)
    kept = build_task(Gsm8kSettings(folder=FOLDER, strip_calculator=False)).demonstrations(500, 3)
    assert any("<<" in d.response for d in kept)


@needs_data
def test_limits_drop_long_texts_and_say_how_many(task, counts):
    small = build_task(Gsm8kSettings(folder=FOLDER, max_prompt_characters=160, max_response_characters=200))
    demonstrations, pairs = small.demonstrations(1000, 0), small.pairs(200, 0)
    assert max(len(d.prompt.text.strip()) for d in demonstrations) <= 160
    assert max(len(d.response) for d in demonstrations) <= 200
    assert max(len(text) for pair in pairs for text in (pair.chosen, pair.rejected)) <= 200
    assert small.notes[0] == "train: 1128 of 7473 questions are within the limits on length and steps"
    assert small.notes[1].startswith("pairs: 215 of 1855 ")
    with pytest.raises(BadInput, match="gsm8k, preference pairs: 10000 are asked for and 215 are there"):
        small.pairs(10000, 0)
    assert {p.id for p in small.prompts("unseen", 10, 0)} <= {p.id for p in task.prompts("unseen", counts["unseen"], 0)}


@needs_data
def test_corpus_has_every_character(task):
    known = set("".join(task.corpus()))
    assert known >= {c for split in task.splits for p in task.prompts(split, 70, 0) for c in p.text + p.answer}


SOLVED = {"question": "How many?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}
GRADED = {"question": "How few?", "ground_truth": "1 + 2 = 3\nA: 3"} | {
    model: {"solution": f"So {n}\nA: {n}", "is_correct": n == 3}
    for n, model in enumerate(("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"), start=1)
}


def write(folder, train=SOLVED, test=SOLVED | {"question": "How much?"}, graded=GRADED):
    for name, row in {"train": train, "test": test, "example_model_solutions": graded}.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return Gsm8kSettings(folder=folder)


def test_one_question_each(tmp_path):
    task = build_task(write(tmp_path))
    assert task.prompts("train", 1, 0) == [Prompt("gsm8k/train/000001", "How many?\n", "2")]
    assert task.demonstrations(1, 0)[0].response == "1 + 1 = 2\n#### 2"
    assert task.prompts("unseen", 1, 0)[0].text == "How much?\n"
    pairs = task.pairs(3, 0)
    assert {(pair.chosen, pair.rejected, pair.source) for pair in pairs} == {
        ("So 3\n#### 3", f"So {n}\n#### {n}", f"175b_finetuning>{model}")
        for n, model in ((1, "6b_finetuning"), (2, "6b_verification"), (4, "175b_verification"))
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train": {"question": "Why?", "answer": "no number"}}, "train.jsonl:1: no single number after '####'"),
        ({"test": {"question": "Why?"}}, r"test.jsonl:1: no column 'answer' \(there is: question\)"),
        (
            {"graded": GRADED | {"6b_finetuning": {"solution": "x"}}},
            "solutions.jsonl:1: '6b_finetuning' is not an object",
        ),
    ],
)
def test_bad_rows(tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        build_task(write(tmp_path, **change))


def test_faults_of_all_three_files_are_named_at_once(tmp_path):
    bad = {"question": "Why?", "answer": "no number"}
    settings = write(
        tmp_path, train=bad, test={"question": "Why?"}, graded=GRADED | {"6b_finetuning": {"solution": "x"}}
    )
    (tmp_path / "train.jsonl").open("a").write(json.dumps(bad | {"question": "Why not?"}) + "\n")
    with pytest.raises(BadInput) as refused:
        build_task(settings)
    places = [problem.split(":")[0].rpartition("/")[2] for problem in refused.value.problems]
    assert places == ["train.jsonl", "test.jsonl", "example_model_solutions.jsonl"]
    assert refused.value.problems[0].endswith("(1 more row whose solution does not end with a number)")


def test_solutions_without_an_answer_line_are_left_out_and_counted(tmp_path):
    assert not any("left out" in note for note in build_task(write(tmp_path)).notes)
    endless = {model: {"solution": "So so so", "is_correct": False} for model in ("6b_finetuning", "6b_verification")}
    task = build_task(write(tmp_path, graded=GRADED | endless))
    assert [(pair.chosen, pair.rejected) for pair in task.pairs(1, 0)] == [("So 3\n#### 3", "So 4\n#### 4")]
    assert task.notes[-1] == "graded solutions left out: 2 without an answer line"


@needs_data
def test_the_releases_own_solutions_without_an_answer_line(task):
    unanswered = sum(
        "\nA: " not in row[model]["solution"]
        for row in rows("example_model_solutions")
        for model in GRADED
        if model.startswith(("6b", "175b"))
    )
    assert unanswered and task.notes[-1] == f"graded solutions left out: {unanswered} without an answer line"


def test_every_text_says_which_row_it_is_from(tmp_path):
    task = build_task(write(tmp_path))
    assert task.demonstrations(1, 0)[0].prompt.where == f"{tmp_path}/train.jsonl:1"
    assert task.prompts("unseen", 1, 0)[0].where == f"{tmp_path}/test.jsonl:1"
    assert {pair.prompt.where for pair in task.pairs(3, 0)} == {f"{tmp_path}/example_model_solutions.jsonl:1"}


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(BadInput, match="task.folder: there is no folder .*nowhere"):
        build_task(Gsm8kSettings(folder=tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="task.folder: there is no file .*train.jsonl"):
        build_task(Gsm8kSettings(folder=tmp_path))
