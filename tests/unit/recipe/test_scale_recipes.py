"""Recipes whose models and data are on the Hub, checked without it: configurations of the published dimensions without
weights, and a few rows in the data sets' own columns, take their places. And what check says where a placement is wrong."""

import functools
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_bench.cli.overview import lines
from rlhf_bench.compute.forecast import check_budget
from rlhf_bench.compute.memory import check_gpu_memory, gpu_forecasts
from rlhf_bench.core.errors import BadInput
from rlhf_bench.models.at_hand import AT_HAND
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.recipe import load_recipe
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import lengths_of, prepare_inputs
from tests.support.given_models import HubCache

RECIPES = Path(__file__).parents[3] / "recipes"
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}<|assistant|>"
# Published in each model's config.json: width, feed-forward width, layers, heads, key and value heads, vocabulary, tied;
# and the number of parameters that the model's card gives, in 10⁹.
QWEN = {
    "0.5B": ((896, 4864, 24, 14, 2, 151936, True), 0.49),
    "3B": ((2048, 11008, 36, 16, 2, 151936, True), 3.09),
    "7B": ((3584, 18944, 28, 28, 4, 152064, False), 7.61),
    "14B": ((5120, 13824, 48, 40, 8, 152064, False), 14.7),
    "32B": ((5120, 27648, 64, 40, 8, 152064, False), 32.5),
}
SIZES = {
    "scale/0.5b_one_gpu": "0.5B",
    "ultrafeedback": "0.5B",
    "scale/7b_one_node": "7B",
    "scale/13b_two_nodes": "14B",
    "scale/33b_four_nodes": "32B",
    "scale/3b_lora_one_gpu": "3B",
}
FEW = [
    "data.train_prompts=20",
    "data.off_policy_pairs=8",
    "data.held_out_pairs=4",
    "sft.demonstrations=20",
    "evaluation.prompts=4",
    "evaluation.splits=[in_distribution]",
]


def model(folder, size):
    """A configuration without weights, and a tokenizer with a chat template."""
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "tie_word_embeddings",
    )
    sizes = dict(zip(keys, QWEN[size][0], strict=True))
    (folder / "config.json").write_text(json.dumps(sizes | {"model_type": "qwen2", "max_position_embeddings": 32768}))
    text = "".join(map(chr, range(32, 127))) + "\n"
    trained = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=400), [text])
    own = PreTrainedTokenizerFast(tokenizer_object=trained.backend_tokenizer, eos_token="<eos>", pad_token="<pad>")
    own.chat_template = TEMPLATE
    own.save_pretrained(folder)
    return folder


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gsm8k(folder):
    """As openai/gsm8k lies on the Hub: a card with its configurations, and Parquet files."""
    for split, count in (("train", 30), ("test", 20)):
        first = 0 if split == "train" else 50
        rows = [
            {"question": f"What is {n} and 1?", "answer": f"{n} + 1\n#### {n + 1}"} for n in range(first, first + count)
        ]
        (folder / "main").mkdir(parents=True, exist_ok=True)
        pa.parquet.write_table(pa.Table.from_pylist(rows), folder / "main" / f"{split}-00000-of-00001.parquet")
    files = "".join(f"  - split: {s}\n    path: main/{s}-*\n" for s in ("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}---\n")
    return [f"task.folder={folder}"]


def mathematics(folder):
    rows = [
        {"problem": f"Find x in ${n}x=1$.", "solution": f"So $x=\\boxed{{\\frac{{1}}{{{n}}}}}$."} for n in range(1, 31)
    ]
    write(folder / "a" / "train.jsonl", rows)
    write(
        folder / "b" / "test.jsonl",
        [{"problem": "Find 0.", "solution": "0", "answer": "0"}] * 2
        + rows[:2]
        + [{"problem": f"Find {n}.", "solution": f"\\boxed{{{n}}}", "answer": f"{n}"} for n in range(1, 9)],
    )
    return [f"task.prompts.source={folder / 'a'}", f"task.held_out.source={folder / 'b'}"]


def ultrafeedback(folder):
    def row(n, split):
        asked, said = {"role": "user", "content": f"Tell me of {n} in {split}."}, {"role": "assistant"}
        return {
            "prompt": asked["content"],
            "prompt_id": str(n),
            "score_chosen": 8.0,
            "chosen": [asked, said | {"content": f"Gladly: {n}."}],
            "rejected": [asked, said | {"content": "No."}],
            "messages": [asked],
        }

    for split, count in (("train_prefs", 40), ("test_prefs", 8)):
        write(folder / f"{split}.jsonl", [row(n, split) for n in range(count)])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {s}.jsonl\n" for s in ("train_prefs", "test_prefs"))
        + "---\n"
    )
    return [f"task.{key}.source={folder}" for key in ("prompts", "held_out", "pairs")]


DATA = {"scale/0.5b_one_gpu": gsm8k, "scale/3b_lora_one_gpu": gsm8k, "scale/7b_one_node": mathematics}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    return functools.partial(prepare, HubCache(tmp_path / "hub", monkeypatch), tmp_path)


