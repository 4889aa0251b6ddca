"""From the user's rows to tokens through a chat template: cases that went wrong elsewhere, and what `check` says of them."""

import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from rlhf_bench.cli.example import example_lines
from rlhf_bench.cli.verify import Again
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Group, Sample
from rlhf_bench.models.codec import build_codec
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.results.directory import first_day, open_directory
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.loading.settings import FilesSettings
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import prepare_inputs
from rlhf_bench.training.judging import Judge
from tests.support.chat_templates import SHAPES, tokenizer_of
from tests.support.given_models import write_weights

CASES = Path(__file__).parents[4] / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not at ../shared/cases")
SMOL, DATED = "SmolLM2: a system message of its own", "Llama 3.2: writes the date"
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"what is {n}?"}],
        "chosen": [{"role": "assistant", "content": f"yes {n}"}],
        "rejected": [{"role": "assistant", "content": f"no {n}"}],
    }
    for n in range(8)
]


def model_folder(folder, tokenizer, **generation):
    folder.mkdir()
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 32}
    config = {"model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 512, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder)
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def recipe_on(tmp_path, model, rows=ROWS, held=ROWS[6:], template="own"):
    """`rows`, `held`: rows to write, or files."""
    paths = [tmp_path / "train.jsonl", tmp_path / "held.jsonl"]
    for path, some in zip(paths, (rows if isinstance(rows, Path) else rows[:6], held), strict=True):
        path.write_text(some.read_text() if isinstance(some, Path) else "".join(json.dumps(r) + "\n" for r in some))
    place = {"kind": "pretrained", "name_or_path": str(model), "chat_template": template}
    columns = {"reference_column": "chosen", "response_column": "chosen"}
    return parse_recipe(
        {
            "name": "chat",
            "task": {"kind": "files", "prompts": str(paths[0]), "held_out": str(paths[1]), "pairs": str(paths[0]), **columns},
            "compute": {"limit": 1e15},
            "model": {"name_or_path": str(model), "max_length": 512, "tokenizer": place},
            "data": {"train_prompts": 4, "off_policy_pairs": 3, "held_out_pairs": 2, "max_response_tokens": 16},
            "sft": None,
            "evaluation": {"prompts": 2, "splits": ["in_distribution"]},
            "arms": {"b": {"method": "dpo"}},
        }
    )  # fmt: skip


def prepared(tmp_path, tokenizer, day=None, generation=None, **rows):
    model = model_folder(tmp_path / "model", tokenizer, **(generation or {}))
    return prepare_inputs(recipe_on(tmp_path, model, **rows), Cache(tmp_path / "cache"), day=day)


def text(inputs, ids):
    return inputs.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)


def case(name):
    return {"rows": CASES / name / "train.jsonl", "held": CASES / name / "held.jsonl"}


@needs_cases
def test_two_eos(tmp_path):
    tokenizer = tokenizer_of(SHAPES[SMOL], eos_token="<|endoftext|>")
    turn, eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    inputs = prepared(tmp_path, tokenizer, generation={"eos_token_id": [turn, eos]}, **case("two_eos"))
    assert inputs.codec.end_ids == {turn, eos} and {p.chosen_ids[-1] for p in inputs.pairs} == {turn}
    prompt = inputs.held_out["in_distribution"][0]
    right = inputs.codec.answer(prompt, prompt.answer).ids
    samples = [Sample(str(end), (*right[:-1], end), (0.0,) * len(right), True, 0) for end in (turn, eos)]
    (judged,), _ = Judge(inputs.task, inputs.codec)([Group(prompt, tuple(samples))])
    assert [(s.text, s.gold) for s in judged.samples] == [(prompt.answer, 1.0)] * 2
    assert not list(inputs.codec.warnings())


@needs_cases
def test_double_eos(tmp_path):
    inputs = prepared(tmp_path, tokenizer_of(SHAPES[SMOL]), **case("double_eos"))
    for pair in inputs.pairs:
        for ids in (pair.chosen_ids, pair.rejected_ids):
            assert text(inputs, ids).count("<|im_end|>") == 1 and text(inputs, ids).endswith(".<|im_end|>")
    right = [inputs.codec.answer(prompt, prompt.answer).ids for prompt in inputs.train]
    groups = [
        Group(p, (Sample("s", ids, (0.0,) * len(ids), True, 0),)) for p, ids in zip(inputs.train, right, strict=True)
    ]
    assert {g.samples[0].gold for g in Judge(inputs.task, inputs.codec)(groups)[0]} == {
        1.0
    }  # a reference has none either


