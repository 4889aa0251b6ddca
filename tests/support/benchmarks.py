"""Recorded comparisons for outside benchmarks: with what MLflow asks for, with tiny policies, and with numbers of lm-eval."""

import json

import pandas as pd
import yaml

from rlhf_bench.core.costs import Cost
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.models.weights import weights_sha256
from rlhf_bench.results.benchmarks import Measurement
from rlhf_bench.results.schema import BASE, METRICS_TABLE
from rlhf_bench.training.cache import Cache
from tests.support.recorded import LIMIT

RUN_KEY = "0123456789ab"


def measurement(arm=BASE, seed=0, value=0.5, **more):
    known = {
        "weights": 64 * "0", "benchmark": "sums", "digest": "d1", "task": "sums", "metric": "acc", "filter": "none",
        "standard_error": 0.05, "prompts": 100, "shots": 0, "higher_is_better": True, "version": "1.0", "lm_eval": "0.4.13",
    }  # fmt: skip
    return Measurement(arm=arm, seed=seed, value=value, **known | more)


def complete(directory):
    """A directory of tests.support.recorded with what MLflow's runs need."""
    recipe = yaml.safe_load((directory / "recipe.yaml").read_text())
    results = json.loads((directory / "results.json").read_text())
    model = {"name_or_path": None, "dtype": "float32", "tokenizer": {"kind": "characters", "chat_template": None}}
    metrics = pd.read_parquet(directory / METRICS_TABLE.file).assign(**Cost().as_dict(), wall_seconds=1.0)
    metrics.to_parquet(directory / METRICS_TABLE.file)
    for found in results["arms"].values():
        for seed in found["seeds"]:
            seed |= {"spent": Cost(flops=LIMIT).as_dict(), "updates": 9}
    known = {"seeds": [1, 2, 3], "arms": {arm: {} for arm in results["arms"]}, "model": model, "sft": {"steps": 1}}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe | known))
    (directory / "results.json").write_text(json.dumps(results | {"run_key": RUN_KEY}))


def tiny_policy(folder, seed):
    """A language model of characters with random weights, as a finished policy is kept. Returns its weights' SHA-256."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(TokenizerSettings(kind="characters"), ["0123456789+= abcdefghijklmnopqrstuvwxyz.,"])
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, **ends,
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return weights_sha256(folder)


def add_policies(directory, cache: Cache):
    """A policy for every arm and seed of a completed directory, and the base policy in the cache."""
    results, number = json.loads((directory / "results.json").read_text()), 0
    for arm, found in results["arms"].items():
        for seed in found["seeds"]:
            number += 1
            seed["weights"] = tiny_policy(directory / "checkpoints" / arm / f"seed-{seed['seed']}", number)
    (directory / "results.json").write_text(json.dumps(results))
    made = {}
    cache.get("base", str(directory), lambda folder: made.update(weights=tiny_policy(folder, 99)) or {})
    base = json.loads((directory / "base.json").read_text())
    (directory / "base.json").write_text(json.dumps(base | made))
