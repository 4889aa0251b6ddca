"""Rows, and settings of data, that do not work.

`check`, which refuses what `run` would refuse and starts nothing, ends with exit code 2 and one line that names the key, row or file,
and the remedy."""

import json
import os
import re

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.checking import (
    FILES,
    GOOD_FILES,
    PAIRS,
    TEST,
    TRAIN,
    check,
    jsonl,
    one,
    refusal,
    refusals,
    write_files,
)

USER, ANSWER = {"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"}


# The file, what stands in it, and the line.
ROWS = {
    "a broken line": ("train.jsonl", jsonl(*TRAIN) + b"{broken\n", r".*train\.jsonl:7: not JSON .*; write one JSON object .*"),
    "cut short": ("train.jsonl", jsonl(*TRAIN)[:-20], r".*train\.jsonl:6: not JSON .*; write one JSON object on each line"),
    "one JSON list": ("train.jsonl", json.dumps(TRAIN).encode(), r".*train\.jsonl:1: a list where an object belongs; .*"),
    "a row that is null": ("train.jsonl", b"null\n", r".*train\.jsonl:1: null where an object belongs; .*"),
    "a deep row": ("train.jsonl", b"[" * 100_000, r".*train\.jsonl:1: not JSON .*; write one JSON object on each line"),
    "a number of many digits": ("train.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", r".*train\.jsonl:1: not JSON .*"),
    "half a character": ("train.jsonl", one(prompt="\ud83d"), r".*train\.jsonl:2: has half of a character.*remove it"),
    "not UTF-8": ("train.jsonl", one(prompt="q").replace(b'"q"', b'"\xff"'), r".*train\.jsonl:2: not UTF-8 .*; save .*"),
    "UTF-16": ("train.jsonl", jsonl(*TRAIN).decode().encode("utf-16"), r".*train\.jsonl: is UTF-16; save the file as UTF-8"),
    "empty": ("train.jsonl", b"", r"task\.prompts: .*train\.jsonl has no rows; give a file that has some"),
    "blank lines only": ("test.jsonl", b"\n \n\t\n", r"task\.held_out: .*test\.jsonl has no rows; give a file that has some"),
    "no column prompt": ("train.jsonl", one(prompt=...), r".*train\.jsonl:2: no column 'prompt' .*; rename it or .*"),
    "no column reference": ("test.jsonl", b'{"prompt": "x"}', r".*test\.jsonl:1: no column 'reference' .*; rename it or .*"),
    "no column response": ("train.jsonl", one(response=...), r".*train\.jsonl:2: no column 'response' .*; rename it or .*"),
    "no column chosen": ("pairs.jsonl", jsonl(PAIRS[0], {"prompt": "x"}), r".*pairs\.jsonl:2: no column 'chosen' .*; rename .*"),
    "no column rejected": ("pairs.jsonl", b'{"prompt": "x", "chosen": "y"}', r".*pairs\.jsonl:1: no column 'rejected' .*"),
    "a prompt that is null": ("train.jsonl", one(prompt=None), r".*train\.jsonl:2: column 'prompt' holds null; make it a text"),
    "a prompt that is a number": ("train.jsonl", one(prompt=5), r".*train\.jsonl:2: column 'prompt' holds a number; make it .*"),
    "a prompt that is a list": ("train.jsonl", one(prompt=["q"]), r".*train\.jsonl:2: column 'prompt' is no list of messages .*; write it so, .*"),
    "an empty prompt": ("train.jsonl", one(prompt=""), r".*train\.jsonl:2: column 'prompt' is empty; fill it in or remove .*"),
    "a blank prompt": ("train.jsonl", one(prompt=" \n\t"), r".*train\.jsonl:2: column 'prompt' is empty; fill it in or .*"),
    "an empty response": ("train.jsonl", one(response=""), r".*train\.jsonl:2: column 'response' is empty; fill it in or .*"),
    "a response that is an object": ("train.jsonl", one(response={}), r".*train\.jsonl:2: column 'response' holds an object; .*"),
    "a reference that is NaN": ("train.jsonl", one(reference=float("nan")), r".*train\.jsonl:2: column 'reference' holds a number; .*"),
    "a reference that is true": ("train.jsonl", one(reference=True), r".*train\.jsonl:2: column 'reference' holds true or false; .*"),
    "a prompt twice": ("train.jsonl", jsonl(*TRAIN, TRAIN[0]), r".*train\.jsonl:7: the same prompt as .*train\.jsonl:1; keep each .*"),
    "a held-out prompt in training": ("test.jsonl", jsonl(TRAIN[3]), r".*test\.jsonl:1: the same prompt as .*train\.jsonl:4; keep .*"),
    "a pair on a held-out prompt": ("pairs.jsonl", jsonl(PAIRS[0] | {"prompt": "h2?"}),
                                    r".*pairs\.jsonl:1: a pair on the held-out prompt .*test\.jsonl:3; remove one of the two"),
    "chosen is rejected": ("pairs.jsonl", jsonl(PAIRS[0], PAIRS[1] | {"rejected": "yes"}),
                           r".*pairs\.jsonl:2: chosen and rejected are the same text; remove the row"),
    "one label only": ("pairs.jsonl", jsonl(*({"prompt": f"q{n}?", "completion": "yes", "label": True} for n in range(3))),
        r"task\.pairs: .*pairs\.jsonl: every completion has the label true, .*; add completions .* label false, .*"),
    "labels of other prompts": ("pairs.jsonl", jsonl(*({"prompt": f"q{n}?", "completion": "yes", "label": n > 1} for n in range(3))),
        r"task\.pairs: .*pairs\.jsonl: no prompt has completions of both labels, .*; add completions .*"),
    "a label of a pair that is neither": ("pairs.jsonl", jsonl({"prompt": "q0?", "completion": "yes", "label": "so so"}),
        r".*pairs\.jsonl:1: column 'label' is neither true nor false; correct it"),
    "an empty chosen": ("pairs.jsonl", jsonl(PAIRS[0] | {"chosen": ""}), r".*pairs\.jsonl:1: column 'chosen' is empty; .*"),
    "a blank rejected": ("pairs.jsonl", jsonl(PAIRS[0] | {"rejected": " "}), r".*pairs\.jsonl:1: column 'rejected' is empty; .*"),
    "a long prompt": ("train.jsonl", one(prompt="q" * 90), r".*train\.jsonl:2: the prompt's 91 tokens leave no room .*; raise .*or leave .*"),
    "a long response": ("train.jsonl", one(response="a" * 90), r".*train\.jsonl:2: response makes 95 tokens with its prompt, .*; raise it, or .*"),
    "a long held-out prompt": ("test.jsonl", jsonl(TEST[0] | {"prompt": "q" * 90}, TEST[1]), r".*test\.jsonl:1: the prompt's 91 tokens leave no room .*"),
    "a long chosen": ("pairs.jsonl", jsonl(*PAIRS[1:], PAIRS[0] | {"chosen": "y" * 90}), r".*pairs\.jsonl:4: chosen makes 95 .*; raise it, .*"),
    "a long rejected": ("pairs.jsonl", jsonl(*PAIRS[1:], PAIRS[0] | {"rejected": "y" * 90}), r".*pairs\.jsonl:4: rejected makes 95 .*; raise it, .*"),
    "a pair's long prompt": ("pairs.jsonl", jsonl(*PAIRS[1:], PAIRS[0] | {"prompt": "q" * 90}), r".*pairs\.jsonl:4: chosen makes 95 .*; raise it, .*"),
    "messages without a role": ("pairs.jsonl", jsonl({"chosen": [{"content": "a"}], "rejected": [{"content": "b"}]}),
                                r".*pairs\.jsonl:1: column 'chosen' is no list of messages with a text 'role' .*; write it so, .*"),
    "messages in one side alone": ("pairs.jsonl", jsonl(PAIRS[0] | {"chosen": [{"role": "assistant", "content": "a"}]}),
                                   r".*pairs\.jsonl:1: column 'rejected' is no list of messages .*; write it so, or as one text"),
    "no messages": ("pairs.jsonl", jsonl(PAIRS[0] | {"chosen": []}), r".*pairs\.jsonl:1: column 'chosen' is empty; fill it in or .*"),
    "messages without an answer": ("pairs.jsonl", jsonl(PAIRS[0] | {"prompt": "q?", "chosen": [USER, ANSWER], "rejected": [USER, USER]}),
                                   r".*pairs\.jsonl:1: column 'rejected' ends with a message of 'user'; end it with one of .*"),
    "several answers": ("pairs.jsonl", jsonl({"chosen": [USER, ANSWER], "rejected": [USER, USER, ANSWER]}),
                        r".*pairs\.jsonl:1: chosen and rejected differ in more than their last message; keep .*"),
    "answers that share no beginning": ("pairs.jsonl", jsonl({"chosen": "yes", "rejected": "no"}),
                                        r".*pairs\.jsonl:1: no column 'prompt', and chosen and rejected do not begin alike; name .*"),
    "an answer that is the end of the prompt": ("pairs.jsonl", jsonl({"chosen": "q\n\nAssistant:", "rejected": "q\n\nAssistant: no"}),
                                                r".*pairs\.jsonl:1: column 'chosen' has nothing but the prompt that both sides share; give it .*"),
    "an answer that is a line's end": ("pairs.jsonl", jsonl(PAIRS[0], {"chosen": "a\nb", "rejected": "a\n"}),
                                       r".*pairs\.jsonl:2: column 'rejected' has nothing but the prompt .*; give it an answer, or .*"),
    "an answer that is a space": ("pairs.jsonl", jsonl({"chosen": "q? ", "rejected": "q? no"}),
                                  r".*pairs\.jsonl:1: column 'chosen' has nothing but the prompt .*; give it an answer, or .*"),
    "a conversation without a template": ("pairs.jsonl", jsonl(*PAIRS[:3], {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER | {"content": "no"}]}),
                                          r".*pairs\.jsonl:4: the prompt is a conversation, and .*chat_template is null; set it to own"),
    "too few rows": ("train.jsonl", jsonl(*TRAIN[:3]), r"task files, train prompts: 6 are asked for and 3 are there; ask for at most 3"),
    "too few pairs": ("pairs.jsonl", jsonl(*PAIRS[:2]), r"task files, preference pairs: 4 are asked for and 2 are there; .*"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "line"), ROWS.values(), ids=ROWS)