def test_a_template_that_opens_a_thought(tmp_path):
    said = [{"role": "assistant", "content": f"<think>\nhm\n</think>\nyes {n}"} for n in range(8)]
    rows = [row | {"chosen": [answer]} for row, answer in zip(ROWS, said, strict=True)]
    for name in ("R1: opens <think>, which finished answers lack",):
        inputs = prepared(tmp_path, tokenizer_of(SHAPES[name]), rows=rows)
        for pair in inputs.pairs:
            whole = text(inputs, pair.prompt.token_ids + pair.chosen_ids)
            assert whole.count("<think>") == 1 and "<think>\nhm\n</think>\nyes" in whole
    (note,) = [n for n in inputs.notes if "'<think>\\n'" in n]  # the rejected ones do not think
    assert re.match(r"5 given answers \(first train\.jsonl:\d, rejected\) do not begin with", note)


@needs_cases
def test_a_system_message_is_part_of_the_prompt_or_refused(tmp_path):
    rows = [json.loads(line) for line in (CASES / "system_in_prompt_only" / "train.jsonl").read_text().splitlines()]
    rows = [r | {side: r[side][-1:] for side in ("chosen", "rejected")} for r in rows]
    (tmp_path / "taken").mkdir()
    (tmp_path / "refused").mkdir()
    inputs = prepared(tmp_path / "taken", tokenizer_of(SHAPES[SMOL]), rows=rows)
    for prompt in (*inputs.train, *(p.prompt for p in inputs.pairs)):
        assert text(inputs, prompt.token_ids).startswith("<|im_start|>system\nYou answer briefly.<|im_end|>\n")
    gemma = tokenizer_of(SHAPES["Gemma: refuses system messages, and trims"])
    with pytest.raises(BadInput) as refused:
        prepared(tmp_path / "refused", gemma, rows=rows)
    (line,) = refused.value.args
    assert "train.jsonl:" in line and "System role not supported" in line and "; leave the row out" in line


def test_a_prefill_in_the_data_is_continued(tmp_path):
    rows = [row | {"prompt": [*row["prompt"], {"role": "assistant", "content": "I say:"}]} for row in ROWS]
    inputs = prepared(tmp_path, tokenizer_of(SHAPES[SMOL]), rows=rows, held=rows[6:])
    for prompt in (*inputs.train, *inputs.held_out["in_distribution"], *(p.prompt for p in inputs.pairs)):
        assert re.search(r"\?<\|im_end\|>\n<\|im_start\|>assistant\nI say:$", text(inputs, prompt.token_ids))
    assert {text(inputs, p.chosen_ids)[:4] for p in inputs.pairs} == {"yes "}


@pytest.mark.parametrize(("begun", "name"), [
    ("I say: ", SMOL), ("I say: ", "Llama 3"),  # which keep and drop the space at the end
    ("I say:", SMOL),
])  # fmt: skip
def test_a_prefill_belongs_to_the_answer_that_is_judged(begun, name, tmp_path):
    rows = [row | {"prompt": [*row["prompt"], {"role": "assistant", "content": begun}]} for row in ROWS]
    inputs = prepared(tmp_path, tokenizer_of(SHAPES[name]), rows=rows, held=rows[6:])
    judge, prompts = Judge(inputs.task, inputs.codec), [*inputs.train, *inputs.held_out["in_distribution"]]
    assert {p.answer[:-1] for p in prompts} == {f"{begun}yes "}
    for prompt in prompts:
        said = [inputs.codec.answer(prompt, f"{word} {prompt.answer[-1]}").ids for word in ("yes", "no")]
        samples = tuple(Sample(str(i), ids, (0.0,) * len(ids), True, 0) for i, ids in enumerate(said))
        ((group,), _) = judge([Group(prompt, samples)])
        assert [s.gold for s in group.samples] == [1.0, 0.0]
        assert [judge.of(prompt, s.text).score for s in group.samples] == [1.0, 0.0]
    (note,) = [n for n in inputs.notes if "judged is" in n]
    assert note.startswith("8 prompts end with what the assistant has begun to say (first train.jsonl:1): ")


def test_a_reference_in_a_column_of_its_own_is_the_whole_answer(tmp_path):
    begun = {"role": "assistant", "content": "It is "}
    rows = [
        {"prompt": [{"role": "user", "content": f"q{n}"}, begun], "reference": f"It is {n}", "response": str(n)}
        for n in range(8)
    ]
    for path, some in (("train.jsonl", rows[:6]), ("held.jsonl", rows[6:])):
        (tmp_path / path).write_text("".join(json.dumps(r) + "\n" for r in some))
    task = build_task(FilesSettings(prompts=tmp_path / "train.jsonl", held_out=tmp_path / "held.jsonl"))
    of = Judge(task, build_codec(tokenizer_of(SHAPES[SMOL]), None, True, date(2026, 11, 29))).of
    for prompt in task.prompts("train", 6, 0):
        assert [of(prompt, text).score for text in (prompt.answer[-1], prompt.answer)] == [1.0, 0.0]


