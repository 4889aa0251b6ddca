"""One's own data in TRL's conventions, from every kind of place, and what check says of it. Rows that are refused stand in
test_bad_rows.py."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rlhf_bench.cli.data_overview import data_check
from rlhf_bench.core.errors import BadInput
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.judges.answers import judge_overlap
from rlhf_bench.tasks.judges.boxed import judge_boxed, last_boxed, settle_boxed
from rlhf_bench.tasks.loading.data_source import Place, is_hub_id, rows_at
from rlhf_bench.tasks.loading.rows import FileRow
from rlhf_bench.tasks.loading.settings import FilesSettings
from rlhf_bench.tasks.loading.trl import Columns, asked, preference
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import prepare_inputs
from tests.support.given_models import write_weights

COLUMNS = Columns("prompt", "chosen", "rejected")
datasets.disable_progress_bars()


def user(content):
    return {"role": "user", "content": content}


def said(content):
    return {"role": "assistant", "content": content}


HUMAN = "\n\nHuman: Hello?\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
# The row, and prompt, chosen and rejected as they are read.
FORMS = {
    "standard": ({"prompt": "q", "chosen": "a", "rejected": "b"}, ("q", "a", "b")),
    "standard, implicit": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        ("The sky is", " blue.", " black."),
    ),
    "standard, one within the other": ({"chosen": "a b", "rejected": "a b c"}, ("a", " b", " b c")),
    "HH-RLHF": ({"chosen": HUMAN + " I know.", "rejected": HUMAN + " I do not."}, (HUMAN, " I know.", " I do not.")),
    "HH-RLHF, a null prompt's column absent": ({"chosen": HUMAN + "A", "rejected": HUMAN + "B"}, (HUMAN, "A", "B")),
    "conversational": ({"prompt": [user("q")], "chosen": [said("a")], "rejected": [said("b")]}, ("q", "a", "b")),
    "conversational, implicit": (
        {"chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
        ("q", "a", "b"),
    ),
    "UltraFeedback": (
        {"prompt": "q", "chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
        ("q", "a", "b"),
    ),
    "a text, and answers as messages": (
        {"prompt": "q", "chosen": [said("a")], "rejected": [said("b")]},
        ("q", "a", "b"),
    ),
    "the prompt again in both": (
        {"prompt": [user("q")], "chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
        ("q", "a", "b"),
    ),
    "several turns": (
        {
            "chosen": [user("q"), said("p"), user("r"), said("a")],
            "rejected": [user("q"), said("p"), user("r"), said("b")],
        },
        ("user: q\n\nassistant: p\n\nuser: r", "a", "b"),
    ),
}


@pytest.mark.parametrize(("row", "found"), FORMS.values(), ids=FORMS)
def test_every_form_of_a_preference(row, found):
    prompt, chosen, rejected = preference(FileRow("x:1", 1, row), COLUMNS)
    assert (prompt.text, chosen, rejected) == found
    assert asked(FileRow("x:1", 1, row), COLUMNS).text == prompt.text


@given(st.text(), st.text(), st.text())
def test_an_implicit_prompt_and_its_answers_are_the_texts_again(start, one, other):
    try:
        prompt, chosen, rejected = preference(
            FileRow("x:1", 1, {"chosen": start + one, "rejected": start + other}), COLUMNS
        )
    except BadInput:
        return
    assert (prompt.text + chosen, prompt.text + rejected) == (start + one, start + other)


ROWS = [{"prompt": f"q{n}?", "reference": f"a{n}", "response": f"a{n}"} for n in range(6)]


def jsonl(path, rows):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def in_a_file(folder):
    return Place(source=str(jsonl(folder / "rows.jsonl", ROWS)))


def in_parquet(folder):
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=2)
    return Place(source=str(folder / "rows.parquet"))


def saved(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return Place(source=str(folder / "saved"))


def saved_with_splits(folder):
    both = {"train": datasets.Dataset.from_list(ROWS[:1]), "odd": datasets.Dataset.from_list(ROWS)}
    datasets.DatasetDict(both).save_to_disk(folder / "saved")
    return Place(source=str(folder / "saved"), split="odd")


def as_on_the_hub(folder):
    jsonl(folder / "hub" / "main" / "odd.jsonl", ROWS)
    jsonl(folder / "hub" / "other" / "odd.jsonl", ROWS[:1])
    (folder / "hub" / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {name}\n  data_files:\n  - split: odd\n    path: {name}/odd.jsonl\n"
            for name in ("other", "main")
        )
        + "---\n"
    )
    return Place(source=str(folder / "hub"), config="main", split="odd")


@pytest.mark.parametrize("put", [in_a_file, in_parquet, saved, saved_with_splits, as_on_the_hub])
def test_rows_are_the_same_from_every_place_and_no_more_are_read_than_asked_for(put, tmp_path):
    place = put(tmp_path)
    found = list(rows_at(place, "task.prompts"))
    assert [dict(row.values) for row in found] == ROWS
    assert [row.number for row in found] == [1, 2, 3, 4, 5, 6] and found[4].where.endswith(":5")
    assert len(list(rows_at(place.model_copy(update={"rows": 4}), "task.prompts"))) == 4


def test_what_is_behind_the_rows_that_are_asked_for_is_not_looked_at(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    path.write_text(path.read_text() + "{broken")
    assert len(list(rows_at(Place(source=str(path), rows=6), "task.prompts"))) == 6
    with pytest.raises(BadInput, match=r"rows\.jsonl:7: not JSON"):
        list(rows_at(Place(source=str(path)), "task.prompts"))


@pytest.mark.parametrize(("source", "is_one"), [
    ("openai/gsm8k", True), ("HuggingFaceH4/ultrafeedback_binarized", True), ("rows.jsonl", False), ("./a/b", False),
    ("data/rows.jsonl", False), ("/data/rows", False), ("gsm8k", False), ("a/b/c", False), ("../b", False),
])  # fmt: skip
def test_what_is_taken_for_the_hubs(source, is_one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(source) is is_one
    if is_one:
        (tmp_path / source).mkdir(parents=True)
        assert not is_hub_id(source)  # a folder of that name is here


def files(folder, train, test, pairs, **settings):
    places = {"prompts": train, "held_out": test, "pairs": pairs}
    return FilesSettings(**{k: jsonl(folder / f"{k}.jsonl", rows) for k, rows in places.items()}, **settings)


TEST = [{"prompt": f"h{n}?", "reference": f"a{n}"} for n in range(4)]
PAIRS = [{"prompt": f"q{n}?", "chosen": "yes", "rejected": "no"} for n in range(6)]


def test_unusable_rows_are_left_out_and_counted_and_what_is_held_out_stays_so(tmp_path):
    train = [*ROWS, ROWS[0], {**ROWS[1], "prompt": "h2?"}, {**ROWS[1], "prompt": " "}, {**ROWS[1], "prompt": "l" * 99}]
    pairs = [*PAIRS, {**PAIRS[0], "rejected": "yes"}, {**PAIRS[0], "prompt": "h1?"}, {**PAIRS[0], "chosen": "y" * 99}]
    settings = files(
        tmp_path, train, TEST, pairs, max_prompt_characters=50, max_response_characters=50, unusable="leave_out"
    )
    task = build_task(settings)
    assert task.notes[0] == "prompts: 6 train, 4 in_distribution; preference pairs: 6"
    assert task.notes[1] == (
        "rows left out: 2 with a prompt that came before (first prompts.jsonl:7), "
        "1 with an empty text (first prompts.jsonl:9), 1 with a prompt longer than max_prompt_characters (first prompts.jsonl:10), "
        "1 with equal sides (first pairs.jsonl:7), 1 with a pair on a held-out prompt (first pairs.jsonl:8), "
        "1 with a response longer than max_response_characters (first pairs.jsonl:9)"
    )


@pytest.mark.parametrize(("pairs", "settings", "why", "first"), [
    ([{**PAIRS[0], "rejected": "yes"}, {**PAIRS[0], "chosen": " "}, {**PAIRS[1], "chosen": "no"}], {"unusable": "leave_out"},
     "2 with equal sides (first pairs.jsonl:1), 1 with an empty text (first pairs.jsonl:2)",
     "chosen and rejected are the same text; remove the row"),
    (PAIRS, {"unusable": "leave_out", "max_response_characters": 2},
     "6 with a response longer than max_response_characters (first pairs.jsonl:1)",
     "a response of 3 characters; max_response_characters is 2"),
])  # fmt: skip
def test_pairs_that_are_all_left_out_are_not_replaced_by_others_in_silence(pairs, settings, why, first, tmp_path):
    with pytest.raises(BadInput) as refused:
        build_task(files(tmp_path, [*ROWS, ROWS[0]], TEST, pairs, **settings))  # a prompt that is left out is no pair
    assert str(refused.value) == (
        f"task.pairs: {tmp_path}/pairs.jsonl: every row is left out ({why}); correct the rows or the limits on characters, "
        f"or remove the key, and a weaker policy makes the pairs; the first: {tmp_path}/pairs.jsonl:1: {first}"
    )


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    trained = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=300), ["what is it? yes no"])
    own = PreTrainedTokenizerFast(
        tokenizer_object=trained.backend_tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    own.chat_template = (
        "<bos>{% for m in messages %}{{ raise_exception('no system messages') if m.role == 'system' }}"
        "[{{ m.role }}]{{ m.content }}<eos>{% endfor %}{{ '[assistant]' if add_generation_prompt }}"
    )
    own.save_pretrained(folder)
    sizes = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "vocab_size": 300,
        "max_position_embeddings": 256,
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    write_weights(folder)
    return folder


def inputs(folder, settings, model, template="own", arms=None, sft=True, **data):
    place = {"kind": "pretrained", "name_or_path": str(model), "chat_template": template}
    recipe = parse_recipe(
        {
            "name": "own",
            "task": settings.model_dump(mode="json"),
            "compute": {"limit": 1e15},
            "model": {"name_or_path": str(model), "max_length": 128, "tokenizer": place},
            "data": {"train_prompts": 4, "off_policy_pairs": 3, "held_out_pairs": 2, "max_response_tokens": 8} | data,
            "sft": {"demonstrations": data.get("train_prompts", 4)} if sft else None,
            "evaluation": {"prompts": 4, "splits": ["in_distribution"]},
            "arms": arms or {"b": {"method": "dpo"}},
        }
    )
    return prepare_inputs(recipe, Cache(folder / "cache"))


UNPAIRED = {"k": {"method": "kto", "unpaired": True}}


@pytest.mark.parametrize("sft", [True, False])
def test_an_arm_learns_from_labels_that_make_no_pair(sft, tmp_path, tokenizer_folder):
    """Then nothing makes pairs, a weaker policy least of all: what is given is what is asked for."""
    rows = [{"prompt": f"q{n}?", "completion": "yes", "label": n > 1} for n in range(5)]
    settings = files(tmp_path, ROWS, TEST, rows)
    found = inputs(tmp_path, settings, tokenizer_folder, arms=UNPAIRED, sft=sft, labelled_responses=5)
    assert found.pairs == [] and Counter(one.desirable for one in found.labelled) == {True: 3, False: 2}
    assert all(one.prompt.token_ids and one.response_ids for one in found.labelled)
    with pytest.raises(BadInput, match=r"files, labelled responses: 9 are asked for and 5 are there"):
        inputs(tmp_path, settings, tokenizer_folder, arms=UNPAIRED, sft=sft, labelled_responses=9)
    both = UNPAIRED | {"d": {"method": "dpo"}, "p": {"method": "ppo", "feedback": "judge"}}
    with pytest.raises(
        BadInput, match=r"arms\.d\.data: .*completions of task\.pairs have labels, and no two of them"
    ) as refused:
        inputs(tmp_path, settings, tokenizer_folder, arms=both, sft=sft, labelled_responses=5)
    assert len(refused.value.problems) == 1


def test_one_label_alone_is_refused_where_an_arm_learns_from_labels(tmp_path, tokenizer_folder):
    rows = [{"prompt": f"q{n}?", "completion": "yes", "label": True} for n in range(5)]
    with pytest.raises(
        BadInput, match=r"task\.pairs: all 5 labelled completions to train on have the label true, .*both; add"
    ):
        inputs(tmp_path, files(tmp_path, ROWS, TEST, rows), tokenizer_folder, arms=UNPAIRED, labelled_responses=5)


def test_labels_go_beside_pairs_where_other_arms_take_those(tmp_path, tokenizer_folder):
    rows = [{"prompt": f"q{n // 2}?", "completion": str(n), "label": n % 2 == 0} for n in range(12)]
    settings = files(tmp_path, ROWS, TEST, rows)
    both = UNPAIRED | {"d": {"method": "dpo"}}
    found = inputs(tmp_path, settings, tokenizer_folder, arms=both, labelled_responses=12)
    known = {p.prompt.token_ids for p in found.held_out_pairs}
    assert len(found.pairs) == 3 and len(found.held_out_pairs) == 2 and len(found.labelled) == 8
    assert known.isdisjoint({one.prompt.token_ids for one in found.labelled})
    alone = inputs(tmp_path, settings, tokenizer_folder, arms={"d": {"method": "dpo"}})
    assert alone.labelled is None and alone.pairs == found.pairs


def test_a_chat_template_stands_around_prompts_and_begins_the_answer(tmp_path, tokenizer_folder):
    turns = [user("q0?"), said("hm"), user("and?")]
    pairs = [{"prompt": turns, "chosen": [said("yes")], "rejected": [said("no")]}, *PAIRS]
    found = inputs(tmp_path, files(tmp_path, ROWS, TEST, pairs), tokenizer_folder)

    def text(ids):
        return found.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)

    assert {text(p.token_ids) for p in found.train} <= {f"<bos>[user]q{n}?<eos>[assistant]" for n in range(6)}
    (several,) = [p for p in (*found.pairs, *found.held_out_pairs) if p.prompt.turns]
    assert text(several.prompt.token_ids) == "<bos>[user]q0?<eos>[assistant]hm<eos>[user]and?<eos>[assistant]"
    assert text(several.chosen_ids) == "yes<eos>"


def test_a_conversation_needs_a_chat_template_and_one_that_takes_it(tmp_path, tokenizer_folder):
    pairs = [{"prompt": [{"role": "system", "content": "s"}, user("q")], "chosen": "yes", "rejected": "no"}] * 5
    conversational = [{**p, "chosen": [said("yes")], "rejected": [said("no")]} for p in pairs]
    settings = files(tmp_path, ROWS, TEST, conversational)
    with pytest.raises(
        BadInput, match=r"pairs\.jsonl:\d+: the prompt is a conversation, and .*chat_template is null; set"
    ):
        inputs(tmp_path, settings, tokenizer_folder, template=None)
    with pytest.raises(BadInput, match=r"pairs\.jsonl:\d+: the tokenizer's chat template .*no system messages"):
        inputs(tmp_path, settings, tokenizer_folder)


def test_conversations_without_a_chat_template_are_left_out_where_unusable_rows_are(tmp_path, tokenizer_folder):
    turns = {"prompt": [user("q0?"), said("hm"), user("and?")], "chosen": [said("yes")], "rejected": [said("no")]}
    train = [{**ROWS[0], "prompt": turns["prompt"]}, *ROWS]
    settings = files(tmp_path, train, TEST, [*PAIRS, turns, turns], unusable="leave_out")
    found = inputs(tmp_path, settings, tokenizer_folder, template=None)
    assert not any(p.turns for p in (*found.train, *(pair.prompt for pair in found.pairs)))
    (note,) = [note for note in found.notes if note.startswith("rows left out as they were encoded: ")]
    assert re.search(
        r"\d that are conversations, which need model\.tokenizer\.chat_template \(first \w+\.jsonl:\d\)", note
    )


@pytest.fixture
def dropping_tokenizer(tmp_path, tokenizer_folder):
    """Its normalizer drops tildes, so that a text of them has no tokens."""
    folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["normalizer"] = {"type": "Replace", "pattern": {"String": "~"}, "content": ""}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize(("changed", "line"), [
    ({"train": [{**row, "prompt": "~" * n} for n, row in enumerate(ROWS, 1)]}, r".*prompts\.jsonl:\d: the tokenizer makes no tokens of the prompt; .*"),
    ({"train": [{**row, "response": "~"} for row in ROWS]}, r".*prompts\.jsonl:\d: .* no tokens of response; .*"),
    ({"pairs": [{**pair, "prompt": "~" * n} for n, pair in enumerate(PAIRS, 1)]}, r".*pairs\.jsonl:\d: .* no tokens of the prompt; .*"),
    ({"pairs": [{**pair, "rejected": "~~"} for pair in PAIRS]}, r".*pairs\.jsonl:\d: .* no tokens of rejected; .*"),
    ({"pairs": [{**pair, "chosen": "<eos>"} for pair in PAIRS]}, r".*pairs\.jsonl:\d: .* no tokens of chosen; .*"),
    ({"pairs": [{**pair, "chosen": pair["rejected"] + "~"} for pair in PAIRS]}, r".*pairs\.jsonl:\d: chosen and rejected are the same tokens; .*"),
])  # fmt: skip
def test_a_text_of_which_the_tokenizer_leaves_nothing_or_the_other_side_is_refused(
    changed, line, tmp_path, dropping_tokenizer
):
    settings = files(tmp_path, **({"train": ROWS, "test": TEST, "pairs": PAIRS} | changed))
    with pytest.raises(BadInput) as refused:
        inputs(tmp_path, settings, dropping_tokenizer, template=None)
    assert re.fullmatch(line, str(refused.value))


@pytest.mark.parametrize("held_out", range(5))
def test_a_held_out_pair_without_tokens_is_refused_like_any_other(held_out, tmp_path, dropping_tokenizer):
    """Whichever of the five is the one: three are trained on, and two held out."""
    pairs = [{**pair, "chosen": "~"} if n == held_out else pair for n, pair in enumerate(PAIRS[:5])]
    with pytest.raises(BadInput, match=rf"pairs\.jsonl:{held_out + 1}: .* no tokens of chosen"):
        inputs(tmp_path, files(tmp_path, ROWS, TEST, pairs), dropping_tokenizer)


LONG = "x" * 200  # tokens, of 128


def test_rows_that_have_too_many_tokens_are_left_out_and_counted_and_others_take_their_places(
    tmp_path, tokenizer_folder
):
    train = (
        [{**ROWS[0], "prompt": f"{n}{LONG}"} for n in range(3)] + ROWS + [{**ROWS[0], "prompt": "p?", "response": LONG}]
    )
    pairs = [{**PAIRS[n], "chosen": LONG} for n in range(5)] + [
        {**pair, "prompt": f"o{n}?"} for n, pair in enumerate(PAIRS)
    ]
    settings = files(tmp_path, train, TEST, pairs, unusable="leave_out")
    found = inputs(tmp_path, settings, tokenizer_folder)
    assert (len(found.train), len(found.demonstrations), len(found.pairs), len(found.held_out_pairs)) == (4, 4, 3, 2)
    (note,) = [note for note in found.notes if note.startswith("rows left out as they were encoded: ")]
    kinds = note.removeprefix("rows left out as they were encoded: ").split(", ")
    assert all(re.fullmatch(r"\d with .* \(first (prompts|pairs)\.jsonl:\d+\)", one) for one in kinds), note
    assert re.search(
        r"with a prompt that leaves no room for a response within model\.max_length \(first prompts\.jsonl:[123]\)",
        note,
    )
    with pytest.raises(BadInput, match=r"prompts: 4 are asked for, and fewer can be used; left out are 3 with"):
        inputs(
            tmp_path,
            files(tmp_path, [*train[:3], *ROWS[:3]], TEST, PAIRS, unusable="leave_out"),
            tokenizer_folder,
        )


def test_prompts_with_too_many_tokens_are_refused_in_one_line_that_counts_them(tmp_path, tokenizer_folder):
    train = [{**ROWS[0], "prompt": f"{n}{LONG}"} for n in range(3)] + ROWS[:1]
    with pytest.raises(BadInput) as refused:
        inputs(tmp_path, files(tmp_path, train, TEST, PAIRS), tokenizer_folder)
    assert re.fullmatch(
        r".*prompts\.jsonl:[123]: the prompt's \d+ tokens leave no room for .* raise model\.max_length, or leave the row out "
        r"\(2 more rows with a prompt that leaves no room for a response within model\.max_length\)",
        str(refused.value),
    )


def test_what_the_chat_template_does_not_write_is_not_dropped_in_silence(tmp_path, tokenizer_folder):
    pairs = [{"prompt": [user("q")], "chosen": [said("yes")], "rejected": [said("no")], "tools": [{"name": "f"}]}] * 5
    with pytest.raises(
        BadInput, match=r"pairs\.jsonl:\d: the tokenizer's chat template makes nothing of the tools; leave"
    ):
        inputs(tmp_path, files(tmp_path, ROWS, TEST, pairs), tokenizer_folder)
    calls = [
        {**pair, "tools": [], "prompt": [user("q"), {**said(""), "tool_calls": [{"name": "f"}]}, user("r")]}
        for pair in pairs
    ]
    settings = files(tmp_path, ROWS, TEST, [*calls[:1], *PAIRS], unusable="leave_out")
    found = inputs(tmp_path, settings, tokenizer_folder)
    assert any("1 of which the chat template makes nothing of a message's 'tool_calls'" in note for note in found.notes)


def test_where_a_text_stands_is_for_errors_alone(tmp_path, tokenizer_folder):
    """The same rows in another folder are the same material, to caches as well, and none of it knows a path."""
    one, other = (inputs(tmp_path, files(tmp_path / name, ROWS, TEST, PAIRS), tokenizer_folder) for name in ("a", "b"))
    assert one.fingerprint["data"] == other.fingerprint["data"] and one.train == other.train
    prompts = [*one.train, *one.held_out["in_distribution"], *(p.prompt for p in (*one.pairs, *one.held_out_pairs))]
    assert not any(prompt.where for prompt in prompts)


def test_the_data_check_counts_repeats_and_leaks_whatever_their_case(tmp_path, tokenizer_folder):
    train = [{"prompt": p, "reference": "a", "response": "a"} for p in ("What is it?", "what is  it", "yes?", "no?")]
    test = [{"prompt": p, "reference": "a"} for p in ("NO", "is it?", "it?", "h?")]
    asked = ("no?", "no?", "yes?", "yes?", "no?")  # so shuffled that those of "yes?" are held out
    chosen = ("yes", "yes", "it", "is", "what")
    pairs = [{"prompt": p, "chosen": c, "rejected": "no"} for p, c in zip(asked, chosen, strict=True)]
    found = inputs(tmp_path, files(tmp_path, train, test, pairs), tokenizer_folder, template=None)
    lines = list(data_check(found))
    assert "  train prompts: 1" in lines and "  in_distribution prompts: 0" in lines
    leak = next(line for line in lines if line.startswith("  in_distribution: "))
    assert leak.startswith(
        "  in_distribution: 1 in train prompts (first files/in_distribution/000001), 1 in demonstrations"
    )
    assert next(line for line in lines if line.startswith("  held-out pairs: 2 in demonstrations"))
    assert "2 of the prompt" in next(line for line in lines if line.startswith("  pairs: "))
    chosen = next(line for line in lines if line.startswith("  pairs' chosen: "))
    lengths = sorted(len(p.chosen_ids) for p in found.pairs)
    assert chosen == f"  pairs' chosen: 3 of {lengths[0]}, {lengths[1]}, {lengths[2]}, {lengths[2]}, {lengths[2]}"


@pytest.mark.parametrize(("text", "answer"), [
    (r"so \boxed{5}", "5"), (r"\boxed{1} or \boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed{ {a} {b} }.", "{a} {b}"),
    (r"\boxed{1", None), ("5", None), ("", None), (r"\boxed{}", ""),
])  # fmt: skip
def test_the_last_box(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(("given", "reference", "score"), [
    (r"\frac{1}{2}", "0.5", 1), ("1/2", r"So \boxed{\frac12}", 1), ("x+1", "1+x", 1), ("1,080", "1080", 1), ("5", "6", 0),
    (r"\{1,2\}", r"\{2,1\}", 1), (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2", 1), (r"\text{yes}", r"\text{yes}", 1), ("", "1", 0),
])  # fmt: skip
def test_boxed_answers_are_compared_by_worth(given, reference, score):
    assert judge_boxed(f"so \\boxed{{{given}}}", reference).parts == {"answer": score, "format": 1, "undecided": 0}
    assert judge_boxed(given, reference).score == 0  # without a box


def test_no_answer_hangs_the_judge_or_runs_code(tmp_path):
    """Towers, factorials and parentheses; each is wrong within its limits, and the next answer is judged as ever."""
    mark = tmp_path / "ran"
    for hostile in (
        "9^{9^{9^{9^9}}}",
        "99999999!",
        "(" * 140 + ")" * 140,
        f"__import__('os').mkdir('{mark}')",
        "{" * 5 + "}" * 5,
    ):
        assert judge_boxed(f"\\boxed{{{hostile}}}", "1").score == 0
    assert judge_boxed(r"\boxed{2/4}", "1/2").score == 1
    assert not mark.exists()


CAP = """
import json, os, resource, sys
from rlhf_bench.tasks.judges import worth
worth.CPU_SECONDS, worth.SHORT_SECONDS = 0.5, 0.1
def equal(right, given):
    while given == "tower":
        pass
    return right == given
