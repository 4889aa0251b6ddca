"""The files task: the user's own data and its judges. Rows that it refuses stand in test_bad_rows.py."""

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rlhf_bench.core.errors import BadInput
from rlhf_bench.tasks import TASKS, TaskSettings, build_task
from rlhf_bench.tasks.judges.answers import final_number, judge_exact, judge_number
from rlhf_bench.tasks.loading.settings import FilesSettings

TRAIN = [{"prompt": f"q{n}?", "reference": f"a{n}", "response": f"a{n}"} for n in range(6)]
HELD_OUT = [{"prompt": f"h{n}?", "reference": f"a{n}"} for n in range(4)]
PAIRS = [
    {"prompt": "q1?", "chosen": "a1", "rejected": "no"},
    {"prompt": "q1?", "chosen": "a1", "rejected": "never"},
    {"prompt": "other?", "chosen": "yes", "rejected": "no", "reference": "yes"},
    {"prompt": "bare?", "chosen": "yes", "rejected": "no"},
]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    for name, rows in {"train": TRAIN, "test": HELD_OUT, "pairs": PAIRS}.items():
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


def build(folder, **changes):
    files = {"prompts": folder / "train.jsonl", "held_out": folder / "test.jsonl", "pairs": folder / "pairs.jsonl"}
    return build_task(FilesSettings(**(files | changes)))


def test_prompts_demonstrations_and_pairs(folder):
    task = build(folder)
    assert task.splits == ("train", "in_distribution")
    assert {p.text: p.answer for p in task.prompts("train", 6, 0)} == {r["prompt"]: r["reference"] for r in TRAIN}
    held_out = {p.id for p in task.prompts("in_distribution", 4, 0)}
    assert held_out == {f"files/in_distribution/{n:06d}" for n in range(1, 5)}
    assert all(d.response == d.prompt.answer for d in task.demonstrations(6, 0))
    assert [d.prompt for d in task.demonstrations(4, 7)] == task.prompts("train", 4, 7)
    pairs = {pair.rejected: pair for pair in task.pairs(4, 0)}
    assert pairs["never"].prompt == next(p for p in task.prompts("train", 6, 0) if p.text == "q1?")
    assert {pair.prompt.text: pair.prompt.answer for pair in task.pairs(4, 0)} == {
        "q1?": "a1",
        "other?": "yes",
        "bare?": "",
    }
    assert task.notes == ("prompts: 6 train, 4 in_distribution; preference pairs: 4",)


def test_order_depends_on_the_seed_alone(folder):
    task, again = build(folder), build(folder)
    assert task.prompts("train", 6, 3) == again.prompts("train", 6, 3)
    assert task.pairs(4, 3) == again.pairs(4, 3)
    assert task.prompts("train", 2, 3) == task.prompts("train", 6, 3)[:2]
    assert len({tuple(p.id for p in task.prompts("train", 6, seed)) for seed in range(10)}) > 1


def test_parquet_reads_like_jsonl(folder):
    for name, rows in {"train": TRAIN, "test": HELD_OUT}.items():
        pa.parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    task = build(folder, prompts=folder / "train.parquet", held_out=folder / "test.parquet")
    assert task.prompts("train", 6, 0) == build(folder).prompts("train", 6, 0)


def test_columns_can_have_other_names(folder):
    rows = [{"name": f"n{n}", "q": f"q{n}", "a": n, "out": str(n)} for n in range(3)]
    train = write_jsonl(folder / "t.jsonl", rows)
    held_out = write_jsonl(folder / "h.jsonl", [{"name": "x", "q": "held", "a": 1.5}])
    task = build(
        folder,
        prompts=train,
        held_out=held_out,
        pairs=None,
        id_column="name",
        prompt_column="q",
        reference_column="a",
        response_column="out",
        judge="number",
    )
    assert {(p.id, p.text, p.answer) for p in task.prompts("train", 3, 0)} == {
        (f"files/train/n{n}", f"q{n}", str(n)) for n in range(3)
    }
    assert task.pairs is None
    assert task.judge(task.prompts("in_distribution", 1, 0)[0], "so #### 1.50").score == 1


def test_no_demonstrations_is_said_when_they_are_asked_for(folder):
    with pytest.raises(BadInput, match="task.response_column: null leaves no demonstrations"):
        build(folder, response_column=None).demonstrations(1, 0)


@pytest.mark.parametrize("split, count, there", [("train", 7, 6), ("unseen", 1, 0)])
def test_asking_for_more_than_there_is(folder, split, count, there):
    with pytest.raises(BadInput, match=f"files, {split} prompts: {count} are asked for and {there} are there"):
        build(folder).prompts(split, count, 0)


@pytest.mark.parametrize(
    "text, number",
    [
        ("#### 72", "72"),
        ("so\n####72", "72"),
        ("#### $1,080", "1080"),
        ("#### -$5", "-5"),
        ("#### - 5", "-5"),
        ("#### \N{MINUS SIGN}5", "-5"),
        ("#### 0.5", "0.5"),
        ("#### .5", "0.5"),
        ("#### 10.", "10"),
        ("#### 007", "7"),
        ("#### 1 #### 2", "2"),
        ("#### 72 dollars", "72"),
        ("#### 25%", "25"),
        ("#### 1,234,567.25", "1234567.25"),
        ("72", None),
        ("", None),
        ("####", None),
        ("#### none", None),
        ("#### 1 or 2", None),
        ("#### 1/2", None),
        ("#### 1,2", None),
        ("#### 1e5", None),
        ("#### 3-5", None),
        ("#### 12,3456", None),
        ("#### ٧", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text, "####") == (None if number is None else Decimal(number))


def test_numbers_are_compared_exactly():
    assert judge_number("#### 0.10", "0.1", "####").parts == {"answer": 1, "format": 1}
    assert judge_number("#### 0.1000000000000000000001", "0.1", "####").score == 0
    assert judge_number("#### 7", "six and one make #### 7", "####").score == 1
    assert judge_number("7", "7", "####").parts == {"answer": 0, "format": 0}
    assert judge_number("the answer is 7", "7", "answer is").score == 1


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_any_number_is_read_back(value):
    assert final_number(f"#### {value:,f}", "####") == value
    assert final_number(f"#### {value:f}", "####") == value


@given(st.text() | st.text("0123456789.,-$# \n"))
def test_judges_take_any_text(response):
    assert judge_number("####" + response, "5", "####").score in (0, 1)
    assert judge_exact(response, "5").score == float(response.strip() == "5")


def test_recipe_picks_the_settings_by_kind():
    adapter = TypeAdapter(TaskSettings)
    for kind, entry in TASKS.items():
        needs = {
            "files": {"prompts": "a", "held_out": "b"},
            "gsm8k": {"folder": "c"},
            "reasoning_gym": {"dataset": "leg_counting"},
            "mixture": {"train": {"kind": "arithmetic"}, "transfer": {"kind": "verse"}},
        }.get(kind, {})
        assert isinstance(adapter.validate_python({"kind": kind, **needs}), entry.settings)
        assert all(field.description for field in entry.settings.model_fields.values())
    with pytest.raises(ValidationError, match="digitz"):
        adapter.validate_python({"kind": "arithmetic", "digitz": 3})
    with pytest.raises(ValidationError, match="kind"):
        adapter.validate_python({"kind": "poker"})