def test_a_run_goes_on_after_midnight_with_the_date_of_its_beginning(tmp_path):
    model = model_folder(tmp_path / "model", tokenizer_of(SHAPES[DATED]))
    recipe, cache, out = recipe_on(tmp_path, model), Cache(tmp_path / "cache"), tmp_path / "out"
    evening, morning = date(2026, 11, 29), date(2026, 11, 30)
    begun = prepare_inputs(recipe, cache, day=first_day(out) or evening)
    open_directory(out, recipe, begun.fingerprint["data"], begun.codec.day)
    resumed = prepare_inputs(recipe, cache, day=first_day(out) or morning)
    open_directory(out, recipe, resumed.fingerprint["data"], resumed.codec.day)
    assert "29 Nov 2026" in text(resumed, resumed.train[0].token_ids)
    assert any("the chat template writes the date, in this run 2026-11-29" in note for note in resumed.notes)
    with pytest.raises(BadInput, match="on other data"):
        open_directory(out, recipe, prepare_inputs(recipe, cache, day=morning).fingerprint["data"], morning)
    (out / "first_day").write_text("yesterday")
    with pytest.raises(BadInput, match="first_day holds no date"):
        first_day(out)


def test_verify_renders_prompts_with_the_day_that_is_recorded(tmp_path):
    model = model_folder(tmp_path / "model", tokenizer_of(SHAPES[DATED]))
    recipe, cache, recorded = recipe_on(tmp_path, model), Cache(tmp_path / "cache"), tmp_path / "recorded"
    ran = prepare_inputs(recipe, cache, day=date(2025, 2, 28))
    open_directory(recorded, recipe, ran.fingerprint["data"], ran.codec.day)
    again = Again(recorded, tmp_path / "now", "", recipe)
    assert again.spec(cache, None, None).inputs.fingerprint == ran.fingerprint
    assert first_day(tmp_path / "now") == date(2025, 2, 28)
    (recorded / "first_day").unlink()
    with pytest.raises(BadInput, match="recorded: the chat template writes the date, and first_day is not there"):
        replace(again, directory=tmp_path / "later").spec(cache, None, None)


def test_no_date_is_recorded_where_none_is_written(tmp_path):
    inputs = prepared(tmp_path, tokenizer_of(SHAPES[SMOL]))
    open_directory(tmp_path / "out", recipe_on(tmp_path, tmp_path / "model"), "data", inputs.codec.day)
    assert first_day(tmp_path / "out") is None and first_day(tmp_path / "nothing") is None


def test_check_shows_an_example_with_its_boundaries(tmp_path):
    inputs = prepared(tmp_path, tokenizer_of(SHAPES[SMOL]))
    head, prompt, answer, ends = example_lines(inputs)
    assert head == "tokens of one example, a · between two:"
    pair = inputs.pairs[0]
    assert prompt.startswith("  prompt: <|im_start|>·sy·stem·\\n·") and prompt.endswith("<|im_start|>·a·ss·istant·\\n")
    assert prompt.count("·") + 1 == len(pair.prompt.token_ids) and answer.count("·") + 1 == len(pair.chosen_ids)
    assert answer.replace("·", "") == f"  answer: {text(inputs, pair.chosen_ids)}"
    assert (
        ends == "  given answers end with <|im_end|>; sampling stops at <|im_end|> (the chat template's end of a turn)"
    )


@pytest.mark.parametrize(("name", "changed", "ends", "warning"), [
    (SMOL, {"eos_token": "<|endoftext|>"}, {}, r"ends a turn with <\|im_end\|>, and the tokenizer's EOS is <\|endoftext\|>: .* eos_token_id"),
    ("Llama 3", {}, {"eos_token_id": 1}, r"ends a turn with <\|eot_id\|>, and the model's list of end tokens is <\|end_of_text\|>: "),
    ("Alpaca: no token ends a turn", {}, {}, "writes no token behind an answer: given answers end with the tokenizer's EOS </s>"),
])  # fmt: skip
def test_check_warns_where_training_and_sampling_would_end_differently(name, changed, ends, warning, tmp_path):
    inputs = prepared(tmp_path, tokenizer_of(SHAPES[name], **changed), generation=ends)
    *_, line = example_lines(inputs)
    assert line.startswith("  warning: the chat template ")
    assert re.search(warning, line)


def test_a_text_without_a_template_begins_and_ends_once(tmp_path):
    rows = [{"prompt": f"<s>q {n}?", "chosen": f"yes {n}</s>", "rejected": f"no {n}"} for n in range(8)]
    inputs = prepared(tmp_path, tokenizer_of(SHAPES["Vicuna"]), rows=rows, held=rows[6:], template=None)
    for pair in inputs.pairs:
        ids = pair.prompt.token_ids + pair.chosen_ids
        assert ids.count(inputs.tokenizer.bos_token_id) == ids.count(inputs.codec.end) == 1
