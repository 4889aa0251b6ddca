"""Recipes that do not work.

`check`, which refuses what `run` would refuse and starts nothing, ends with exit code 2 and one line that names the key, row or file,
and the remedy."""

import os
import re

import pytest
import yaml

from rlhf_bench.core.errors import BadInput
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.results.store import ArmRecords
from rlhf_bench.training.batch import Batch
from rlhf_bench.training.checkpoints import Checkpoints
from rlhf_bench.training.update import dump_skipped_update
from tests.support.checking import ENOUGH, check, refusal, refusals

# Overrides of ENOUGH, and a pattern that the one line of the refusal must match: the key first, the remedy behind it.
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
    ("arms.b.clip=0.1", r"arms\.b\.clip: a setting of ppo, [a-z_, ]+ and reinforce_plus_plus, not of dpo; remove it"),
    ("arms.b.seeds=[1]", r"arms\.b\.seeds: shared by all arms; move it to the recipe's top level"),
    ("arms.b.compute={limit: 3}", r"arms\.b\.compute: shared by all arms; move it to the recipe's top level"),
    ("arms.b.bet=1", r"arms\.b\.bet: unknown key \(did you mean beta\?\); remove it"),
    ("arms.b.3=1", r"arms\.b\.3: unknown key; remove it"),
    ("arms.b={method: dpo, 3: 1}", r"arms\.b: its value line 1: the key 3 is read as a number, .*; quote it: '3'"),
    ("arms.b.method=flexdpo", r"arms\.b\.method: unknown method .*mean flex_dpo\?\); known are ppo, dpo, flex_dpo, [a-z_, ]+"),
    ("arms.b.method=[dpo]", r"arms\.b\.method: .*known are ppo, dpo, flex_dpo, [a-z_, ]+"),
    ("arms.b={beta: 1}", r"arms\.b: needs `method:`, one of ppo, dpo, flex_dpo, [a-z_, ]+"),
    ("arms.b=dpo", r"arms\.b: needs `method:`, one of ppo, dpo, flex_dpo, [a-z_, ]+"),
    ("arms={x y: {method: dpo}}", r"arms\.x y.*; correct it"),
    ("arms={base: {method: dpo}}", r"arms\.base: tables give this name to what is no arm; rename the arm"),
    ("arms={a: {method: dpo}, shared: {method: ppo}}", r"arms\.shared: tables give this name to what is no arm; rename the arm"),
    ("arms={" + 181 * "x" + ": {method: dpo}}", r"arms\.x{40}…: has 181 characters, and files are named by it; give it 180 at most"),
    ("name=" + 181 * "x", r"name: .*at most 180 characters.*; correct it"),
    ("arms.a.pairs_per_update=3", r"arms\.a\.pairs_per_update: a setting of dpo, [a-z_, ]+ and kto, not of ppo; remove it"),
    ("arms={a: {method: grpo, samples_per_prompt: 1}}", r"arms\.a\.samples_per_prompt: one sample has no other .*: sample 2 or more .*; correct it"),
    ("arms={a: {method: rloo, samples_per_prompt: 1}}", r"arms\.a\.samples_per_prompt: one sample has no other .*: sample 2 or more .*; correct it"),
    ("arms={a: {method: kto, pairs_per_update: 1}}", r"arms\.a\.pairs_per_update: one pair has no other .*: use 2 or more .*; correct it"),
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
    ("tuning={trials: [{learning_rate: 1.0e-4}, {learning_rate: 1.0e-3}], seeds: [2]}",
     r".*tuning\.seeds: 2 is one of seeds; trials need seeds of their own.*"),
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
    ("evaluation.temperature=0", r"evaluation\.temperature: .*greater than 0.*; correct it"),
    ("evaluation.best_of=5", r"evaluation: best_of: the best of 5 .*raise samples_per_prompt to 5; correct it"),
    ("evaluation.base_temperatures=[0.5,0.5]", r"evaluation\.base_temperatures: .*each named once.*; correct it"),
    ("evaluation.marks=[1.5]", r"evaluation\.marks: .*within \(0, 1\].*; correct it"),
    # what cannot go together
    ("placement.weight_sync=nccl", r"placement: weight_sync: nccl needs GPUs.*use object_store.*; correct it"),
    ("placement={weight_sync: ipc, colocated: false, rollout: {gpus: 1}, learner: {gpus: 1}}",
     r"placement: weight_sync: ipc needs colocated: true.*use nccl.*; correct it"),
    ("placement.learner.zero_stage=4", r"placement\.learner\.zero_stage: .*; correct it"),
    ("placement.learner.actors=0", r"placement\.learner\.actors: .*greater than or equal to 1.*; correct it"),
    ("data.max_response_tokens=64", r".*data\.max_response_tokens must leave room.*model\.max_length.*"),
    ("model.tokenizer={kind: bpe}", r"model\.tokenizer: kind: bpe needs vocab_size; add it.*"),
    ("task={kind: chess}", r"task.*: .*'arithmetic'.*; correct it"),
    ("task={digits: 2}", r"task.*: .*kind.*"),
    # numbers that do not fit together
    ("data.train_prompts=20000", r"task arithmetic, train: 20000 different prompts are asked for.*ask for fewer.*"),
    ("model.max_length=14", r"prompt \S+: the prompt\'s 7 tokens leave no room for data\.max_response_tokens 8 .*; raise model\.max_length, .*"),
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
    path.write_text(ENOUGH)
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
        parse_recipe(yaml.safe_load(ENOUGH) | {"tuning": {"trials": trials}})
    assert len(refused.value.problems) == len(lines)
    assert all(found.startswith(line) for found, line in zip(refused.value.problems, lines, strict=True))