def prepare(hub, tmp_path, name, *overrides):
    place = "somebody/model"
    model(hub.commit(place, "c" * 40), SIZES[name])
    data = DATA.get(name, ultrafeedback)(tmp_path / "data")
    over = [f"model.name_or_path={place}", f"model.tokenizer.name_or_path={place}", *data, *FEW, *overrides]
    recipe = load_recipe(RECIPES / f"{name}.yaml", over)
    return recipe, prepare_inputs(recipe, Cache(tmp_path / "cache"))


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_of_scale_fits_its_gpus_and_its_budget(name, prepared):
    recipe, inputs = prepared(name)
    assert inputs.shape.parameters == pytest.approx(QWEN[SIZES[name]][1] * 1e9, rel=0.01)
    check_gpu_memory(recipe, inputs.shape)
    check_budget(recipe, inputs.shape, lengths_of(recipe, inputs))
    said = list(lines(recipe, inputs))
    assert not [line for line in said if "may not fit" in line], said
    assert [line for line in said if "a GPU with learner" in line and line.endswith("GiB: fits")]
    assert any(re.match(r"time, with GPUs of \d+ TFLOP/s \(placement\.device\)", line) for line in said)
    assert any(re.match(r"  ppo, a seed: [\d.]+ (minutes|hours|days) \(", line) for line in said)


def test_every_shipped_recipe_from_the_hub_is_in_these_tests():
    def from_hub(path):
        recipe = load_recipe(path, ["vary=null"])
        return recipe.model.name_or_path is not None and recipe.model.name_or_path not in AT_HAND

    names = {str(p.relative_to(RECIPES).with_suffix("")) for p in RECIPES.glob("**/*.yaml") if from_hub(p)}
    assert names == set(SIZES)


@pytest.mark.parametrize(("override", "line"), [
    ("placement.colocated=true", r"placement: learner and rollout and evaluator and scorer need \d+ GiB on one GPU .*"),
    ("placement.learner.zero_stage=0", r"placement: learner needs 2\d\d GiB on one GPU .*; give them .*zero_stage: 3.*"),
    ("placement.learner.actors=1", r"placement: learner needs 2\d\d GiB on one GPU .*"),
    ("placement.device.memory_gib=40", r"placement: evaluator needs .*placement\.device\.memory_gib is 40; .*"),
    ("placement.rollout.gpu_memory_fraction=0.1", r"placement\.rollout\.gpu_memory_fraction: 0\.1 of a GPU is 8 GiB, too .*"),
])  # fmt: skip
def test_a_placement_that_is_too_small_is_refused(override, line, prepared):
    recipe, inputs = prepared("scale/7b_one_node", override)
    with pytest.raises(BadInput) as refused:
        check_gpu_memory(recipe, inputs.shape)
    assert any(re.fullmatch(line, problem) for problem in refused.value.problems), refused.value.problems


def test_on_one_gpu_adapters_of_a_larger_model_fit_where_its_weights_do_not(prepared):
    recipe, inputs = prepared("scale/3b_lora_one_gpu")
    # 36 layers of 2048: q, o of 2048², k, v of 2048 × 256, three of 2048 × 11008; an adapter has 16 of each input and output.
    adapters = 16 * 36 * (2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11008))
    assert inputs.shape.trained == adapters
    assert f"adapters of rank 16: {adapters:,} parameters are trained in place of the model's" in list(
        lines(recipe, inputs)
    )
    recipe, inputs = prepared("scale/3b_lora_one_gpu", "model.lora=null")
    assert inputs.shape.trained == inputs.shape.parameters
    with pytest.raises(
        BadInput, match=r"placement: learner and rollout and evaluator and scorer need 1\d\d GiB on one GPU"
    ):
        check_gpu_memory(recipe, inputs.shape)


def test_activations_that_may_not_fit_are_said_and_not_refused(prepared):
    recipe, inputs = prepared("scale/7b_one_node", "compute.tokens_per_micro_batch=16384")
    check_gpu_memory(recipe, inputs.shape)
    assert any("a GPU with learner" in line and "may not fit" in line for line in lines(recipe, inputs))


def test_roles_on_one_gpu_are_added_up(prepared):
    recipe, inputs = prepared("scale/0.5b_one_gpu")
    (gpu,) = gpu_forecasts(recipe, inputs.shape)
    assert set(gpu.roles) == {"learner", "rollout", "scorer", "evaluator"}
    gib = inputs.shape.parameters / 2**30
    # Trained, reference; the evaluator's two and its reward model; the scorer's.
    models = 2 * 16 * gib + 2 * gib + 2 * 2 * gib + 2 * gib + 2 * gib
    assert gpu.resident == pytest.approx(models + 79 * 0.3 + 4, rel=1e-6)


def test_the_hubs_gsm8k_holds_out_all_test_questions_and_has_no_pairs(prepared):
    _, inputs = prepared("scale/0.5b_one_gpu")
    assert inputs.pairs is None and inputs.task.pairs is None
    assert inputs.task.notes[2].startswith("held out: 20 in_distribution, 0 out_of_distribution, 0 unseen")
    prompt = inputs.train[0]
    text = inputs.tokenizer.backend_tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False)
    assert text == f"<|user|>{prompt.text}<eos><|assistant|>"


def test_ultrafeedbacks_pairs_are_on_its_training_prompts(prepared):
    _, inputs = prepared("ultrafeedback")
    task = inputs.task
    train = {p.text: p for p in task.prompts("train", 40, 0)}
    assert all(train[pair.prompt.text] == pair.prompt for pair in task.pairs(40, 0))
    assert {d.response for d in task.demonstrations(40, 0)} == {f"Gladly: {n}." for n in range(40)}


def test_what_mathematics_leaves_out_is_counted(prepared):
    _, inputs = prepared("scale/7b_one_node")
    assert inputs.task.notes[1] == "rows left out: 3 with a prompt that came before (first test.jsonl:2)"
    prompt = inputs.task.prompts("in_distribution", 1, 0)[0]
    assert inputs.task.judge(prompt, prompt.answer).score == 1
