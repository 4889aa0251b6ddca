"""Data as it comes: what public data sets were found to have in their rows, and the neighbours of each in kind. Every column and
key is used, refused by name or counted. Those of ../shared/cases are tried as they lie there."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Turn
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.loading.data_source import Place, rows_at
from rlhf_bench.tasks.loading.messages import check_columns
from rlhf_bench.tasks.loading.rows import FileRow
from rlhf_bench.tasks.loading.settings import FilesSettings
from rlhf_bench.tasks.loading.trl import Columns, answered, asked, preference

COLUMNS = Columns("prompt", "chosen", "rejected")
CASES = Path(__file__).parents[4] / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not at ../shared/cases")
datasets.disable_progress_bars()


def turn(role):
    return lambda content, **keys: {"role": role, "content": content, **keys}


user, said, system = turn("user"), turn("assistant"), turn("system")
A, B = [said("a")], [said("b")]


def row(**values):
    return FileRow("x:1", 1, values)


def kind(read, one):
    with pytest.raises(Unusable) as refused:
        read(one)
    assert str(refused.value).startswith("x:1: ") and len(refused.value.problems) == 1
    return refused.value.kind


def pair(one):
    return preference(one, COLUMNS)


def task_of(folder, held_out="held.jsonl", train="train.jsonl", **settings):
    given = {"reference_column": "chosen", "response_column": "chosen", "judge": "overlap"} | settings
    return build_task(FilesSettings(prompts=str(folder / train), held_out=str(folder / held_out), **given))


# One prompt for a row.

ONE_PROMPT = {
    "system in the prompt alone": ([system("s"), user("q")], [user("q")], ("system", "user")),
    "system in the sides alone": ([user("q")], [system("s"), user("q")], ("system", "user")),
    "the same system in both": ([system("s"), user("q")], [system("s"), user("q")], ("system", "user")),
    "a text, and sides with a system": ("q", [system("s"), user("q")], ("system", "user")),
    "sides that are answers alone": ([system("s"), user("q")], [], ("system", "user")),
    "sides with the last turn of the prompt": ([user("o"), said("p"), user("q")], [user("q")], ("user", "assistant", "user")),
    "a prompt that is the first turn": ([user("q")], [user("q"), said("p"), user("r")], ("user", "assistant", "user")),
    "a text that is the last turn": ("q", [user("o"), said("p"), user("q")], ("user", "assistant", "user")),
    "white space around it": ("q ", [user("q")], ("user",)),
}  # fmt: skip


@pytest.mark.parametrize(("prompt", "before", "roles"), ONE_PROMPT.values(), ids=ONE_PROMPT)
def test_a_row_has_one_prompt_whoever_asks(prompt, before, roles):
    one = row(prompt=prompt, chosen=before + A, rejected=before + B)
    found, chosen, rejected = pair(one)
    assert (asked(one, COLUMNS), chosen, rejected) == (found, "a", "b")
    assert tuple(t.role for t in found.turns) == roles
    assert answered(one, "chosen", COLUMNS, found) == "a"


@pytest.mark.parametrize(("prompt", "before"), [
    ("q", [user("other")]), ([user("q")], [user("other")]), ([system("s"), user("q")], [system("t"), user("q")]),
    ([user("q"), said("p"), user("r")], [user("q"), said("x"), user("r")]), ("q", [said("q")]),
])  # fmt: skip
def test_a_prompt_that_contradicts_the_conversations_is_unusable(prompt, before):
    one = row(prompt=prompt, chosen=before + A, rejected=before + B)
    for read in (pair, lambda r: asked(r, COLUMNS)):
        assert kind(read, one) == "with a prompt that contradicts the conversation"


def test_an_answer_in_a_column_of_its_own_follows_the_rows_prompt():
    one = row(prompt=[user("q")], response=[user("q"), said("a")], other=[user("o"), said("a")])
    found = asked(one, COLUMNS)
    assert answered(one, "response", COLUMNS, found) == "a"
    assert (
        kind(lambda r: answered(r, "other", COLUMNS, found), one) == "with a prompt that contradicts the conversation"
    )
    longer = row(prompt=[user("q")], response=[user("q"), said("p"), user("r"), said("a")])
    assert "contradicts" in kind(lambda r: answered(r, "response", COLUMNS, asked(r, COLUMNS)), longer)


def test_a_conversation_that_both_are_read_from_and_a_prefill():
    talk = row(messages=[user("q"), said("a")], prompt=[user("q"), said("Sure,")])
    whole = Columns("messages", "chosen", "rejected", whole=True)
    assert [t.role for t in asked(talk, whole).turns] == ["user"]
    assert answered(talk, "messages", whole, asked(talk, whole)) == "a"
    assert [t.role for t in asked(talk, COLUMNS).turns] == ["user", "assistant"]  # the answer continues it


def test_a_system_column_begins_the_conversation():
    for prompt in ("q", [user("q")], [system("s"), user("q")]):
        found = asked(row(prompt=prompt, system="s"), COLUMNS)
        assert found.turns == (Turn("system", "s"), Turn("user", "q"))
    assert asked(row(prompt="q", system=" "), COLUMNS).turns == ()
    assert asked(row(prompt="q", system=None), COLUMNS).turns == ()
    found, chosen, _ = pair(
        row(system="s", chosen="\n\nHuman: q\n\nAssistant: a", rejected="\n\nHuman: q\n\nAssistant: b")
    )
    assert (found.turns[0], chosen) == (Turn("system", "s"), " a")
    assert "contradicts" in kind(pair, row(system="s", prompt=[system("t"), user("q")], chosen=A, rejected=B))
    assert kind(lambda r: asked(r, COLUMNS), row(prompt="q", system=5)) == "with another type where a text belongs"
    assert asked(row(system="q"), Columns("system", "chosen", "rejected")).text == "q"  # where it is the prompt


# Messages.

TEXTS = [
    ('[{"role": "user", "content": "q"}]', "q"), (' {"role": "user", "content": "q"}\n', "q"), ("[1, 2]", "[1, 2]"),
    ("[see below]", "[see below]"), ('{"a": 1}', '{"a": 1}'), ("[]", "[]"), ('{"role": "user"}', '{"role": "user"}'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "prompt"), TEXTS)
def test_messages_as_json_text_are_messages_and_other_texts_stay(text, prompt):
    one = row(prompt=text, chosen=json.dumps(A), rejected=json.dumps(B))
    found, chosen, rejected = pair(one)
    assert (found.text, chosen, rejected) == (prompt, "a", "b")


def test_a_single_message_and_texts_in_parts_are_read():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert pair(row(prompt="q", chosen=said(parts), rejected=said("b")))[1:] == ("ab", "b")


REFUSED_MESSAGES = {
    "null content": ([said(None)], "with an empty text"),
    "messages as Python writes them": (str(A), "with messages that cannot be read"),
    "ShareGPT's keys": ([{"from": "gpt", "value": "a"}], "with messages that cannot be read"),
    "an image among the texts": ([said([{"type": "image"}, {"type": "text", "text": "a"}])], "with content that is no text"),
    "half of a character in JSON text": ('[{"role": "assistant", "content": "\\ud83d"}]', "with half of a character"),
    "an answer that calls a tool": ([said(None, tool_calls=[{"name": "f"}])], "with 'tool_calls' in an answer"),
    "an answer with its reasoning": ([said("a", reasoning_content="so")], "with 'reasoning_content' in an answer"),
}  # fmt: skip


@pytest.mark.parametrize(("chosen", "why"), REFUSED_MESSAGES.values(), ids=REFUSED_MESSAGES)
def test_messages_that_cannot_be_used(chosen, why):
    assert kind(pair, row(prompt="q", chosen=chosen, rejected=B)) == why


def test_keys_of_turns_and_tools_are_handed_on():
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"town": 0}}}]
    filled = said("", tool_calls=calls, reasoning_content=None, name="")  # with null, as data sets fill rows
    tools = [{"type": "function", "function": {"name": "weather", "unit": None}}]
    one = row(prompt=[user("q"), filled, turn("tool")("0 degrees", name="weather")], chosen=A, rejected=B, tools=tools)
    found = pair(one)[0]
    assert json.loads(found.turns[1].more) == {"tool_calls": calls}
    assert found.turns[2].message == {"role": "tool", "content": "0 degrees", "name": "weather"}
    assert json.loads(found.tools) == [{"type": "function", "function": {"name": "weather"}}]
    assert asked(row(prompt="q", tools=json.dumps(tools)), COLUMNS).turns == (
        Turn("user", "q"),
    )  # for a template alone
    assert asked(row(prompt="q", tools=[]), COLUMNS) == asked(row(prompt="q", tools="[]"), COLUMNS)
    assert asked(row(prompt="q", tools=None), COLUMNS).turns == ()
    assert kind(lambda r: asked(r, COLUMNS), row(prompt="q", tools="calc")) == "with tools that cannot be read"


@pytest.mark.parametrize("column", ["images", "image", "videos", "audio", "chat_template_kwargs"])
def test_columns_of_trl_that_are_not_read_are_refused_by_name(column):
    assert kind(lambda r: check_columns(r, ["prompt"]), row(prompt="q", **{column: [b"png"]})) == f"with {column}"
    check_columns(row(prompt="q", **{column: [None]}), ["prompt"])
    check_columns(row(**{column: "q"}), [column])  # the recipe names it


# HH-RLHF and other dialogues in one text.

HH = "\n\nHuman: q?\n\nAssistant:"


def test_the_answer_behind_a_shared_prompt_is_the_demonstration_and_the_reference():
    for one in (row(chosen=HH + " a", rejected=HH + " b"), row(prompt="q?", chosen=HH + " a", rejected=HH + " b"),
                row(prompt=HH, chosen=HH + " a", rejected=HH + " b")):  # fmt: skip
        found = asked(one, COLUMNS)
        assert (found, answered(one, "chosen", COLUMNS, found)) == pair(one)[:2] and found.text == HH
        assert answered(one, "rejected", COLUMNS, found) == " b"
    plain = row(chosen="The sky is blue.", rejected="The sky is black.")
    assert answered(plain, "chosen", COLUMNS, asked(plain, COLUMNS)) == " blue."
    assert (
        answered(row(prompt="q", chosen="a", rejected="b"), "chosen", COLUMNS, asked(row(prompt="q"), COLUMNS)) == "a"
    )


@pytest.mark.parametrize("values", [
    {"chosen": HH + " a\n\nHuman: r?\n\nAssistant: c", "rejected": HH + " b"},
    {"chosen": HH + " a", "rejected": HH + " b\n\nHuman: r?\n\nAssistant: c"},
    {"chosen": HH + " a\n\nHuman: thanks", "rejected": HH + " b"},
    {"prompt": HH, "chosen": " a\n\nHuman: r?\n\nAssistant: c", "rejected": " b"},
])  # fmt: skip
def test_dialogues_that_part_at_an_earlier_turn_are_unusable(values):
    assert kind(pair, row(**values)) == "with several turns that differ"


def test_a_prompt_that_the_dialogues_do_not_have_is_unusable():
    one = row(prompt="another?", chosen=HH + " a", rejected=HH + " b")
    assert (
        kind(pair, one) == kind(lambda r: asked(r, COLUMNS), one) == "with a prompt that contradicts the conversation"
    )


def test_equal_sides_without_a_prompt_are_no_prompt():
    assert kind(lambda r: asked(r, COLUMNS), row(chosen="a b", rejected="a b")) == "with equal sides"


# Texts as they stand, from every kind of file, by name and in a folder.

VALUES = [
    "003",
    "NA",
    "106.50",
    "2024-01-01",
    "null",
    "1e3",
    "True",
    "",
    " x ",
    "a,b",
    'a "q"',
    "two\nlines",
    "ü",
    "-",
    "nan",
]
ROWS = [{"prompt": f"q{n}", "reference": value} for n, value in enumerate(VALUES)]


def as_csv(path, separator=","):
    def quoted(text):
        return '"' + text.replace('"', '""') + '"' if set(text) & set('",\n') else text

    lines = [separator.join(map(quoted, line)) for line in [ROWS[0].keys(), *(r.values() for r in ROWS)]]
    path.write_bytes("\r\n".join(lines).encode())


def as_jsonl(path):
    path.write_bytes("\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS).encode())


def as_json(path):
    path.write_bytes(json.dumps(ROWS, indent=2).encode())


WRITERS = {
    "csv": as_csv, "tsv": lambda path: as_csv(path, "\t"), "jsonl": as_jsonl, "json": as_json,
    "parquet": lambda path: pa.parquet.write_table(pa.Table.from_pylist(ROWS), path),
}  # fmt: skip


@pytest.mark.parametrize("ending", WRITERS)
def test_texts_stay_as_they_stand_by_name_and_in_a_folder(ending, tmp_path):
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / f"train.{ending}"
    WRITERS[ending](path)
    for source in (path, tmp_path / "set"):
        found = list(rows_at(Place(source=str(source)), "task.prompts"))
        assert [dict(one.values) for one in found] == ROWS
        assert [one.number for one in found] == [*range(1, len(ROWS) + 1)]


def test_json_on_lines_under_the_other_name_and_numbers_as_they_are_written(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(
        '{"prompt": "q", "reference": 106.50}\n{"prompt": "r", "reference": 1e3}\n{"prompt": "s", "reference": 3}\n'
    )
    assert [one.answer("reference") for one in rows_at(Place(source=str(path)), "x")] == ["106.50", "1e3", "3"]


def test_what_a_card_says_of_separator_and_field_is_done_and_all_else_is_refused(tmp_path):
    def card(lines):
        (tmp_path / "README.md").write_text(
            f"---\nconfigs:\n- config_name: default\n  data_files: part.*\n{lines}---\n"
        )
        return list(rows_at(Place(source=str(tmp_path)), "task.prompts"))

    (tmp_path / "part.csv").write_text("prompt;reference\nq;003\n")
    assert dict(card('  sep: ";"\n')[0].values) == {"prompt": "q", "reference": "003"}
    with pytest.raises(
        BadInput, match=r"task\.prompts: .* \(its card sets skiprows, which is not read; give its files by name\)"
    ):
        card("  skiprows: 1\n")
    (tmp_path / "part.csv").unlink()
    (tmp_path / "part.json").write_text(
        json.dumps({"version": 1, "data": [{"prompt": "q", "reference": "2024-01-01"}]})
    )
    assert dict(card("  field: data\n")[0].values)["reference"] == "2024-01-01"


BROKEN = {
    "too few fields": ("csv", b"prompt,reference\nq,a\nr\n", r"train\.csv:3: 1 fields, and the first line names 2 columns; .*"),
    "a quote that never ends": ("csv", b'prompt,reference\nq,a\nr,"b\n', r"train\.csv:3: not CSV \(.*\); quote the field, .*"),
    "not UTF-8": ("csv", b"prompt,reference\nq,a\nr,\xff\n", r"train\.csv:3: not UTF-8; save the file as UTF-8"),
    "a row that is a list": ("json", b'[{"prompt": "q", "reference": "a"}, []]', r"train\.json:2: a list where an object belongs; .*"),
    "a line cut short": ("jsonl", b'{"prompt": "q", "reference": "a"}\n{"prom', r"train\.jsonl:2: not JSON .*"),
}  # fmt: skip


@pytest.mark.parametrize(("ending", "content", "line"), BROKEN.values(), ids=BROKEN)
def test_a_row_that_cannot_be_read_is_named_or_left_out(ending, content, line, tmp_path):
    path = tmp_path / f"train.{ending}"
    path.write_bytes(content)
    with pytest.raises(Unusable, match=line):
        list(rows_at(Place(source=str(path)), "x"))
    faults = []
    assert [one.values["prompt"] for one in rows_at(Place(source=str(path)), "x", faults.append)] == ["q"]
    assert len(faults) == 1


@pytest.mark.parametrize(("content", "line"), [
    (b"prompt,prompt\nq,a\n", "train.csv:1: a column's name is there twice"), (b"", "has no rows"), (b"prompt,reference\n", "has no rows"),
])  # fmt: skip
def test_csv_without_columns_or_rows_is_refused(content, line, tmp_path):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(BadInput, match=line):
        list(rows_at(Place(source=str(tmp_path / "train.csv")), "x", lambda fault: None))


# Counts, and unpaired preferences.


def write(path, rows):
    path.write_text("".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in rows), encoding="utf-8")


def test_every_fault_of_a_row_is_left_out_and_counted_with_the_first_place_of_each(tmp_path):
    good = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(3)]
    bad = [{"prompt": "x"}, {"prompt": None, "chosen": "a", "rejected": "b"}, {"prompt": 5, "chosen": "a", "rejected": "b"},
           {"prompt": "y", "chosen": [said(None)], "rejected": B}, "{broken\n", "[]\n", '{"prompt": "\\ud83d"}\n',
           {**good[0], "prompt": "z", "images": ["i"]}, good[1]]  # fmt: skip
    write(tmp_path / "train.jsonl", [*good, *bad])
    write(tmp_path / "held.jsonl", [{"prompt": "h", "chosen": "a", "rejected": "b", "score": 1}])
    with pytest.raises(BadInput, match=r"train\.jsonl:4: no column 'chosen'"):
        task_of(tmp_path)
    task = task_of(tmp_path, unusable="leave_out", pairs=str(tmp_path / "train.jsonl"))
    assert task.leaves_out and task.notes == (
        "prompts: 3 train, 1 in_distribution; preference pairs: 4",
        "rows left out: 1 without a column 'chosen' (first train.jsonl:4), 2 with an empty text (first train.jsonl:5), "
        "1 with another type where a text belongs (first train.jsonl:6), 1 that are no JSON (first train.jsonl:8), "
        "1 that are no JSON object (first train.jsonl:9), 1 with half of a character (first train.jsonl:10), "
        "1 with images (first train.jsonl:11), 1 with a prompt that came before (first train.jsonl:12)",
        "not read: the columns score",
    )


def test_columns_and_keys_that_nothing_reads_are_named(tmp_path):
    write(tmp_path / "train.jsonl", [{"prompt": [user("q", id="7")], "chosen": A, "rejected": B, "score_chosen": 1.0}])
    write(tmp_path / "held.jsonl", [{"prompt": "h", "chosen": "a", "rejected": "b"}])
    assert "not read: the columns score_chosen; the messages' keys id" in task_of(tmp_path).notes


def test_a_place_of_which_every_row_is_left_out_is_refused_with_the_first_row(tmp_path):
    write(tmp_path / "train.jsonl", ["{\n", "[]\n"])
    write(tmp_path / "held.jsonl", [{"prompt": "h", "chosen": "a", "rejected": "b"}])
    with pytest.raises(
        BadInput, match=r"task\.prompts: .*every row is left out \(1 that are no JSON .*the first: .*jsonl:1: not JSON"
    ):
        task_of(tmp_path, unusable="leave_out")


def test_of_unpaired_preferences_those_that_are_good_are_demonstrations(tmp_path):
    rows = [{"prompt": "q", "completion": "bad", "label": False}, {"prompt": "q", "completion": "good", "label": True},
            {"prompt": [user("r")], "completion": [said("fine")], "label": True}]  # fmt: skip
    write(tmp_path / "train.jsonl", rows)
    (tmp_path / "held.csv").write_text("prompt,completion,label\nh,good,True\nh,bad,False\n")
    task = task_of(tmp_path, "held.csv", response_column="completion", reference_column="completion")
    assert {d.prompt.text: d.response for d in task.demonstrations(2, 0)} == {"q": "good", "r": "fine"}
    assert "1 with the label false" not in task.notes[1] and "2 with the label false" in task.notes[1]
    write(tmp_path / "train.jsonl", [{**rows[0], "label": "perhaps"}])
    with pytest.raises(BadInput, match="neither true nor false"):
        task_of(tmp_path, "held.csv", response_column="completion", reference_column="completion")


def test_labelled_completions_of_one_prompt_make_pairs_each_used_once(tmp_path):
    write(tmp_path / "train.jsonl", [{"prompt": "q", "reference": "a"}, {"prompt": "r", "reference": "b"}])
    write(tmp_path / "held.jsonl", [{"prompt": "h", "reference": "a"}])
    given = [
        ("q", "bad", False),
        ("r", "fine", "true"),
        ("q", "good", True),
        ("q", "great", 1),
        ("r", "poor", 0),
        ("q", "worse", "0"),
        ("q", "fair", True),
    ]
    rows = [{"prompt": prompt, "completion": text, "label": label} for prompt, text, label in given]
    write(tmp_path / "pairs.jsonl", [*rows, {"prompt": "r", "chosen": "x", "rejected": "y"}])
    columns = {"reference_column": "reference", "response_column": None}
    task = task_of(tmp_path, pairs=str(tmp_path / "pairs.jsonl"), **columns)
    found = {(p.prompt.text, p.chosen, p.rejected) for p in task.pairs(4, 0)}
    assert found == {("q", "good", "bad"), ("r", "fine", "poor"), ("q", "great", "worse"), ("r", "x", "y")}
    labelled = {(one.prompt.text, one.response, one.desirable) for one in task.labelled(7, 0)}
    assert labelled == {(prompt, text, label in (True, "true", 1)) for prompt, text, label in given}
    (note,) = [
        note for note in task.notes if note.startswith("labelled completions: 4 true, 3 false; 1 of them find no ")
    ]
    assert "unpaired: true" in note and task.no_pairs == ""
    assert not any("not read" in note for note in task.notes)


def test_labels_whose_prompts_differ_make_no_pair_and_are_there_to_learn_from(tmp_path):
    write(tmp_path / "train.jsonl", [{"prompt": "q", "reference": "a"}])
    write(tmp_path / "held.jsonl", [{"prompt": "h", "reference": "a"}])
    rows = [{"prompt": f"q{n}", "completion": "yes", "label": n > 1} for n in range(4)]
    write(tmp_path / "pairs.jsonl", rows)
    columns = {"reference_column": "reference", "response_column": None}
    task = task_of(tmp_path, pairs=str(tmp_path / "pairs.jsonl"), **columns)
    assert task.pairs is None and "no prompt has completions of both labels" in task.no_pairs
    assert {one.desirable for one in task.labelled(4, 0)} == {True, False}
    assert {"q0", "yes"} <= set(task.corpus())
    write(tmp_path / "pairs.jsonl", [{**rows[0], "prompt": "h"}])
    with pytest.raises(BadInput, match=r"pairs\.jsonl:1: a pair on the held-out prompt .*held\.jsonl:1"):
        task_of(tmp_path, pairs=str(tmp_path / "pairs.jsonl"), **columns)


def test_labels_on_prompts_of_the_share_that_is_held_out_are_not_trained_on(tmp_path):
    rows = [{"prompt": f"q{n}", "completion": "yes", "label": n % 2 == 0} for n in range(40)]
    write(tmp_path / "all.jsonl", rows)
    place = {"source": str(tmp_path / "all.jsonl")}
    columns = {"reference_column": "completion", "response_column": None}
    task = build_task(
        FilesSettings(kind="files", prompts=place, pairs=place, held_out_share=0.5, judge="overlap", **columns)
    )
    held_out = {p.text for p in task.prompts("in_distribution", task.sizes["in_distribution"], 0)}
    trained = {one.prompt.text for one in task.labelled(task.sizes["labelled responses"], 0)}
    assert held_out and trained and held_out.isdisjoint(trained) and not held_out & {f"q{n}" for n in range(1, 40, 2)}


# What lies in ../shared/cases.


@needs_cases
@pytest.mark.parametrize("name", ["csv_types", "json_dates"])
def test_cases_of_types(name):
    folder = CASES / name
    by_folder = build_task(FilesSettings(prompts=str(folder / "ds"), held_out=str(folder / "hd"), response_column=None))
    ending = "csv" if name == "csv_types" else "jsonl"
    places = {key: str(folder / part / f"train.{ending}") for key, part in (("prompts", "ds"), ("held_out", "hd"))}
    by_name = build_task(FilesSettings(**places, response_column=None))
    for split in ("train", "in_distribution"):
        assert by_folder.prompts(split, 8, 0) == by_name.prompts(split, 8, 0)
    answers = {p.answer for s in ("train", "in_distribution") for p in by_folder.prompts(s, 8, 0)}
    assert answers >= ({"003", "106.50"} if name == "csv_types" else {"2024-01-01"})


@needs_cases
def test_case_hh_sft():
    task = task_of(CASES / "hh_sft", pairs=str(CASES / "hh_sft" / "train.jsonl"))
    demonstrations = task.demonstrations(8, 0)
    assert all(d.response.startswith(" Apple") and d.prompt.text.endswith("Assistant:") for d in demonstrations)
    assert {(d.prompt.text, d.response) for d in demonstrations} == {
        (p.prompt.text, p.chosen) for p in task.pairs(8, 0)
    }
    held_out = task.prompts("in_distribution", 6, 0)[0]
    assert task.judge(held_out, held_out.answer).score == 1 and task.judge(held_out, held_out.text).score < 0.5


@needs_cases
def test_case_hh_early():
    with pytest.raises(BadInput, match=r"train\.jsonl:1: chosen and rejected differ in more than their last message"):
        task_of(CASES / "hh_early")
    with pytest.raises(
        BadInput, match=r"every row is left out \(\d+ with several turns that differ \(first train.jsonl:1\)\)"
    ):
        task_of(CASES / "hh_early", unusable="leave_out")


@needs_cases
def test_case_json_string():
    task = task_of(CASES / "json_string", pairs=str(CASES / "json_string" / "train.jsonl"))
    demonstrations, pairs = task.demonstrations(8, 0), task.pairs(8, 0)
    assert all(d.prompt.text.startswith("What colour") and d.response.startswith("The colour") for d in demonstrations)
    assert {p.prompt.turns[0] for p in pairs} == {d.prompt.turns[0] for d in demonstrations}


@needs_cases
def test_case_tool_calls():
    task = task_of(CASES / "tool_calls", pairs=str(CASES / "tool_calls" / "train.jsonl"))
    for prompt in [*task.prompts("train", 4, 0), *(p.prompt for p in task.pairs(4, 0))]:
        assert "weather" in prompt.tools and "tool_calls" in prompt.turns[1].more
        assert prompt.turns[2].message["name"] == "weather"


@needs_cases
def test_case_system_in_prompt_only():
    task = task_of(CASES / "system_in_prompt_only", pairs=str(CASES / "system_in_prompt_only" / "train.jsonl"))
    prompts = {prompt.text: prompt for prompt in task.prompts("train", 8, 0)}
    assert all(prompt.turns[0] == Turn("system", "You answer briefly.") for prompt in prompts.values())
    assert all(found.prompt == prompts[found.prompt.text] for found in task.pairs(8, 0))