def test_a_sweep_that_makes_a_name_too_long_is_refused_by_it():
    data = yaml.safe_load(ENOUGH) | {"sweep": {"beta": [0.25]}}
    data["arms"] = {173 * "x": {"method": "dpo"}}
    with pytest.raises(
        BadInput, match=r"^arms\.x{40}…: has 183 characters, and files are named by it; give it 180 at most$"
    ):
        parse_recipe(data)


def test_the_longest_name_and_seed_that_are_taken_can_name_every_file(tmp_path):
    data = yaml.safe_load(ENOUGH) | {"seeds": [2**63 - 1], "arms": {180 * "x": {"method": "dpo"}}}
    recipe = parse_recipe(data)
    (arm,), (seed,) = recipe.arms, recipe.seeds
    ArmRecords(tmp_path, arm, "dpo", "offline", seed).finish({}, {})
    assert dump_skipped_update(tmp_path, f"{arm}-seed{seed}", 10**9, "why", Batch([], [], {}, False)).exists()
    Checkpoints(str(tmp_path / "state" / f"{arm}-seed{seed}"), 1, print).save(10**8 - 1, {}, lambda folder: {})


def test_gradients_of_whole_weights_do_not_go_with_sharded_ones():
    data = yaml.safe_load(ENOUGH) | {"placement": {"learner": {"zero_stage": 3}}}
    data["arms"]["c"] = {"method": "adaptive_flex_dpo"}
    with pytest.raises(BadInput) as refused:
        parse_recipe(data)
    assert re.fullmatch(r".*placement\.learner\.zero_stage: 3 .* arm c takes gradients.*; use 2.*", str(refused.value))


def test_the_recipe_of_these_tests_is_good():
    assert list(parse_recipe(yaml.safe_load(ENOUGH)).arms) == ["a", "b"]


@pytest.mark.parametrize(("key", "line"), [
    ("name", "name: missing; add it"),
    ("task", "task: missing; add it"),
    ("compute", "compute: missing; add it"),
    ("arms", "arms: missing; add it"),
])  # fmt: skip
def test_a_missing_key_is_named(key, line):
    data = yaml.safe_load(ENOUGH)
    del data[key]
    with pytest.raises(BadInput) as refused:
        parse_recipe(data)
    assert refused.value.problems == (line,)


def test_all_that_a_value_makes_impossible_is_said(tmp_path):
    (tmp_path / "recipe.yaml").write_text(ENOUGH)
    start, pairs = refusals(tmp_path / "recipe.yaml", "sft=null")
    assert re.fullmatch(r".*sft: null needs model\.name_or_path.*; correct it", start)
    assert re.fullmatch(r"arms\.b\.data: offline needs off-policy pairs; .*; give pairs, or set sft, or .*", pairs)


