"""Input that does not work, in recipes, data and models. `check`, which refuses what `run` would refuse and starts
nothing, ends with exit code 2 and one line that names the key, row or file and the remedy. Whatever the input."""

import contextlib
import copy
import io
import json
import os
import re
import shutil
import signal
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhf_bench.cli import main as cli
from rlhf_bench.core.errors import BadInput
from rlhf_bench.models.loading import load_model, write_random_model
from rlhf_bench.models.settings import ModelSettings
from rlhf_bench.models.tokenizer import build_tokenizer
from rlhf_bench.recipe import merge, parse_recipe, recipe_data
from rlhf_bench.tasks.arithmetic import ArithmeticSettings, build

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """Of base models: this module's alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def hangs(number, frame):
    raise TimeoutError("check takes too long")


def check(*arguments):
    """Exit code and standard error of `rlhf-bench check …`, run in this process. TimeoutError after a minute."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.ExitStack() as after:
        after.callback(signal.signal, signal.SIGALRM, before)
        after.callback(signal.alarm, 0)
        code = cli.exit_code(lambda: cli.app(["check", *map(str, arguments)], standalone_mode=False))
        out.flush()
        err.flush()
    return code, err.buffer.getvalue().decode()


def refusal(*arguments):
    """The one line that `check` ends with where it refuses."""
    code, said = check(*arguments)
    assert code == 2, said
    (line,) = said.splitlines()
    return line.removeprefix("error: ") if line.startswith("error: ") else pytest.fail(line)


# Recipes

