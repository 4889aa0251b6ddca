"""Files of pairs that people have judged."""

import json
from pathlib import Path

import pytest

from rlhf_bench.core.contests import Contest
from rlhf_bench.core.errors import BadInput
from rlhf_bench.llm_judge.labels import read_labelled

PANDALM = Path(__file__).parents[4] / "shared" / "data" / "pandalm" / "testset-v1.json"
ROW = {"instruction": "Add.", "input": "1+1", "response1": "2", "response2": "3"}


def people(*verdicts):
    return ROW | {f"annotator{number}": v for number, v in enumerate(verdicts, 1)}


def test_of_pandalm_those_count_on_whose_better_side_all_agree(tmp_path):
    rows = [people(1, 1, 1), people(2, 2, 2), people(0, 0, 0), people(1, 1, 2)]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    found = read_labelled(tmp_path / "p.json")
    assert sorted(found.labels) == [0.0, 1.0] and found.note.startswith("the 2 of 4 pairs")
    assert set(found.contests) == {Contest("Add.\n\n1+1", "2", "3")}


@pytest.mark.skipif(not PANDALM.exists(), reason="PandaLM's file is not beside the repository")
def test_pandalms_own_file():
    found = read_labelled(PANDALM)
    assert len(found.contests) == 794 and "794 of 999" in found.note and set(found.labels) == {0.0, 1.0}


def test_rows_of_ones_own(tmp_path):
    rows = [{"prompt": label, "a": "x", "b": "y", "label": label} for label in ("a", "b", "tie")]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = read_labelled(tmp_path / "p.jsonl")
    labels = {contest: label for contest, label in zip(found.contests, found.labels, strict=True)}
    assert labels == {Contest("a", "x", "y"): 1.0, Contest("b", "x", "y"): 0.0, Contest("tie", "x", "y"): 0.5}


def test_the_first_of_them_are_a_sample_of_all(tmp_path):
    rows = [{"prompt": f"{n}", "a": "x", "b": "y", "label": "a" if n < 200 else "b"} for n in range(400)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_labelled(tmp_path / "p.jsonl")
    assert found == read_labelled(tmp_path / "p.jsonl")  # and always the same one
    assert 0.35 < sum(found.labels[:100]) / 100 < 0.65
    assert all((int(c.prompt) < 200) == (label == 1.0) for c, label in zip(found.contests, found.labels, strict=True))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"prompt": "p", "a": "x", "b": "y", "label": "A"}', ["line 1", "label is 'A'", "a, b or tie"]),
        ('{"prompt": "p", "a": null, "label": "a"}', ["line 1", "a, b"]),
        ("nonsense", ["line 1", "JSON object"]),
        ("", ["no pair"]),
        ("[", ["no JSON"]),
        ("[3]", ["entry 0", "instruction"]),
        (json.dumps([people(1, 1, 3)]), ["entry 0", "annotator1", "[1, 1, 3]"]),
        (json.dumps([people(0, 0, 0)]), ["no pair", "0 of 1"]),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_row(tmp_path, content, named):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(BadInput) as refused:
        read_labelled(tmp_path / "p.json")
    assert all(word in str(refused.value) for word in ["--agreement", "p.json", *named])


def test_of_many_wrong_rows_ten_are_named(tmp_path):
    (tmp_path / "p.jsonl").write_text("{}\n" * 30)
    with pytest.raises(BadInput) as refused:
        read_labelled(tmp_path / "p.jsonl")
    assert len(refused.value.problems) == 11 and refused.value.problems[-1].startswith("and 20 more")