def test_every_problem_gets_its_line():
    data = yaml.safe_load(ENOUGH) | {"sede": 1, "compute": {"limit": 0}}
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
    "UTF-16": (ENOUGH.encode("utf-16"), r".*recipe\.yaml: not UTF-8 .*; save it as UTF-8"),
    "Latin-1": ("description: Stra\xdfe".encode("latin-1"), r".*recipe\.yaml: not UTF-8 .*; save it as UTF-8"),
    "a NUL": (ENOUGH.encode() + b"description: \x00", r".*recipe\.yaml: not readable as YAML: .*"),
    "a list": ("- 1\n- 2", r".*recipe\.yaml: a recipe is a mapping of keys to values; write key: value lines"),
    "empty": ("", r".*recipe\.yaml: a recipe is a mapping of keys to values; .*"),
    "extends nothing": ("extends: nowhere.yaml", r".*nowhere\.yaml: no such recipe file; check the path"),
    "extends itself": ("extends: recipe.yaml", r".*recipe\.yaml: extends itself.*; break the circle"),
    "extends in a circle": ("extends: other.yaml", r".*recipe\.yaml: extends itself by way of .*other\.yaml; .*"),
    "extends two": ("extends: [a.yaml, b.yaml]", r".*recipe\.yaml: extends: is the name of one file; correct it"),
    "extends a folder": ("extends: .", r".*: is no file; give a recipe file"),
    "extends a long name": (f"extends: {'x' * 300}", r".*x: cannot be read: File name too long; check path .*"),
    "a key twice": (ENOUGH + "name: again", r".*: line 11: the key name is there twice; keep one of the two"),
    "an arm twice": (ENOUGH + "  b: {method: ppo}", r".*: line 11: the key b is there twice; keep one of the two"),
    "a list as a key": (ENOUGH + "? [1, 2]\n: 3", r".*: line 11: a list or mapping where a key belongs; make the key .*"),
    "a Python object": (ENOUGH + "description: !!python/object/apply:os.getcwd []",
                        r".*: line 11: python/object/apply:os.getcwd is not a value that a recipe can have; quote it, .*"),
    "a date": (ENOUGH + "description: 2001-01-01", r".*: line 11: timestamp is not a value that a recipe can have; quote it, .*"),
    "a date that is none": (ENOUGH + "description: 2001-99-99", r".*: line 11: timestamp is not a value .*; quote it, .*"),
    "a tag that lies": (ENOUGH + "description: !!int x", r".*: not readable as YAML: .*; correct or quote it"),
    "a truth that is none": (ENOUGH + "description: !!bool x", r".*: not readable as YAML: .*; correct or quote it"),
    "deep lists": (ENOUGH + "description: " + "[" * 100_000, r".*: is nested more than 20 deep; make it flatter"),
    "deep enough": (ENOUGH + "description: " + "[" * 30 + "]" * 30, r".*: line 11: is nested more than 20 deep; .*"),
    "deep by aliases": ("a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2000)),
                        r".*: line \d+: is nested more than 20 deep; make it flatter"),
    "a bomb of aliases": (BOMB, r".*: line \d+: stands for more than 50000 values; repeat less by aliases"),
    "a bomb of merges": (MERGED, r".*: line \d+: stands for more than 50000 values; repeat less by aliases"),
    "an alias inside itself": ("name: &a [*a]", r".*: line 1: contains itself by an alias; write out what is meant"),
    "too long": ("#" * 1_000_000, r".*: has 1000000 characters; a recipe has at most 256000: .*"),
    "a huge number": (ENOUGH + "seeds: [" + "9" * 5000 + "]", r".*: line 11: a number of 5000 digits; give at most 100, .*"),
    "a large number": (ENOUGH + "seeds: [" + "9" * 30 + "]", r".*: line 11: 9{30} is too large a whole number; .*"),
    "half a character": (ENOUGH + r'description: "\ud83d"', r".*: line 11: has a character that no text has; remove it"),
    "a key with a line break": (ENOUGH + r'"a\nb": 1', r"a b: unknown key; remove it"),
    "a key of digits": (ENOUGH + "3: 1", r".*: line \d+: the key 3 is read as a number, and a key is a text; quote it: '3'"),
    "a long value": (ENOUGH + f"seeds: {'x' * 10_000}", r"seeds: .{,200}; correct it"),
    "a key of nothing": (ENOUGH + "null: 1", r".*: line \d+: the key null is read as null, and a key is a text; quote it: 'null'"),
    "a value that names no directory": (ENOUGH + f"vary: {{key: description, values: [{'x' * 300}]}}",
                                        r"vary\.values: 'description=x+'… cannot name a directory; give values of .*"),
    "more prompts than are drawn": (ENOUGH.replace("arithmetic", "verse").replace("prompts: 6", "prompts: 1000000000") + "model: {max_length: 512}",
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