def test_rows_that_cannot_be_used(name, content, line, tmp_path):
    said = refusal(write_files(tmp_path, **{name: content}))
    assert re.fullmatch(line, said), said


# Overrides of the recipe on files, and the line; or several, where as many things are wrong then.
SETTINGS = {
    "no such file": ("task.prompts=none.jsonl", r"task\.prompts: there is no file none\.jsonl; correct the path"),
    "a folder": (FILES.replace("./train.jsonl", "./folder.jsonl"), r"task\.prompts: .*folder\.jsonl is a folder; give a file in it"),
    "a loop of links": (FILES.replace("./pairs.jsonl", "./loop.jsonl"), r"task\.pairs: .*loop\.jsonl.*; .*"),
    "a pipe": (FILES.replace("./pairs.jsonl", "./pipe.jsonl"), r"task\.pairs: there is no file .*pipe\.jsonl; correct the path"),
    "no permission": (FILES.replace("./test.jsonl", "./secret.jsonl"), r"task\.held_out: .*secret\.jsonl cannot be read .*; check the file"),
    "a long name": (f"task.prompts={'x' * 300}.jsonl", r"task\.prompts: x*\.jsonl cannot be read \(File name too long\); check the file"),
    "another format": ("task.prompts=rows.txt", r"task\.prompts: rows\.txt is no \.jsonl, \.json, \.csv, \.tsv or \.parquet file; convert it to one of them"),
    "no file given": ("task={kind: files, prompts: train.jsonl}", r"task: held_out or held_out_share says .*; give one of the two; correct it"),
    "not a path": ("task.prompts=5", r"task\.prompts: .*path.*5.*; correct it"),
    "not Parquet": (FILES.replace("./train.jsonl", "./broken.parquet"), r".*broken\.parquet: not a Parquet file .*; write it again"),
    "Parquet of numbers": (FILES.replace("./train.jsonl", "./numbers.parquet"), r".*numbers\.parquet:1: column 'prompt' holds a number; .*"),
    "an id twice": ("task.id_column=author", r".*train\.jsonl:2: the same id 'files/train/me' as .*train\.jsonl:1; give every .*",
                    r".*test\.jsonl:1: no column 'author' .*; rename it or name .*"),
    "no such column": ("task.prompt_column=question", r".*train\.jsonl:1: no column 'question' .*; rename it or name the right one .*",
                       r".*pairs\.jsonl:1: no column 'question', and chosen and rejected do not begin alike; name .*"),
    "a reference without a number": (FILES.replace("}", ", judge: number, reference_column: author}"), r".*train\.jsonl:1: column 'author' has no single number .*judge: exact \(5 more rows .*\)",
                                     r".*test\.jsonl:1: no column 'author' .*; rename it or name .*"),
    "no demonstrations": ("task.response_column=null", r"task\.response_column: null leaves no demonstrations; .*"),
    "no such split": ("evaluation.splits=[in_distribution, unseen]", r"evaluation\.splits: the data has no unseen prompts .*; remove it"),
    "a score that no probability gives": ("evaluation.expected_score=true", r"evaluation\.expected_score: needs a task with one right .*; set it to false.*"),
    "a place that is none": ("task.prompts={source: train.jsonl, part: train}", r"task\.(files\.)?prompts\.part: unknown key.*; remove it"),
    "a list of places": ("task.prompts=[a, b]", r"task\.prompts: .*give a path, a Hugging Face id, or a mapping .*; correct it"),
    "no rows asked for": ("task.prompts={source: train.jsonl, rows: 0}", r"task\.prompts\.rows: .*greater than or equal to 1.*; correct it"),
    "a folder without data": (FILES.replace("./train.jsonl", "./empty"), r"task\.prompts: .*empty cannot be read as a data set \(.*\); correct source, .*"),
    "no such split of a data set": (FILES.replace("./train.jsonl", "{source: ./set, split: nope}"),
                                    r"task\.prompts: .*set cannot be read as a data set \(.*nope.*\); correct source, config or split"),
    "no such configuration": (FILES.replace("./train.jsonl", "{source: ./set, config: nope}"),
                              r"task\.prompts: .*set cannot be read as a data set \(.*nope.*\); correct source, config or split"),
    "a data set cut short": (FILES.replace("./train.jsonl", "./cut"), r".*cut/train\.jsonl:6: not JSON .*; write one JSON object on each line"),
    "an unknown judge": ("task.judge=latex", r"task\.(files\.)?judge: .*'boxed'.*'latex'.*; correct it"),
    "a chat template for a tokenizer of one's own": ("model.tokenizer={kind: characters, chat_template: own}", r"model\.tokenizer: chat_template belongs to .*pretrained.*"),
    "GPUs that are too small": ("placement={learner: {gpus: 1}, device: {memory_gib: 0.5}}", r"placement: learner needs 1 GiB on one GPU .*; give .*"),
    "a folder of GSM8K": ("task={kind: gsm8k, folder: nowhere}", r"task\.folder: there is no folder nowhere; give .*"),
    "half a GSM8K": ("task={kind: gsm8k, folder: ./}", r"task\.folder: there is no file example_model_solutions\.jsonl; .*",
                       r"train\.jsonl:1: no column 'answer' .*; rename it .* \(9 more rows without a column 'answer'\)"),
    "rows beyond a micro-batch": ("compute.tokens_per_micro_batch=16", r".*jsonl:\d: the prompt with 4 responses .*raise it to \d+ or more.*"),
    "a budget without an update": ("compute.limit=1.0e+10", r"compute\.limit: 1e\+10 flops is less than arm a needs .*; raise it .*"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("override", "lines"), [(override, lines) for override, *lines in SETTINGS.values()], ids=SETTINGS
)
def test_data_that_the_recipe_asks_for_in_vain(override, lines, tmp_path, monkeypatch):
    recipe = write_files(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "secret.jsonl").touch(mode=0)
    if "secret" in override and os.access(tmp_path / "secret.jsonl", os.R_OK):
        pytest.skip("this user may read everything")
    (tmp_path / "empty").mkdir()
    for name in ("set", "cut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_bytes(GOOD_FILES["train.jsonl"][: -20 if name == "cut" else None])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    pa.parquet.write_table(pa.table({"prompt": [1, 2]}), tmp_path / "numbers.parquet")
    monkeypatch.chdir(tmp_path)  # paths on the command line start here
    said = refusals(recipe, override)
    assert len(said) == len(lines) and all(map(re.fullmatch, lines, said)), said


def test_rows_with_a_byte_order_mark_windows_line_ends_and_blank_lines_are_read(tmp_path):
    content = GOOD_FILES["train.jsonl"].replace(b"\n", b"\r\n\r\n")
    assert check(write_files(tmp_path, **{"train.jsonl": b"\xef\xbb\xbf" + content})) == (0, "")