GOOD = """
name: small
task: {kind: arithmetic}
compute: {limit: 1.0e+12}
arms:
  a: {method: ppo}
  b: {method: dpo}
"""
# Overrides of GOOD, and a pattern that the one line of the refusal must match: the key first, the remedy behind it.
MISTAKES = [
    # unknown keys
    ("sede=[1]", r"sede: unknown key \(did you mean seeds\?\); remove it"),
    ("compute.limits=1", r"compute\.limits: unknown key \(did you mean limit\?\); remove it"),
    ("sft.stesp=3", r"sft\.stesp: unknown key \(did you mean steps\?\); remove it"),
    ("placement.rollout.gpu=1", r"placement\.rollout\.gpu: unknown key \(did you mean gpus\?\); remove it"),
    ("model.tokenizer={kind: characters, vocab: 3}", r"model\.tokenizer\.vocab: unknown key.*; remove it"),
    ("task.digts=3", r"task\.digts: unknown key \(did you mean digits\?\); remove it"),
    ("zzz=1", r"zzz: unknown key; remove it"),
    # wrong types and ranges
    ("compute.limit=much", r"compute\.limit: .*number.*'much'.*; correct it"),
    ("compute.limit=-1", r"compute\.limit: .*greater than 0.*-1.*; correct it"),
    ("compute.limit=.inf", r"compute\.limit: .*finite.*; correct it"),
    ("compute.limit=.nan", r"compute\.limit: .*; correct it"),
    ("compute.column=steps", r"compute\.column: .*'flops'.*'steps'.*; correct it"),
    ("data.train_prompts=2.5", r"data\.train_prompts: .*integer.*2\.5.*; correct it"),
    ("data=3", r"data: .*; correct it"),
    ("arms.b.beta=strong", r"arms\.b\.beta: .*number.*'strong'.*; correct it"),
    ("arms.b.beta=0", r"arms\.b\.beta: .*greater than 0.*; correct it"),
    ("arms.b.data=of_policy", r"arms\.b\.data: .*'on_policy'.*; correct it"),
    ("name=two words", r"name: .*'two words'.*; correct it"),
    ("model.hidden_size=100", r"model: hidden_size must be a multiple of 2 × heads.*; correct it"),
    ("arms={}", r"arms: .*at least 1.*; correct it"),
    # arms
    ("arms.b.beta_chosen=1", r"arms\.b\.beta_chosen: a setting of flex_dpo and adaptive_flex_dpo, not of dpo; remove it"),
    ("arms.b.clip=0.1", r"arms\.b\.clip: a setting of ppo, not of dpo; remove it"),
    ("arms.b.seeds=[1]", r"arms\.b\.seeds: shared by all arms; move it to the recipe's top level"),
    ("arms.b.compute={limit: 3}", r"arms\.b\.compute: shared by all arms; move it to the recipe's top level"),
    ("arms.b.bet=1", r"arms\.b\.bet: unknown key \(did you mean beta\?\); remove it"),
    ("arms.b.3=1", r"arms\.b\.3: unknown key; remove it"),
    ("arms.b={method: dpo, 3: 1}", r"arms\.b\.3: unknown key; remove it"),
    ("arms.b.method=flexdpo", r"arms\.b\.method: unknown method .*mean flex_dpo\?\); known are ppo, dpo, flex_dpo, [a-z_, ]+"),
    ("arms.b.method=[dpo]", r"arms\.b\.method: .*known are ppo, dpo, flex_dpo, [a-z_, ]+"),
    ("arms.b={beta: 1}", r"arms\.b: needs `method:`, one of ppo, dpo, flex_dpo, [a-z_, ]+"),
    ("arms.b=dpo", r"arms\.b: needs `method:`, one of ppo, dpo, flex_dpo, [a-z_, ]+"),
    ("arms={x y: {method: dpo}}", r"arms\.x y.*; correct it"),
    ("arms.a.pairs_per_update=3", r"arms\.a\.pairs_per_update: a setting of dpo, [a-z_, ]+ and cal_dpo, not of ppo; remove it"),
    # what is drawn from the arms: swept settings, trials, the baseline, claims
    ("sweep.betta=[0.1]", r"sweep\.betta: no arm's method has this setting; correct or remove it"),
    ("sweep={tau: [0.1]}", r"sweep\.tau: no arm's method has this setting; correct or remove it"),
    ("sweep.beta=[0.1, strong]", r"sweep\.beta\.1: .*number.*'strong'.*; correct it"),
    ("sweep.beta=0.1", r"sweep\.beta: .*; correct it"),
    ("sweep=[beta]", r"sweep: .*; correct it"),
    ("sweep.beta=[-1]", r"arms\.b\.beta=-1\.beta: .*greater than 0.*; correct it"),
    ("tuning={trials: [{learning_rate: 1.0e-4}]}", r"tuning\.trials: .*at least 2.*; correct it"),
    ("tuning={trials: 3}", r"tuning\.trials: .*; correct it"),
    ("tuning=[{learning_rate: 1}]", r"tuning: .*; correct it"),
    ("tuning={trials: [3, {learning_rate: 1}, {learning_rate: 2}]}", r"tuning\.trials\.0: .*; correct it"),
    ("tuning={trials: [{learning_rate: 1.0e-4}, {learning_rate: 1.0e-3}], seed: 2}",
     r".*tuning\.seed: 2 is one of seeds; trials need a seed of their own.*"),
    ("tuning={trials: [{learning_rate: 1.0e-4}, {learning_rate: 1.0e-3}], fraction: 2}", r"tuning\.fraction: .*; correct it"),
    ("baseline=c", r".*baseline: there is no arm c; choose among a, b; correct it"),
    ("claims=[{statement: a is best, more: a, less: c}]", r".*claims: there is no arm c; choose among a, b; correct it"),
    ("claims=[{statement: c is best, more: c, less: a}]", r".*claims: there is no arm c; choose among a, b; correct it"),
    ("claims=[{more: a, less: b}]", r"claims\.0\.statement: missing; add it"),
    # seeds
    ("seeds=[1,2,1]", r"seeds: a seed is listed twice.*; correct it"),
    ("seeds=[]", r"seeds: .*at least 1.*; correct it"),
    ("seeds=[-1]", r"seeds: .*; correct it"),
    # looks
    ("evaluation.splits=[unseen]", r"evaluation\.splits: .*must start with in_distribution.*; correct it"),
    ("evaluation.splits=[in_distribution,in_distribution]", r"evaluation\.splits: .*once.*; correct it"),
    ("evaluation.splits=[]", r"evaluation\.splits: .*at least 1.*; correct it"),
    ("evaluation.splits=[in_distribution,train]", r"evaluation\.splits\.1: .*'train'.*; correct it"),
    ("evaluation.marks=[0.5,0.2]", r"evaluation\.marks: marks must ascend.*; correct it"),
    ("evaluation.marks=[0,0.5]", r"evaluation\.marks: .*within \(0, 1\].*; correct it"),
    ("evaluation.marks=[1.5]", r"evaluation\.marks: .*within \(0, 1\].*; correct it"),
    # what cannot go together
    ("placement.weight_sync=nccl", r"placement: weight_sync: nccl needs GPUs.*use object_store.*; correct it"),
    ("placement={weight_sync: ipc, colocated: false, rollout: {gpus: 1}, learner: {gpus: 1}}",
     r"placement: weight_sync: ipc needs colocated: true.*use nccl.*; correct it"),
    ("placement.learner.zero_stage=4", r"placement\.learner\.zero_stage: .*; correct it"),
    ("placement.learner.actors=0", r"placement\.learner\.actors: .*greater than or equal to 1.*; correct it"),
    ("data.max_response_tokens=64", r".*data\.max_response_tokens must leave room.*model\.max_length.*"),
    ("sft=null", r".*sft: null needs model\.name_or_path.*"),
    ("model.tokenizer={kind: bpe}", r"model\.tokenizer: kind: bpe needs vocab_size; add it.*"),
    ("task={kind: chess}", r"task.*: .*'arithmetic'.*; correct it"),
    ("task={digits: 2}", r"task.*: .*kind.*"),
    # numbers that do not fit together
    ("data.train_prompts=20000", r"task arithmetic, train: 20000 different prompts are asked for.*ask for fewer.*"),
    ("model.max_length=20", r"prompt \S+: the prompt\'s 7 tokens leave no room for data\.max_response_tokens 16 .*; raise model\.max_length, .*"),
    ("model.tokenizer={kind: bpe, vocab_size: 1.0e+15}", r"model\.tokenizer\.vocab_size: .*; correct it"),
    ("arms.a.samples_per_prompt=1000000000", r"arms\.a\.samples_per_prompt: .*1024.*; correct it"),
    # overrides themselves
    ("seeds", r"seeds: an override is written key\.path=value"),
    ("=3", r"=3: an override is written key\.path=value"),
    ("name.first=x", r"name\.first=x: name is not a section; check the key"),
    ("name=[", r"name: its value not readable as YAML: .*; correct or quote it"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "line"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_one_mistake_is_one_line_with_key_and_remedy(override, line, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    assert re.fullmatch(line, refusal(path, override))


@pytest.mark.parametrize(("trials", "lines"), [
    # one line for every arm that cannot take the trial: all arms try the same
    ([{"learning_rate": 1e-4}, {"beta": 0.2}], ["arms.a (tuning.trials[1]).beta: a setting of dpo, "]),
    ([{"learning_rate": -1}, {"learning_rate": 1e-4}],
     ["arms.a (tuning.trials[0]).learning_rate: ", "arms.b (tuning.trials[0]).learning_rate: "]),
    ([{"learning_rate": 1e-4}, {"lerning_rate": 1e-3}],
     ["arms.a (tuning.trials[1]).lerning_rate: unknown key (did you mean learning_rate?); remove it",
      "arms.b (tuning.trials[1]).lerning_rate: unknown key (did you mean learning_rate?); remove it"]),
])  # fmt: skip
def test_a_trial_that_an_arm_cannot_take_is_refused_by_its_number(trials, lines):
    with pytest.raises(BadInput) as refused:
        parse_recipe(yaml.safe_load(GOOD) | {"tuning": {"trials": trials}})
    assert len(refused.value.problems) == len(lines)
    assert all(found.startswith(line) for found, line in zip(refused.value.problems, lines, strict=True))


def test_gradients_of_whole_weights_do_not_go_with_sharded_ones():
    data = yaml.safe_load(GOOD) | {"placement": {"learner": {"zero_stage": 3}}}
    data["arms"]["c"] = {"method": "adaptive_flex_dpo"}
    with pytest.raises(BadInput) as refused:
        parse_recipe(data)
    assert re.fullmatch(r".*placement\.learner\.zero_stage: 3 .* arm c takes gradients.*; use 2.*", str(refused.value))


def test_the_recipe_of_these_tests_is_good():
    assert list(parse_recipe(yaml.safe_load(GOOD)).arms) == ["a", "b"]


@pytest.mark.parametrize(("key", "line"), [
    ("name", "name: missing; add it"),
    ("task", "task: missing; add it"),
    ("compute", "compute: missing; add it"),
    ("arms", "arms: missing; add it"),
])  # fmt: skip
def test_a_missing_key_is_named(key, line):
    data = yaml.safe_load(GOOD)
    del data[key]
    with pytest.raises(BadInput) as refused:
        parse_recipe(data)
    assert refused.value.problems == (line,)


def test_every_problem_gets_its_line():
    data = yaml.safe_load(GOOD) | {"sede": 1, "compute": {"limit": 0}}
    data["arms"] = {"a": {"method": "pop"}, "b": {"method": "dpo", "clip": 1, "seeds": [1]}}
    with pytest.raises(BadInput) as refused:
        parse_recipe(data)
    keys = sorted(problem.split(":")[0] for problem in refused.value.problems)
    assert keys == ["arms.a.method", "arms.b.clip", "arms.b.seeds", "compute.limit", "sede"]


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))
# What stands in the recipe's file, and the line.
NO_RECIPES = {
    "broken YAML": ("a: [1", r".*recipe\.yaml: not readable as YAML: .*; correct or quote it"),
    "tabs": ("task:\n\tkind: arithmetic", r".*recipe\.yaml: not readable as YAML: .*'\\t'.* line 2, .*; correct or quote it"),
    "UTF-16": (GOOD.encode("utf-16"), r".*recipe\.yaml: not UTF-8 .*; save it as UTF-8"),
    "Latin-1": ("description: Stra\xdfe".encode("latin-1"), r".*recipe\.yaml: not UTF-8 .*; save it as UTF-8"),
    "a NUL": (GOOD.encode() + b"description: \x00", r".*recipe\.yaml: not readable as YAML: .*"),
    "a list": ("- 1\n- 2", r".*recipe\.yaml: a recipe is a mapping of keys to values; write key: value lines"),
    "empty": ("", r".*recipe\.yaml: a recipe is a mapping of keys to values; .*"),
    "extends nothing": ("extends: nowhere.yaml", r".*nowhere\.yaml: no such recipe file; check the path"),
    "extends itself": ("extends: recipe.yaml", r".*recipe\.yaml: extends itself.*; break the circle"),
    "extends in a circle": ("extends: other.yaml", r".*recipe\.yaml: extends itself by way of .*other\.yaml; .*"),
    "extends two": ("extends: [a.yaml, b.yaml]", r".*recipe\.yaml: extends: is the name of one file; correct it"),
    "extends a folder": ("extends: .", r".*: is no file; give a recipe file"),
    "extends a long name": (f"extends: {'x' * 300}", r".*x: cannot be read: File name too long; check path .*"),
    "a key twice": (GOOD + "name: again", r".*: line 8: the key name is there twice; keep one of the two"),
    "an arm twice": (GOOD + "  b: {method: ppo}", r".*: line 8: the key b is there twice; keep one of the two"),
    "a list as a key": (GOOD + "? [1, 2]\n: 3", r".*: line 8: a list or mapping where a key belongs; make the key .*"),
    "a Python object": (GOOD + "description: !!python/object/apply:os.getcwd []",
                        r".*: line 8: python/object/apply:os.getcwd is no value of a recipe; quote it, .*"),
    "a date": (GOOD + "description: 2001-01-01", r".*: line 8: timestamp is no value of a recipe; quote it, .*"),
    "a date that is none": (GOOD + "description: 2001-99-99", r".*: line 8: timestamp is no value .*; quote it, .*"),
    "a tag that lies": (GOOD + "description: !!int x", r".*: not readable as YAML: .*; correct or quote it"),
    "a truth that is none": (GOOD + "description: !!bool x", r".*: not readable as YAML: .*; correct or quote it"),
    "deep lists": (GOOD + "description: " + "[" * 100_000, r".*: is nested more than 20 deep; make it flatter"),
    "deep enough": (GOOD + "description: " + "[" * 30 + "]" * 30, r".*: line 8: is nested more than 20 deep; .*"),
    "deep by aliases": ("a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2000)),
                        r".*: line \d+: is nested more than 20 deep; make it flatter"),
    "a bomb of aliases": (BOMB, r".*: line \d+: stands for more than 50000 values; repeat less by aliases"),
    "a bomb of merges": (MERGED, r".*: line \d+: stands for more than 50000 values; repeat less by aliases"),
    "an alias inside itself": ("name: &a [*a]", r".*: line 1: contains itself by an alias; write out what is meant"),
    "too long": ("#" * 1_000_000, r".*: has 1000000 characters; a recipe has at most 256000: .*"),
    "a huge number": (GOOD + "seeds: [" + "9" * 5000 + "]", r".*: line 8: a number of 5000 digits; give at most 100, .*"),
    "a large number": (GOOD + "seeds: [" + "9" * 30 + "]", r".*: line 8: 9{30} is too large a whole number; .*"),
    "half a character": (GOOD + r'description: "\ud83d"', r".*: line 8: has a character that no text has; remove it"),
    "a key with a line break": (GOOD + r'"a\nb": 1', r"a b: unknown key; remove it"),
    "a key of digits": (GOOD + "3: 1", r"3: Keys should be strings .*; correct it"),
    "a long value": (GOOD + f"seeds: {'x' * 10_000}", r"seeds: .{,200}; correct it"),
    "a key of nothing": (GOOD + "null: 1", r"None: Keys should be strings .*; correct it"),
    "a value that names no directory": (GOOD + f"vary: {{key: description, values: [{'x' * 300}]}}",
                                        r"vary\.values: 'description=x+'… cannot name a directory; give values of .*"),
    "more prompts than are drawn": (GOOD.replace("arithmetic", "verse") + "data: {train_prompts: 1000000000}",
                                    r"task verse, train: 1000000000 prompts are asked for.*; ask for fewer"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "line"), NO_RECIPES.values(), ids=NO_RECIPES)
def test_files_that_are_no_recipes(content, line, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "other.yaml").write_text("extends: recipe.yaml")
    said = refusal(path)
    assert re.fullmatch(line, said), said


@pytest.mark.parametrize(("name", "line"), [
    ("nowhere.yaml", r".*nowhere\.yaml: no such recipe file; check the path"),
    (".", r".*: is no file; give a recipe file"),
    ("loop.yaml", r".*loop\.yaml: cannot be read: Too many levels of symbolic links; check path and permissions"),
    ("pipe.yaml", r".*pipe\.yaml: is no file; give a recipe file"),
    ("secret.yaml", r".*secret\.yaml: cannot be read: Permission denied; check path and permissions"),
])  # fmt: skip
def test_recipes_that_cannot_be_read(name, line, tmp_path):
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "secret.yaml").touch(mode=0)
    if name == "secret.yaml" and os.access(tmp_path / name, os.R_OK):
        pytest.skip("this user may read everything")
    assert re.fullmatch(line, refusal(tmp_path / name))


