"""The mixture task: which task each split, demonstration and judgement belongs to, and that ids always tell."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.core.errors import BadInput
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.tasks import build_task
from rlhf_bench.tasks.arithmetic import ArithmeticSettings
from rlhf_bench.tasks.loading.data_source import Place
from rlhf_bench.tasks.loading.settings import FilesSettings
from rlhf_bench.tasks.mixture import MixtureSettings
from rlhf_bench.tasks.registry import SINGLE_TASKS
from rlhf_bench.tasks.verse import VerseSettings

SUMS, POEMS = ArithmeticSettings(noise=0), VerseSettings(noise=0)
SUM_TASK, POEM_TASK = build_task(SUMS), build_task(POEMS)
TASK = build_task(MixtureSettings(train=SUMS, transfer=POEMS))


def without_label(prompt):
    label, _, own_id = prompt.id.partition("/")
    return label, (own_id, prompt.text, prompt.answer)


def as_they_are(prompts):
    return [(prompt.id, prompt.text, prompt.answer) for prompt in prompts]


@pytest.mark.parametrize("split", ["train", "in_distribution", "out_of_distribution"])
def test_splits_are_the_first_tasks_own(split):
    labels, prompts = zip(*map(without_label, TASK.prompts(split, 50, 3)), strict=True)
    assert set(labels) == {"train"}
    assert list(prompts) == as_they_are(SUM_TASK.prompts(split, 50, 3))


def test_unseen_is_what_the_second_task_holds_out():
    labels, prompts = zip(*map(without_label, TASK.prompts("unseen", 50, 3)), strict=True)
    assert set(labels) == {"transfer"}
    assert list(prompts) == as_they_are(POEM_TASK.prompts("in_distribution", 50, 3))


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_demonstrations_come_from_both_tasks_by_turns(count):
    demonstrations = TASK.demonstrations(count, 5)
    assert len(demonstrations) == count
    sums, poems = demonstrations[::2], demonstrations[1::2]
    for mixed, own, label in ((sums, SUM_TASK, "train"), (poems, POEM_TASK, "transfer")):
        expected = own.demonstrations(len(mixed), 5)
        assert [d.response for d in mixed] == [d.response for d in expected]
        found = [without_label(d.prompt) for d in mixed]
        assert found == [(label, own) for own in as_they_are(d.prompt for d in expected)]
    assert TASK.demonstrations(count, 5) == TASK.demonstrations(40, 5)[:count]


def test_every_demonstration_is_judged_by_its_own_task():
    for demonstration in TASK.demonstrations(40, 0):
        judgement = TASK.judge(demonstration.prompt, demonstration.response)
        poem = demonstration.prompt.id.startswith("transfer/")
        assert judgement.score == 1
        assert set(judgement.parts) == ({"lines", "words", "rhyme", "topic", "title"} if poem else {"answer"})


@settings(deadline=None)
@given(st.sampled_from(["train", "in_distribution", "out_of_distribution", "unseen"]), st.integers(0, 9), st.text())
def test_the_judge_is_that_of_the_prompts_task_for_any_text(split, seed, response):
    prompt = TASK.prompts(split, 1, seed)[0]
    own = POEM_TASK if split == "unseen" else SUM_TASK
    assert TASK.judge(prompt, response) == own.judge(prompt, response)


def test_a_text_and_an_id_belong_to_one_split_whatever_the_seed():
    found = {split: [p for seed in range(3) for p in TASK.prompts(split, 200, seed)] for split in TASK.splits}
    texts = {split: {prompt.text for prompt in prompts} for split, prompts in found.items()}
    assert len(set().union(*texts.values())) == sum(map(len, texts.values()))
    ids = [p.id for split in TASK.splits for p in TASK.prompts(split, 200, 0)]
    ids += [d.prompt.id for d in TASK.demonstrations(400, 0)[1::2]]
    assert len(set(ids)) == len(ids)
    learnt = {demonstration.prompt.text for demonstration in TASK.demonstrations(2000, 0)}
    assert not learnt & texts["unseen"]


def test_corpus_covers_both_tasks():
    assert set(SUM_TASK.corpus()) | set(POEM_TASK.corpus()) == set(TASK.corpus())


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    rows = [{"prompt": f"q{n}?", "reference": f"a{n}", "response": f"a{n}"} for n in range(4)]
    held_out = [{"prompt": "h?", "reference": "a"}]
    pairs = [{"prompt": "q1?", "chosen": "a1", "rejected": "no"}]
    named = {"prompts": rows, "held_out": held_out, "pairs": pairs}
    return FilesSettings(**{key: write(tmp_path / f"{key}.jsonl", rows) for key, rows in named.items()})


def test_pairs_are_the_first_tasks(files):
    task = build_task(MixtureSettings(train=files, transfer=POEMS))
    (pair,) = task.pairs(1, 0)
    assert (pair.prompt.id, pair.chosen, pair.rejected) == ("train/files/train/000002", "a1", "no")
    assert task.judge(pair.prompt, pair.chosen).score == 1
    assert TASK.pairs is None
    assert build_task(MixtureSettings(train=POEMS, transfer=files)).pairs is None


def test_splits_and_notes_say_what_there_is(files):
    task = build_task(MixtureSettings(train=files, transfer=POEMS))
    assert task.splits == ("train", "in_distribution", "unseen")
    assert task.notes == ("train, files: prompts: 4 train, 1 in_distribution; preference pairs: 1",)
    assert TASK.splits == ("train", "in_distribution", "out_of_distribution", "unseen")


def test_wrong_data_is_named_by_the_mixtures_key(files, tmp_path):
    missing = files.model_copy(update={"pairs": Place(source=str(tmp_path / "none.jsonl"))})
    with pytest.raises(BadInput, match=r"^task\.transfer\.pairs: there is no file .*none\.jsonl; correct the path$"):
        build_task(MixtureSettings(train=SUMS, transfer=missing))
    wordless = files.model_copy(update={"judge": "number"})
    with pytest.raises(BadInput, match=r":1: .* or set task\.train\.judge: exact( \(\d more rows? .*\))?$"):
        build_task(MixtureSettings(train=wordless, transfer=SUMS))
    silent = build_task(MixtureSettings(train=SUMS, transfer=files.model_copy(update={"response_column": None})))
    with pytest.raises(BadInput, match=r"^task\.transfer\.response_column: null leaves no demonstrations"):
        silent.demonstrations(4, 0)


RECIPE = {"name": "small", "compute": {"limit": 1e12}, "arms": {"a": {"method": "ppo"}}}
KINDS = " or ".join(SINGLE_TASKS)


@pytest.mark.parametrize("task, line", [
    ({"train": {"kind": "mixture"}, "transfer": {"kind": "verse"}},
     f"task.train: mixtures do not nest; give a task of kind {KINDS}; correct it"),
    ({"train": {"kind": "verse"}, "transfer": {"kind": "mixture", "train": 3}},
     f"task.transfer: mixtures do not nest; give a task of kind {KINDS}; correct it"),
    ({"train": {"kind": "verse"}, "transfer": {"kind": "verse", "noise": 0.5}},
     "task: train and transfer are both of kind verse; give two different kinds; correct it"),
    ({"train": {"kind": "verse"}}, "task.transfer: missing; add it"),
    ({"train": {"kind": "verse"}, "transfer": {"kind": "arithmetic", "digts": 3}},
     "task.transfer.digts: unknown key (did you mean digits?); remove it"),
    ({"train": {"kind": "verse"}, "transfer": {"kind": "arithmetic"}, "trian": 1},
     "task.trian: unknown key (did you mean train?); remove it"),
])  # fmt: skip
def test_wrong_settings_are_one_line_each(task, line):
    with pytest.raises(BadInput) as refused:
        parse_recipe(RECIPE | {"task": {"kind": "mixture"} | task})
    assert refused.value.problems == (line,)


def test_a_mixture_reads_from_a_recipe():
    task = {"kind": "mixture", "train": {"kind": "arithmetic", "digits": 3}, "transfer": {"kind": "verse"}}
    recipe = parse_recipe(RECIPE | {"task": task})
    assert recipe.task == MixtureSettings(train=ArithmeticSettings(digits=3), transfer=VerseSettings())
    assert recipe.resolved()["task"]["transfer"]["noise"] == VerseSettings().noise