pairs = [("1", "tower" if i % 3 else str(i % 2)) for i in range(30)]
found = worth.compare_all(pairs, equal, 2)
spent = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([found, spent.ru_utime + spent.ru_stime, 2 * worth.PATIENCE * worth.CPU_SECONDS + 20 * worth.SHORT_SECONDS]))
"""


def test_a_batch_of_towers_costs_no_more_than_its_bound_and_spoils_no_other_answer():
    """In two workers, so that where they stand decides nothing."""
    process = subprocess.Popen([sys.executable, "-c", CAP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    found, spent, bound = json.loads(process.stdout.readline())
    process.communicate()
    assert found == [None if i % 3 else bool(i % 2) for i in range(30)]
    assert spent < bound + 30 * 0.05, "each process that is ended may go on until the kernel's next tick"


def test_answers_are_compared_once_and_towers_among_them_are_counted():
    answers = [(f"\\boxed{{{n}/{2 * n}}}", "1/2") for n in range(1, 20)] + [(r"\boxed{9^{9^{9^9}}}", "1")] * 3
    settle_boxed(answers)
    from rlhf_bench.tasks.judges import boxed

    boxed._comparer.process.kill()  # nothing is asked again
    boxed._comparer.process.wait()
    judged = [judge_boxed(response, reference) for response, reference in answers]
    boxed._comparer.process = None
    assert [j.score for j in judged] == [1.0] * 19 + [0.0] * 3
    assert [j.parts["undecided"] for j in judged] == [0.0] * 19 + [1.0] * 3


def test_boxed_answers_are_judged_off_the_main_thread():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda n: judge_boxed(f"\\boxed{{{2 * n}/2}}", str(n % 3)).score, range(6)))
    assert scores == [1, 1, 1, 0, 0, 0]


@given(st.text())
def test_overlap_is_a_share_and_whole_for_the_same_words(text):
    assert 0 <= judge_overlap(text, "some words").score <= 1
    assert judge_overlap("Words, some!", "some words").score == 1
    assert judge_overlap("some", "some words").score == pytest.approx(2 / 3)


def test_no_prompt_to_train_on_is_a_held_out_pairs_prompt(tmp_path, tokenizer_folder):
    """What an arm had learned of a prompt by answering it would pass for generalisation."""
    rows = [{"prompt": [user(f"one {n}")], "reference": "yes", "response": "yes"} for n in range(4)]
    pairs = [{"prompt": [user(f"one {n}")], "chosen": [said("yes")], "rejected": [said("no")]} for n in range(5)]
    found = inputs(tmp_path, files(tmp_path, rows, TEST, pairs), tokenizer_folder)
    held_out = {p.prompt.token_ids for p in found.held_out_pairs}
    left_out = 4 - len(found.train)
    assert left_out and not held_out & {p.token_ids for p in found.train}
    assert f"{left_out} of 4 prompts to train on are left out, since held-out pairs have them" in found.notes
    theirs = {p.prompt.turns[0].content for p in found.held_out_pairs}
    few = [row for row in rows if row["prompt"][0]["content"] in theirs]
    with pytest.raises(BadInput, match="data.held_out_pairs: 2 held-out pairs have all prompts to train on"):
        inputs(tmp_path, files(tmp_path, few, TEST, pairs), tokenizer_folder, train_prompts=len(few))


def test_no_pair_to_train_on_has_a_held_out_pairs_prompt(tmp_path, tokenizer_folder):
    pairs = [{"prompt": [user("one")], "chosen": [said(f"yes {n}")], "rejected": [said("no")]} for n in range(4)]
    apart = [{"prompt": [user(f"two {n}")], "chosen": [said("yes")], "rejected": [said("no")]} for n in range(1)]
    found = inputs(tmp_path, files(tmp_path, ROWS, TEST, [*pairs, *apart]), tokenizer_folder)
    held_out = {p.prompt.token_ids for p in found.held_out_pairs}
    assert found.pairs and not held_out & {p.prompt.token_ids for p in found.pairs}
    left_out = 3 - len(found.pairs)
    assert left_out and f"{left_out} of 3 pairs are left out, since held-out pairs have their prompts" in found.notes
    with pytest.raises(BadInput, match="data.held_out_pairs: 2 held-out pairs have the prompts of all others"):
        inputs(tmp_path, files(tmp_path, ROWS, TEST, [*pairs, pairs[0]]), tokenizer_folder)
