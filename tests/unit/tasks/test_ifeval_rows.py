"""One's own rows with IFEval's columns: judged by the instructions that they name."""

import json

import pytest

from rlhf_bench.core.errors import BadInput
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.files import FilesSettings

ROW = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def task(folder, train, pairs=None, **more):
    held_out = [{"prompt": "Held out.", "instruction_id_list": ["startend:quotation"], "kwargs": [{"num_words": None}]}]
    for name, rows in {"train": train, "held_out": held_out, "pairs": pairs or []}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    place = {"pairs": str(folder / "pairs.jsonl")} if pairs else {}
    return build_task(
        FilesSettings(
            prompts=str(folder / "train.jsonl"),
            held_out=str(folder / "held_out.jsonl"),
            judge="ifeval",
            response_column=None,
            **place,
            **more,
        )
    )


def test_rows_are_judged_by_their_own_instructions(tmp_path):
    found = task(tmp_path, [{"prompt": "Say it."} | ROW])
    (train,), (held_out,) = (found.prompts(split, 1, 0) for split in ("train", "in_distribution"))
    assert found.judge(train, "It is said.").score == 1 and found.judge(train, "So, it is said.").score == 0
    assert found.judge(held_out, '"Yes, it is."').parts["prompt_strict"] == 1


def test_pairs_need_no_instructions_of_their_own(tmp_path):
    sides = {"chosen": "Yes.", "rejected": "Well, yes."}
    pairs = [{"prompt": "Say it."} | sides, {"prompt": "Another."} | sides | ROW, {"prompt": "A third."} | sides]
    found = {pair.prompt.text: pair for pair in task(tmp_path, [{"prompt": "Say it."} | ROW], pairs).pairs(3, 0)}
    assert json.loads(found["Another."].prompt.answer) == json.loads(found["Say it."].prompt.answer) == ROW
    assert found["A third."].prompt.answer == ""


def test_a_row_that_cannot_be_verified_is_refused_or_left_out_and_counted(tmp_path):
    download = {"instruction_id_list": ["length_constraints:number_sentences"], "kwargs": [{}]}
    rows = [{"prompt": "Say it."} | ROW, {"prompt": "In three sentences."} | download]
    with pytest.raises(BadInput, match=r"train\.jsonl:2: length_constraints:number_sentences needs a sentence model"):
        task(tmp_path, rows)
    found = task(tmp_path, rows, unusable="leave_out")
    assert any("1 with length_constraints:number_sentences, which needs a download" in note for note in found.notes)
    with pytest.raises(BadInput, match=r"train\.jsonl:1: no column 'kwargs'"):
        task(tmp_path, [{"prompt": "Say it.", "instruction_id_list": []}])