def test_a_recipe_with_a_byte_order_mark_windows_line_ends_and_aliases_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = ENOUGH + "  c: &c {method: dpo, beta: 0.2}\n  d: {<<: *c, beta: 0.3}\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert check(path) == (0, "")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "file" / "cache"))
    assert re.fullmatch(r"RLHF_BENCH_CACHE: .*cache cannot be written .*; name .*", refusal(tmp_path / "recipe.yaml"))


# Data

ENOUGH = """
name: small
task: {kind: arithmetic}
data: {train_prompts: 6, off_policy_pairs: 3, held_out_pairs: 1, max_response_tokens: 8, candidates_per_prompt: 2}
sft: {demonstrations: 6}
evaluation: {prompts: 2, splits: [in_distribution]}
compute: {limit: 1.0e+14}
arms:
  a: {method: ppo}
  b: {method: dpo}
"""
FILES = "task={kind: files, prompts: ./train.jsonl, held_out: ./test.jsonl, pairs: ./pairs.jsonl}"
FROM_FILES = ENOUGH.replace("{kind: arithmetic}", FILES.removeprefix("task="))
TRAIN = [{"prompt": f"q{n}?", "reference": f"a{n}", "response": f"a{n}", "author": "me"} for n in range(6)]
TEST = [{"prompt": f"h{n}?", "reference": f"a{n}"} for n in range(4)]
PAIRS = [{"prompt": f"q{n}?", "chosen": "yes", "rejected": "no"} for n in range(4)]


