"""Models that are given, one of each family, through the whole chain: a tiny random one as a Hugging Face folder, then SFT, reward
model, rollouts, PPO and DPO, export; and what comes out, as transformers and vLLM read it. (Every method: test_real_model.py.)

Gemma is Gemma 2, which caps scores and logits.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from rlhf_bench.core.types import Pair
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.inputs import prepare_inputs
from tests.support.running import ROOT, Run, run, with_cache

VOCABULARY = 32  # more than the tokenizer has tokens, as with many a published model
WINDOW = 6  # shorter than a prompt
# Heads of 32 numbers: the smallest that vLLM computes on a CPU.
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GATED = SIZES | {"intermediate_size": 96, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 64}
CONFIGS = {
    "llama": LlamaConfig(**GATED, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**GATED, tie_word_embeddings=True),  # biases of query, key and value
    "qwen3": Qwen3Config(**GATED, tie_word_embeddings=True),  # norms of query and key
    "gemma2": Gemma2Config(  # norms of 1 + weight, embeddings scaled, every other layer with a window
        **GATED, sliding_window=WINDOW, query_pre_attn_scalar=24, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    ),
    "mistral": MistralConfig(**GATED, sliding_window=WINDOW, tie_word_embeddings=False),
    "gpt2": GPT2Config(**SIZES, n_positions=64),  # transposed weights, biases, positions that are learned, dropout
}  # fmt: skip
PAIRS = {"pairs_per_update": 4, "prompts_per_update": 4, "learning_rate": 1e-3}
SAMPLES = {"prompts_per_update": 4, "samples_per_prompt": 2, "epochs_per_update": 1, "learning_rate": 1e-3}
BY_REWARD = PAIRS | {"feedback": "reward_model"}
ARMS = {
    "ppo": {"method": "ppo"} | SAMPLES,
    "dpo-offline": {"method": "dpo", "data": "offline"} | PAIRS,
    "dpo-online": {"method": "dpo", "data": "online"} | BY_REWARD,
}
RECIPE = {
    "model": {"max_length": 32},
    "task": {"kind": "arithmetic", "digits": 2, "terms": 2, "working": True, "spread_pairs": True},
    "data": {
        "train_prompts": 16, "off_policy_pairs": 8, "held_out_pairs": 3,
        "candidates_per_prompt": 3, "max_response_tokens": 10,
    },
    "sft": {"demonstrations": 16, "steps": 3, "examples_per_step": 8},
    "reward_model": {"pairs": "off_policy", "steps": 2, "examples_per_step": 2},
    "compute": {"column": "trained_tokens", "limit": 400},
    "evaluation": {
        "prompts": 2, "splits": ["in_distribution"], "marks": [1.0], "sample_prompts": 1,
        "gradient_pairs": 1,
    },
    "seeds": [1],
    "placement": {"rollout": {"cache_mib": 32}, "evaluator": {"cache_mib": 32}},
}  # fmt: skip
# Llama with biases, with norms of queries and keys, and with a window, as Gemma 2 has one.
SLOW = dict.fromkeys(("qwen2", "qwen3", "mistral"), pytest.mark.slow)
TOLERANCE = 1e-3  # nats of a response, in float32


def write_model(family: str, folder: Path) -> None:
    """Random weights, every one of them: fresh biases are 0 and fresh norms 1, and would hide what is lost or swapped."""
    folder.mkdir()
    texts = ["0123456789+=;"]
    build_tokenizer(TokenizerSettings(kind="characters"), texts).save_pretrained(folder)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=SLOW.get(name, ())) for name in CONFIGS])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def done(family, tmp_path_factory) -> Run:
    """The family's model through the whole chain, once."""
    folder = tmp_path_factory.mktemp(family)
    write_model(family, folder / "model")
    model = RECIPE["model"] | {
        "name_or_path": str(folder / "model"),
        "tokenizer": {"kind": "pretrained", "name_or_path": str(folder / "model")},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"name": family, "model": model, "arms": ARMS}))
    finished = run(recipe, folder / "out" / "run", with_cache(folder / "cache"), folder / "run.log")
    assert finished.code == 0, finished.errors
    return finished


@pytest.fixture(scope="module")
def pairs(done) -> list[Pair]:
    """The held-out pairs that the run has looked at, in its tokens."""
    recipe = parse_recipe(yaml.safe_load((done.directory / "recipe.yaml").read_text()))
    return prepare_inputs(recipe, Cache(done.directory.parents[1] / "cache")).held_out_pairs


def policies(done: Run) -> dict[str, Path]:
    return {arm: done.directory / "checkpoints" / arm / "seed-1" for arm in done.summary["arms"]}


def by_transformers(folder: Path, pairs: list[Pair]) -> np.ndarray:
    """Log-probabilities of every pair's chosen response, each a sequence by itself: [P]."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    found = []
    for pair in pairs:
        prompt, response = pair.prompt.token_ids, pair.chosen_ids
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        found.append(float(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()))
    return np.array(found)


def test_every_arm_learns_from_the_model_that_was_given(done):
    arms = done.summary["arms"]
    assert set(arms) == set(ARMS)
    metrics = done.table("metrics")
    for arm in arms:
        updates = metrics[(metrics["arm"] == arm) & (metrics["phase"] == "train")]
        numbers = updates[["loss", "grad_norm"]].dropna(how="all")  # of samples that are all alike nothing is learned
        assert len(numbers) and np.isfinite(numbers.to_numpy(dtype=float)).all() and (numbers["grad_norm"] > 0).all(), (
            arm
        )


def test_transformers_finds_in_every_exported_policy_what_the_run_has_seen(done, pairs):
    """The log-probabilities that the run has recorded came out of packed rows, and its own attention and head."""
    table = done.table("pairs")
    given = by_transformers(done.directory.parents[1] / "model", pairs)
    for arm, folder in policies(done).items():
        own = table[(table["arm"] == arm) & (table["mark"] == 1.0)].set_index("pair_id")["chosen_logprob"]
        found = by_transformers(folder, pairs)
        np.testing.assert_allclose(found, [own[pair.id] for pair in pairs], atol=TOLERANCE, rtol=0, err_msg=arm)
        assert np.abs(found - given).max() > TOLERANCE, arm


def test_vllm_gives_the_exported_policy_the_same_log_probabilities(done, pairs):
    folder = policies(done)["dpo-online"]
    asked = [[list(pair.prompt.token_ids), list(pair.chosen_ids)] for pair in pairs]
    answer = subprocess.run(
        [sys.executable, Path(__file__).with_name("vllm_logprobs.py"), folder], input=json.dumps(asked), text=True,
        capture_output=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    np.testing.assert_allclose(found, by_transformers(folder, pairs), atol=TOLERANCE, rtol=0)
