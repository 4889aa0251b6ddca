"""What a first recipe can tell of data by its columns, verdicts on two answers, and prompts and pairs held out by a share."""

import json
from pathlib import Path

import pytest

from rlhf_bench.core.errors import BadInput
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.loading.layouts import layout_of
from rlhf_bench.tasks.loading.settings import FilesSettings

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not at ../shared/data")


def written(folder, *rows):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return str(path)


def judged(n, *verdicts, **more):
    row = {"instruction": f"do {n}", "input": "", "response1": f"first {n}", "response2": f"second {n}"}
    return row | {f"annotator{i}": verdict for i, verdict in enumerate(verdicts, 1)} | more


def task_of(path, **changes):
    return build_task(FilesSettings.model_validate(layout_of(path, {}, 0.5).task | changes))


def test_an_answer_is_preferred_that_more_than_half_of_the_verdicts_name(tmp_path):
    rows = [judged(0, 1, 1, 2), judged(1, 2, 2, 2), judged(2, 0, 0, 1), judged(3, 0, 1, 2), judged(4, 1, 0, 1)]
    rows += [judged(n, 1, 1, 1) for n in range(5, 25)]
    task = task_of(written(tmp_path, *rows))
    pairs = [*task.pairs(task.sizes["pairs"], 0), *task.held_out_pairs(task.sizes["held-out pairs"], 0)]
    better = {pair.prompt.text: (pair.chosen, pair.rejected) for pair in pairs}
    assert better["do 0"] == ("first 0", "second 0") and better["do 1"] == ("second 1", "first 1")
    assert better["do 4"] == ("first 4", "second 4") and len(better) == 23
    assert any("2 with no preferred answer (first rows.json:3)" in note for note in task.notes)


def test_all_rows_of_a_prompt_are_on_one_side_of_the_share(tmp_path):
    rows = [judged(n % 40, 1, 1, 2) | {"response2": f"other {n}"} for n in range(120)]
    task = task_of(written(tmp_path, *rows))
    train, held_out = (task.prompts(split, task.sizes[split], 0) for split in ("train", "in_distribution"))
    assert {p.text for p in train}.isdisjoint({p.text for p in held_out}) and len(train) + len(held_out) == 40
    pairs, apart = task.pairs(task.sizes["pairs"], 0), task.held_out_pairs(task.sizes["held-out pairs"], 0)
    assert {p.prompt.id for p in pairs} == {p.id for p in train} and len(pairs) == 3 * len(train)
    assert {p.prompt.id for p in apart} == {p.id for p in held_out} and len(apart) == 3 * len(held_out)
    assert not any("left out" in note for note in task.notes)  # further pairs on a prompt are no repeats of it


def test_the_texts_of_several_columns_make_one_prompt(tmp_path):
    rows = [judged(n, 1, 1, 2, input=f"with {n}" if n % 2 else "") for n in range(20)]
    texts = {pair.prompt.text for pair in task_of(written(tmp_path, *rows)).pairs(5, 0)}
    assert texts <= {f"do {n}\n\nwith {n}" if n % 2 else f"do {n}" for n in range(20)}


def test_a_share_that_leaves_one_side_empty_is_refused(tmp_path):
    with pytest.raises(
        BadInput, match=r"task\.held_out_share: .* leaves none for (train|in_distribution); (lower|raise) it"
    ):
        task_of(written(tmp_path, judged(1, 1, 1, 2)))


KNOWN = {
    "TRL's pairs": ({"prompt": "p", "chosen": "a", "rejected": "b"}, {"pairs", "judge"}, "overlap"),
    "TRL's pairs, prompt implied": ({"chosen": "p a", "rejected": "p b"}, {"pairs"}, "overlap"),
    "TRL's unpaired rows": ({"prompt": "p", "completion": "a", "label": True}, {"response_column"}, "overlap"),
    "short answers": ({"prompt": "p", "reference": "a"}, {"response_column"}, "exact"),
    "worked answers": ({"question": "p", "answer": "so\n#### 7"}, {"prompt_column"}, "number"),
    "boxed answers": ({"question": "p", "answer": "so \\boxed{7}"}, {"reference_column"}, "boxed"),
    "long answers": ({"instruction": "p", "input": "i", "output": "word " * 40}, {"prompt_column"}, "overlap"),
    "IFEval's": ({"prompt": "p", "instruction_id_list": ["x"], "kwargs": [{}]}, {"judge"}, "ifeval"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "keys", "judge"), KNOWN.values(), ids=KNOWN)
def test_what_columns_say(row, keys, judge, tmp_path):
    layout = layout_of(written(tmp_path, row), {}, 0.1)
    assert keys <= layout.task.keys() and layout.task["judge"] == judge and layout.assumed
    FilesSettings.model_validate(layout.task)


UNKNOWN = {
    "no such columns": ({"text": "t", "score": 1}, {}, r"--data: .* has the columns text, score, .*wanted are .*--map .*"),
    "verdicts of another kind": ({"prompt": "p", "response_a": "a", "response_b": "b", "winner": "model_a"}, {},
                                 r"--data: the verdicts in winner are model_a, .*--map values=FIRST,SECOND"),
    "a column that is not there": ({"prompt": "p"}, {"reference": ["answr"]}, r"--map: .* has no column answr .*; correct .*"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "named", "line"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_is_said_in_one_line(row, named, line, tmp_path):
    with pytest.raises(BadInput, match=line) as refused:
        layout_of(written(tmp_path, row), named, 0.1)
    assert len(refused.value.problems) == 1


def test_columns_that_the_user_names(tmp_path):
    row = {"ask": "p", "a": "x", "b": "y", "who": "left"}
    named = {"prompt": ["ask"], "answers": ["a", "b"], "verdicts": ["who"], "values": ["left", "right"]}
    task = layout_of(written(tmp_path, row), named, 0.1).task
    assert task["verdicts"] == {"answers": ["a", "b"], "columns": ["who"], "values": ["left", "right"]}
    assert task["prompt_column"] == "ask" and task["pairs"] == task["prompts"]


@needs_data
def test_pandalms_verdicts():
    """By the file itself: 999 rows; 105 without a majority for one answer, 59 with an answer that is empty or no text."""
    task = build_task(FilesSettings.model_validate(layout_of(str(DATA / "pandalm" / "testset-v1.json"), {}, 0.2).task))
    assert task.sizes["pairs"] + task.sizes["held-out pairs"] == 999 - 105 - 59
    assert layout_of(str(DATA / "gsm8k"), {}, 0.1).task == {"kind": "gsm8k", "folder": str(DATA / "gsm8k")}