USER, ANSWER = {"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"}


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GOOD_FILES = {"train.jsonl": jsonl(*TRAIN), "test.jsonl": jsonl(*TEST), "pairs.jsonl": jsonl(*PAIRS)}


def write_files(folder, **changed):
    for name, content in (GOOD_FILES | changed).items():
        (folder / name).write_bytes(content)
    (folder / "recipe.yaml").write_text(FROM_FILES)
    return folder / "recipe.yaml"


def one(**changes):
    """The training rows, the second one changed; None takes a column away."""
    row = {key: value for key, value in (TRAIN[1] | changes).items() if value is not ...}
    return jsonl(TRAIN[0], row, *TRAIN[2:])


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
    "UTF-16": ("train.jsonl", jsonl(*TRAIN).decode().encode("utf-16"), r".*train\.jsonl:1: not UTF-8 .*; save the file as UTF-8"),
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
    "messages without an answer": ("pairs.jsonl", jsonl(PAIRS[0] | {"chosen": [USER, ANSWER], "rejected": [USER, USER]}),
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


# Overrides of the recipe on files, and the line.
SETTINGS = {
    "no such file": ("task.prompts=none.jsonl", r"task\.prompts: there is no file none\.jsonl; correct the path"),
    "a folder": (FILES.replace("./train.jsonl", "./folder.jsonl"), r"task\.prompts: .*folder\.jsonl is a folder; give a file in it"),
    "a loop of links": (FILES.replace("./pairs.jsonl", "./loop.jsonl"), r"task\.pairs: .*loop\.jsonl.*; .*"),
    "a pipe": (FILES.replace("./pairs.jsonl", "./pipe.jsonl"), r"task\.pairs: there is no file .*pipe\.jsonl; correct the path"),
    "no permission": (FILES.replace("./test.jsonl", "./secret.jsonl"), r"task\.held_out: .*secret\.jsonl cannot be read .*; check the file"),
    "a long name": (f"task.prompts={'x' * 300}.jsonl", r"task\.prompts: x*\.jsonl cannot be read \(File name too long\); check the file"),
    "another format": ("task.prompts=rows.csv", r"task\.prompts: rows\.csv is neither \.jsonl nor \.parquet; convert it to one of them"),
    "no file given": ("task={kind: files, prompts: train.jsonl}", r"task\.(files\.)?held_out: missing; add it"),
    "not a path": ("task.prompts=5", r"task\.prompts: .*path.*5.*; correct it"),
    "not Parquet": (FILES.replace("./train.jsonl", "./broken.parquet"), r".*broken\.parquet: not a Parquet file .*; write it again"),
    "Parquet of numbers": (FILES.replace("./train.jsonl", "./numbers.parquet"), r".*numbers\.parquet:1: column 'prompt' holds a number; .*"),
    "an id twice": ("task.id_column=author", r".*train\.jsonl:2: the same id 'files/train/me' as .*train\.jsonl:1; give every .*"),
    "no such column": ("task.prompt_column=question", r".*train\.jsonl:1: no column 'question' .*; rename it or name the right one .*"),
    "a reference without a number": (FILES.replace("}", ", judge: number, reference_column: author}"), r".*train\.jsonl:1: column 'author' has no single number .*judge: exact"),
    "no demonstrations": ("task.response_column=null", r"task\.response_column: null leaves no demonstrations; .*"),
    "no such split": ("evaluation.splits=[in_distribution, unseen]", r"evaluation\.splits: the data has no unseen prompts .*; remove it"),
    "a place that is none": ("task.prompts={source: train.jsonl, part: train}", r"task\.(files\.)?prompts\.part: unknown key.*; remove it"),
    "a list of places": ("task.prompts=[a, b]", r"task\.prompts: .*give a path, a Hugging Face id, or a mapping .*; correct it"),
    "no rows asked for": ("task.prompts={source: train.jsonl, rows: 0}", r"task\.prompts\.rows: .*greater than or equal to 1.*; correct it"),
    "a folder without data": (FILES.replace("./train.jsonl", "./empty"), r"task\.prompts: .*empty cannot be read as a data set \(.*\); correct source, .*"),
    "no such split of a data set": (FILES.replace("./train.jsonl", "{source: ./set, split: nope}"),
                                    r"task\.prompts: .*set cannot be read as a data set \(.*nope.*\); correct source, config or split"),
    "no such configuration": (FILES.replace("./train.jsonl", "{source: ./set, config: nope}"),
                              r"task\.prompts: .*set cannot be read as a data set \(.*nope.*\); correct source, config or split"),
    "a data set cut short": (FILES.replace("./train.jsonl", "./cut"), r"task\.prompts: .*cut cannot be read as a data set \(.*\); correct .*"),
    "an unknown judge": ("task.judge=latex", r"task\.(files\.)?judge: .*'boxed'.*'latex'.*; correct it"),
    "a chat template for a tokenizer of one's own": ("model.tokenizer={kind: characters, chat_template: own}", r"model\.tokenizer: chat_template belongs to .*pretrained.*"),
    "GPUs that are too small": ("placement={learner: {gpus: 1}, device: {memory_gib: 0.5}}", r"placement: learner needs 1 GiB on one GPU .*; give .*"),
    "a folder of GSM8K": ("task={kind: gsm8k, folder: nowhere}", r"task\.folder: there is no folder nowhere; give .*"),
    "half a GSM8K": ("task={kind: gsm8k, folder: ./}", r".*: no column 'answer' .*; rename it .*"),
    "rows beyond a micro-batch": ("compute.tokens_per_micro_batch=16", r".*jsonl:\d: the prompt with 4 responses .*raise it to \d+ or more.*"),
    "a budget without an update": ("compute.limit=1.0e+10", r"compute\.limit: 1e\+10 flops is less than arm a needs .*; raise it .*"),
}  # fmt: skip


@pytest.mark.parametrize(("override", "line"), SETTINGS.values(), ids=SETTINGS)
def test_data_that_the_recipe_asks_for_in_vain(override, line, tmp_path, monkeypatch):
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
    said = refusal(recipe, override)
    assert re.fullmatch(line, said), said


def other_pairs(**changes):
    return {"pairs.jsonl": jsonl(PAIRS[0] | changes, *PAIRS[1:])}  # which is not held out


OFFLINE = "arms={b: {method: dpo}}"
GSM8K = {
    "train.jsonl": jsonl({"question": "How many?", "answer": "1 + 1 = 2\n#### 2"}),
    "test.jsonl": jsonl({"question": "How few, how many?", "answer": "1\n#### 1"}),
    "example_model_solutions.jsonl": jsonl({"question": "How few?", "ground_truth": "3\nA: 3"} | {
        f"{size}_{kind}": {"solution": f"So {n}\nA: {n}", "is_correct": n == 3}
        for n, (size, kind) in enumerate([("6b", "finetuning"), ("6b", "verification"), ("175b", "finetuning"), ("175b", "verification")])
    }),
}  # fmt: skip
NO_PAIRS = FILES.replace(", pairs: ./pairs.jsonl", "")
# The tokens of a micro-batch, files, overrides, and the line; a training prompt has 4 tokens, a response at most 8.
WIDE = {
    "a given pair": (24, other_pairs(chosen="y" * 20), [OFFLINE], r".*pairs\.jsonl:1: prompt, chosen and rejected make 28 tokens, .*"),
    "a demonstration": (24, {"train.jsonl": one(response="a" * 30)}, [OFFLINE], r".*train\.jsonl:2: prompt and response make 35 tokens, .*"),
    "a graded solution": (30, GSM8K, [OFFLINE, "task={kind: gsm8k, folder: ./}", "sft.demonstrations=1", "data.train_prompts=1", "data.off_policy_pairs=2", "evaluation.prompts=1"],
                          r".*solutions\.jsonl:1: prompt, chosen and rejected make 34 tokens, .*"),
    "generated pairs": (19, {}, [OFFLINE, NO_PAIRS], r".*(train|test)\.jsonl:\d: the prompt with 2 responses of data\.max_response_tokens 8, as the weaker policy draws them, makes 20 tokens, .*"),
    "generated pairs on a long prompt": (24, {"train.jsonl": one(prompt="q" * 9)}, [OFFLINE, NO_PAIRS], r".*train\.jsonl:2: the prompt with 2 .*26 tokens.*"),
    "generated held-out pairs": (24, {"test.jsonl": jsonl(*TEST[2:], *({"prompt": "h" * n, "reference": "a"} for n in (9, 10)))},
                                 [OFFLINE, NO_PAIRS, "evaluation.prompts=4"], r".*test\.jsonl:4: the prompt with 2 .*27 tokens.*"),
    "pairs of a task's own prompts": (24, {}, [OFFLINE, "task={kind: arithmetic}", "evaluation.splits=[in_distribution, out_of_distribution]"],
                                      r"prompt arithmetic/out_of_distribution/\d+: the prompt with 2 .*2[56] tokens.*"),
    "samples of an arm": (24, {}, [], r".*train\.jsonl:\d: the prompt with 4 responses .*, as arm a draws them, makes 36 tokens.*"),
    "a pair's prompt that an arm samples on": (24, other_pairs(prompt="q" * 9), ["arms={b: {method: dpo, data: on_policy}}", "data.held_out_pairs=1", "data.off_policy_pairs=3"],
                                               r".*pairs\.jsonl:1: the prompt with 2 responses .*, as arm b draws them, makes 26 tokens.*"),
    "a sample beside a given side": (20, other_pairs(rejected="n" * 12, chosen="y"), ["arms={b: {method: dpo, data: chosen_on_policy}}"],
                                     r".*jsonl:1: the prompt with 1 response of .*, as arm b draws them, and the pair's other side makes 25 tokens.*"),
    "candidates for the reward model": (24, {}, ["arms={a: {method: ppo, samples_per_prompt: 1}}", "data.candidates_per_prompt=3"],
                                        r".*train\.jsonl:\d: the prompt with 3 responses .*, as the reward model's stage draws them, makes 28 tokens.*"),
}  # fmt: skip


@pytest.mark.parametrize(("most", "changed", "overrides", "line"), WIDE.values(), ids=WIDE)
def test_what_is_computed_in_one_row_fits_a_micro_batch(most, changed, overrides, line, tmp_path, monkeypatch):
    recipe = write_files(tmp_path, **changed)
    monkeypatch.chdir(tmp_path)
    said = refusal(recipe, *overrides, f"compute.tokens_per_micro_batch={most}")
    assert re.fullmatch(line, said), said
    needed = re.search(r"raise it to (\d+) or more, .*or leave the row out$", said)[1]
    assert "micro_batch" not in check(recipe, *overrides, f"compute.tokens_per_micro_batch={needed}")[1]


FULL = other_pairs(prompt="q" * 57)  # 58 tokens of 64, with room for the pair's sides and not for 8 tokens


@pytest.mark.parametrize("mode", ["on_policy", "chosen_on_policy", "rejected_on_policy"])
def test_a_pairs_prompt_leaves_room_for_what_an_arm_draws(mode, tmp_path):
    recipe = write_files(tmp_path, **FULL)
    said = refusal(recipe, f"arms={{b: {{method: dpo, data: {mode}}}}}")
    assert re.fullmatch(
        r".*pairs\.jsonl:1: the prompt's 58 tokens leave no room for data\.max_response_tokens 8, which arm b draws, "
        r"within model\.max_length 64; raise model\.max_length, or leave the row out",
        said,
    ), said


@pytest.mark.parametrize("arms", ["{b: {method: dpo}}", "{b: {method: dpo, data: online}}", "{a: {method: ppo}}"])
def test_a_pairs_prompt_that_no_arm_samples_on_may_fill_the_context(arms, tmp_path):
    assert check(write_files(tmp_path, **FULL), f"arms={arms}") == (0, "")


def test_a_pairs_prompt_beyond_those_that_are_sampled_on_may_fill_the_context(tmp_path):
    """Of the four pairs' prompts, one is held out and one sampled on; each of them is the full one in its turn."""
    codes = []
    for full in range(4):
        rows = [pair | {"prompt": "q" * 57} if n == full else pair for n, pair in enumerate(PAIRS)]
        recipe = write_files(tmp_path, **{"pairs.jsonl": jsonl(*rows)})
        codes.append(check(recipe, "arms={b: {method: dpo, data: on_policy}}", "data.on_policy_prompts=1")[0])
    assert sorted(codes) == [0, 0, 0, 2]


@pytest.mark.parametrize("mode", ["offline", "rejected_on_policy"])
def test_what_is_drawn_into_no_row_may_be_wider(mode, tmp_path):
    recipe = write_files(tmp_path, **other_pairs(rejected="n" * 12, chosen="y"))
    most = {"offline": 19, "rejected_on_policy": 20}[mode]
    assert check(recipe, f"arms={{b: {{method: dpo, data: {mode}}}}}", f"compute.tokens_per_micro_batch={most}") == (
        0,
        "",
    )


def test_rows_with_a_byte_order_mark_windows_line_ends_and_blank_lines_are_read(tmp_path):
    content = GOOD_FILES["train.jsonl"].replace(b"\n", b"\r\n\r\n")
    assert check(write_files(tmp_path, **{"train.jsonl": b"\xef\xbb\xbf" + content})) == (0, "")


# Models

SUMS = build(ArithmeticSettings()).corpus()


@pytest.fixture(scope="module")
def sound_model(tmp_path_factory):
    """A folder as save_pretrained writes it: a small Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    sizes = ModelSettings(hidden_size=16, layers=2, heads=2, intermediate_size=16, max_length=32)
    write_random_model(sizes, build_tokenizer(sizes.tokenizer, SUMS), 0, folder)
    load_model(str(folder), "causal", "float32", 0).lm.save_pretrained(folder)
    (folder / "fresh.json").unlink()
    return folder


def of_folder(folder, *overrides):
    place = json.dumps(str(folder))
    return [f"model={{name_or_path: {place}, max_length: 32, tokenizer: {{kind: pretrained, name_or_path: {place}}}}}",
            *overrides]  # fmt: skip


def changed_json(name, **values):
    """A change of a JSON file in the folder; None takes a key away."""

    def change(folder):
        data = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({k: v for k, v in data.items() if v is not None}))

    return change


def changed_weights(change):
    """A change of the tensors by name."""

    def rewrite(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors) or tensors, folder / "model.safetensors", {"format": "pt"})

    return rewrite


def without(name):
    return lambda folder: (folder / name).unlink()


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut_short(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def broken_header(folder):
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[10:20] = b"\xff" * 10
    (folder / "model.safetensors").write_bytes(weights)


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def a_lost_shard(folder):
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def a_strange_index(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["model.safetensors"]}')
    (folder / "model.safetensors").unlink()


def a_larger_tokenizer(folder):
    build_tokenizer(ModelSettings().tokenizer, [*SUMS, "abcdefgh"]).save_pretrained(folder)


def no_files(folder):
    shutil.rmtree(folder)


def a_file(folder):
    shutil.rmtree(folder)
    folder.touch()


BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
BART = {"model_type": "bart", "architectures": ["BartForCausalLM"]}
CODEGEN = {"model_type": "codegen", "n_embd": 16, "n_head": 4, "rotary_dim": 4, "n_layer": 2}
USED = r"model\.name_or_path: .* is no causal language model that can be used: "
# What is done to the folder, and the line.
MODELS = {
    "no folder": (no_files, r"model\.name_or_path: there is no folder .*; correct the path, or give a .*id"),
    "a file": (a_file, r"model\.name_or_path: .* is a file; give the folder it is in"),
    "no config": (without("config.json"), USED + r"it has no config\.json; give a folder that save_pretrained wrote"),
    "a config that is no JSON": (written("config.json", b"{"), USED + r".*not a valid JSON file.*; give .*"),
    "a config that is a list": (written("config.json", b"[1]"), USED + r".*; give one that transformers can load"),
    "an unknown architecture": (changed_json("config.json", model_type="nonesuch"), USED + r".*nonesuch.*; give one .*"),
    "an encoder": (changed_json("config.json", **BERT), USED + r"bert sees the words to come; give one with a decoder alone"),
    "an encoder and a decoder": (changed_json("config.json", **T5), USED + r"t5 has an encoder .*; give one with a decoder alone"),
    "half of an encoder and a decoder": (changed_json("config.json", **BART), USED + r"bart has an encoder .*; give one .*"),
    "attention of its own": (changed_json("config.json", **CODEGEN), USED + r"codegen has an attention of its own.*; give one .*"),
    "quantized weights": (changed_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
                          USED + r".*quantized.*; give it as it was before"),
    "a width that is text": (changed_json("config.json", hidden_size="wide"), USED + r".*hidden_size.*; give one .*"),
    "a negative width": (changed_json("config.json", hidden_size=-16), USED + r".*negative.*; give one .*"),
    "no heads": (changed_json("config.json", num_attention_heads=0), USED + r".*zero.*; give one .*"),
    "a billion layers": (changed_json("config.json", num_hidden_layers=10**9),
                         r"model\.name_or_path: .*config\.json has 1000000000 layers, and its weights are \d+ tensors; give both .*"),
    "no weights": (without("model.safetensors"), r"model\.name_or_path: .* has no weights; put model\.safetensors there, or .*"),
    "pickled weights": (pickled, r"model\.name_or_path: .* has only pickled weights \(pytorch_model\.bin\), .*; convert them .*"),
    "weights cut short": (cut_short, r"model\.name_or_path: .*model\.safetensors is damaged or cut short .*; copy or .*"),
    "a broken header": (broken_header, r"model\.name_or_path: .*model\.safetensors is damaged or cut short .*; copy or .*"),
    "weights of no bytes": (written("model.safetensors", b""), r"model\.name_or_path: .*model\.safetensors is damaged .*; copy .*"),
    "a page in place of weights": (written("model.safetensors", b"<!DOCTYPE html><html></html>"),
                                   r"model\.name_or_path: .*model\.safetensors is damaged .*; copy or download it again"),
    "a lost shard": (a_lost_shard, r"model\.name_or_path: .*index\.json names .*model-00001-of-00001\.safetensors, .*; copy or .*"),
    "a strange index": (a_strange_index, r"model\.name_or_path: .*index\.json maps no weights to files; copy or .*"),
    "another width": (changed_json("config.json", hidden_size=32),
                      r"model\.name_or_path: .*model\.safetensors: \S+ has shape \[.*\], and config\.json makes it \[.*\]; give .*"),
    "another vocabulary": (changed_json("config.json", vocab_size=50),
                           r"model\.name_or_path: .*: model\.embed_tokens\.weight has shape \[16, 16\], .* \[50, 16\]; give .*"),
    "a layer too few": (changed_json("config.json", num_hidden_layers=3),
                        r"model\.name_or_path: the weights of .* lack 9 of the model's \d+ tensors, first model\.layers\.2\.\S+; give .*"),
    "a layer too many": (changed_json("config.json", num_hidden_layers=1),
                         r"model\.name_or_path: the weights of .* have model\.layers\.1\.\S+, beyond the layers .*; give .*"),
    "names of another model": (changed_weights(lambda t: {f"other.{k}": v for k, v in t.items()}),
                               r"model\.name_or_path: the weights of .* lack \d+ of the model's \d+ tensors, .*; give .*"),
    "no norm": (changed_weights(lambda t: t.pop("model.norm.weight") is None),
                r"model\.name_or_path: the weights of .* lack 1 of .* tensors, first model\.norm\.weight; give .*"),
    "whole numbers": (changed_weights(lambda t: {k: v.to(torch.int8) for k, v in t.items()}),
                      r"model\.name_or_path: .*model\.safetensors: \S+ holds I8, no fractions; give .*"),
    "fewer positions": (changed_json("config.json", max_position_embeddings=16),
                        r"model\.max_length: 32 is more than the 16 positions of .*; lower it"),
    "no tokenizer": (without("tokenizer.json"), r"model\.tokenizer\.name_or_path: .* \(it has no tokenizer\.json\); give .*"),
    "a broken tokenizer": (written("tokenizer.json", b"{"), r"model\.tokenizer\.name_or_path: cannot load .*; give .*"),
    "an empty tokenizer": (written("tokenizer.json", b"{}"), r"model\.tokenizer\.name_or_path: cannot load .*; give .*"),
    "no chat template": (lambda folder: None, r"model\.tokenizer\.chat_template: .* has none of its own; put .*chat_template\.jinja .*"),
    "no end of sequence": (changed_json("tokenizer_config.json", eos_token=None),
                           r"model\.tokenizer\.name_or_path: .* has no end-of-sequence token, .*; set eos_token in .* or choose another"),
    "more tokens than the model knows": (a_larger_tokenizer,
                                         r"model\.tokenizer\.name_or_path: its token ids go up to 23, and the model .* of 16; give .*"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "line"), MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_used(change, line, sound_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    folder = shutil.copytree(sound_model, tmp_path / "model")
    change(folder)
    chat = ["model.tokenizer.chat_template=own"] if "chat_template" in line else []
    said = refusal(tmp_path / "recipe.yaml", *of_folder(folder, *chat))
    assert re.fullmatch(line, said), said


@pytest.mark.parametrize(("override", "line"), [
    ("model.tokenizer={kind: characters}", r"model\.tokenizer\.kind: characters does not fit .*; use \{kind: pretrained, .*"),
    ("model.name_or_path=./none", r"model\.name_or_path: there is no folder \./none; correct the path, or give .*"),
    ("model.tokenizer.name_or_path=./none", r"model\.tokenizer\.name_or_path: there is no folder \./none; correct .*"),
    ("model.max_length=64", r"model\.max_length: 64 is more than the 32 positions of .*; lower it"),
    ("sft=null", r"sft: null needs a task whose data has pairs.*; set sft, or give pairs"),
])  # fmt: skip
def test_what_does_not_go_with_a_model(override, line, sound_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    said = refusal(tmp_path / "recipe.yaml", *of_folder(sound_model, override))
    assert re.fullmatch(line, said), said


def in_shards(folder):
    load_model(str(folder), "causal", "float32", 0).lm.save_pretrained(folder, max_shard_size=4000)
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 1


def without_padding(folder):
    changed_json("tokenizer_config.json", pad_token=None)(folder)


def of_the_backbone_alone(folder):
    """As a base model is saved: the names without the prefix, the head tied to the embedding."""
    changed_weights(lambda t: {k.removeprefix("model."): v for k, v in t.items()})(folder)


@pytest.mark.parametrize(
    "change", [lambda folder: None, in_shards, without_padding, of_the_backbone_alone, changed_json("config.json", dtype="bfloat16")],
    ids=["as it is", "in shards", "a tokenizer without padding", "the backbone alone", "another number format"],
)  # fmt: skip
def test_models_that_can_be_used(change, sound_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    folder = shutil.copytree(sound_model, tmp_path / "model")
    change(folder)
    code, said = check(tmp_path / "recipe.yaml", *of_folder(folder))
    assert code == 0, said


@pytest.fixture(scope="module")
def sound_reward_model(tmp_path_factory, sound_model):
    """A folder as save_pretrained writes it: a classifier with one label, and the tokenizer that the recipe trains."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    save_classifier(shutil.copytree(sound_model, folder), 1)
    return folder


def save_classifier(folder, labels):
    config = AutoConfig.from_pretrained(folder, num_labels=labels)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def two_labels(folder):
    save_classifier(folder, 2)


def another_alphabet(folder):
    build_tokenizer(ModelSettings().tokenizer, [text.replace("+", "?") for text in SUMS]).save_pretrained(folder)


REWARDS, NO_REWARD = (
    r"reward_model\.name_or_path: ",
    r"reward_model\.name_or_path: .* is no reward model that can be used: ",
)
REWARD_MODELS = {
    "no folder": (no_files, REWARDS + r"there is no folder .*; correct the path, or give a .*id"),
    "a file": (a_file, REWARDS + r".* is a file; give the folder it is in"),
    "no config": (without("config.json"), NO_REWARD + r"it has no config\.json; give a folder that save_pretrained wrote"),
    "a config that is no JSON": (written("config.json", b"{"), NO_REWARD + r".*not a valid JSON file.*; give .*"),
    "two labels": (two_labels, NO_REWARD + r"it has 2 labels, .*; save one with .*num_labels=1"),
    "a language model": (changed_json("config.json", architectures=["LlamaForCausalLM"]),
                         NO_REWARD + r"it is a LlamaForCausalLM; save one with AutoModelForSequenceClassification and num_labels=1"),
    "a language model's weights": (changed_weights(lambda t: t.pop("score.weight") is None),
                                   REWARDS + r"the weights of .* lack 1 of .* tensors, first score\.weight; give .*"),
    "an encoder": (changed_json("config.json", model_type="bert", architectures=["BertForSequenceClassification"]),
                   NO_REWARD + r"bert sees the words to come; give one with a decoder alone"),
    "quantized weights": (changed_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
                          NO_REWARD + r".*quantized.*; give it as it was before"),
    "no weights": (without("model.safetensors"), REWARDS + r".* has no weights; put model\.safetensors there, or .*"),
    "pickled weights": (pickled, REWARDS + r".* has only pickled weights \(pytorch_model\.bin\), .*; convert them .*"),
    "weights cut short": (cut_short, REWARDS + r".*model\.safetensors is damaged or cut short .*; copy or .*"),
    "another width": (changed_json("config.json", hidden_size=32),
                      REWARDS + r".*model\.safetensors: \S+ has shape \[.*\], and config\.json makes it \[.*\]; give .*"),
    "a head of two answers": (changed_weights(lambda t: t.update({"score.weight": torch.zeros(2, 16)})),
                              REWARDS + r".*score\.weight has shape \[2, 16\], and config\.json makes it \[1, 16\]; give .*"),
    "fewer positions": (changed_json("config.json", max_position_embeddings=16),
                        REWARDS + r".* has 16 positions, fewer than model\.max_length 32; lower that, or give another one"),
    "fewer tokens": (lambda folder: (changed_json("config.json", vocab_size=10)(folder), changed_weights(lambda t: t.update(
                         {"model.embed_tokens.weight": t["model.embed_tokens.weight"][:10].clone()}))(folder)),
                     REWARDS + r".* has a vocabulary of 10, and the policy's token ids go up to 15; .*give one with the policy's tokenizer"),
    "other tokens": (another_alphabet, REWARDS + r"the tokenizer of .* has \S+(?: id)? for '.', and the policy's has \d+; .*the policy's tokenizer"),
    "a broken tokenizer": (written("tokenizer.json", b"{"), REWARDS + r"the tokenizer of .* cannot be read \(.*\); copy or download it again"),
}  # fmt: skip


def of_reward_model(folder, *overrides):
    return [f"reward_model.name_or_path={json.dumps(str(folder))}", "model.max_length=32", *overrides]


@pytest.mark.parametrize(("change", "line"), REWARD_MODELS.values(), ids=REWARD_MODELS)
def test_reward_models_that_cannot_be_used(change, line, sound_reward_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    folder = shutil.copytree(sound_reward_model, tmp_path / "model")
    change(folder)
    said = refusal(tmp_path / "recipe.yaml", *of_reward_model(folder))
    assert re.fullmatch(line, said), said


@pytest.mark.parametrize("override", ["steps=3", "pairs=off_policy", "learning_rate=1.0e-5", "pairs_per_prompt=2"])
def test_a_reward_model_is_trained_or_given(override, sound_reward_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    said = refusal(tmp_path / "recipe.yaml", *of_reward_model(sound_reward_model, f"reward_model.{override}"))
    key = override.split("=")[0]
    assert re.fullmatch(
        rf"reward_model: {key} is for training one, and name_or_path .*; remove one of the two; .*", said
    ), said


@pytest.mark.parametrize(
    "change", [lambda folder: None, a_larger_tokenizer, without("tokenizer.json")],
    ids=["as it is", "further tokens", "no tokenizer"],
)  # fmt: skip
def test_reward_models_that_can_be_used(change, sound_reward_model, tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    folder = shutil.copytree(sound_reward_model, tmp_path / "model")
    change(folder)
    code, said = check(tmp_path / "recipe.yaml", *of_reward_model(folder, "reward_model.start_policy_prompts=4"))
    assert code == 0, said


# Any input

ANY = settings(max_examples=60, deadline=None, derandomize=True)  # `check` itself ends what takes too long
WHOLE = st.integers(-1, 100) | st.sampled_from([10**7, 2**31, 2**63 - 1, 2**63, 10**40, -(10**40)])
SCALARS = st.none() | st.booleans() | WHOLE | st.floats() | st.floats(0, 2) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS, inner, max_size=4), max_leaves=8
)


def ends_well(*arguments):
    """Whatever the input: done, or refused with lines that say what to do."""
    code, said = check(*arguments)
    assert all(line.startswith("error: ") for line in said.splitlines()), said
    assert (code, bool(said)) in ((0, False), (2, True)), (code, said)


def places(value):
    """Every list or mapping inside, with every key or index of it."""
    for key, part in [*value.items()] if isinstance(value, dict) else [*enumerate(value)]:
        yield value, key
        if isinstance(part, dict | list):
            yield from places(part)


@st.composite
def mutated(draw, sound, most):
    """The sound data, up to `most` of its values replaced or taken away, or new ones put beside them."""
    data = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, most))):
        inside, key = draw(st.sampled_from([*places(data)] or [(data, "name")]))
        match draw(st.sampled_from(["replace", "remove", "insert"])):
            case "remove" if key in inside or isinstance(inside, list):
                del inside[key]
            case "insert" if isinstance(inside, dict):
                inside[draw(st.text(max_size=8))] = draw(VALUES)
            case _:
                inside[key] = draw(VALUES)
    return data


@cache
def shipped():
    """A shipped recipe with every default written out, in small numbers: checked in a moment."""
    data = recipe_data(ROOT / "recipes/quickstart.yaml")
    small = {key: value for key, value in yaml.safe_load(ENOUGH).items() if key in ("data", "sft", "evaluation")}
    return parse_recipe(merge(data, small)).resolved()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    write_files(folder)
    return folder


def test_the_shipped_recipe_of_these_tests_is_good(place):
    (place / "any.yaml").write_text(yaml.safe_dump(shipped()))
    assert check(place / "any.yaml") == (0, "")


@ANY
@given(data=st.deferred(lambda: mutated(shipped(), 3)))
def test_no_mutated_recipe_ends_in_a_traceback(data, place):
    (place / "any.yaml").write_text(yaml.safe_dump(data))
    ends_well(place / "any.yaml")


PIECES = st.sampled_from([
    "name", "arms", "task", "extends", "vary", "fast", "sweep", ": ", ":", "- ", "\n", "\n  ", " ", "\t", "{", "}", "[", "]",
    ",", "&a ", "*a", "<<: ", "!!int ", "!!python/name:os ", "! ", "? ", "| ", "> ", "'", '"', "#", "%YAML 1.1", "---", "...",
    "1", "0x", "1e5", ".inf", "-.nan", "1:1:1", "2001-01-01", "~", "yes", "\ufeff", "\x85", "é",
])  # fmt: skip


@ANY
@given(text=st.text() | st.lists(PIECES | st.text(max_size=3), max_size=30).map("".join), whole=st.booleans())
def test_no_text_as_a_recipe_ends_in_a_traceback(text, whole, place):
    (place / "any.yaml").write_text((ENOUGH if whole else "") + text, encoding="utf-8")
    ends_well(place / "any.yaml")


@ANY
@given(
    override=st.text(st.characters(exclude_characters="\0"))
    | st.lists(PIECES | st.sampled_from(["=", "."])).map("".join)
)
def test_no_override_ends_in_a_traceback(override, place):
    ends_well(place / "recipe.yaml", "--", override)


def rows_of(name):
    return [json.loads(line) for line in GOOD_FILES[name].splitlines()]


NAMES = st.sampled_from([*GOOD_FILES])


@ANY
@given(data=NAMES.flatmap(lambda name: st.tuples(st.just(name), mutated(rows_of(name), 4))))
def test_no_mutated_rows_end_in_a_traceback(data, place):
    name, rows = data
    write_files(place, **{name: "".join(json.dumps(row) + "\n" for row in rows).encode()})
    ends_well(place / "recipe.yaml")


@ANY
@given(name=NAMES, at=st.floats(0, 1), cut=st.integers(0, 40), put=st.binary(max_size=20), alone=st.booleans())
def test_no_bytes_as_data_end_in_a_traceback(name, at, cut, put, alone, place):
    """Bytes alone, or in the midst of good rows in place of some of theirs."""
    good = GOOD_FILES[name]
    start = int(at * len(good))
    write_files(place, **{name: put if alone else good[:start] + put + good[start + cut :]})
    ends_well(place / "recipe.yaml")
