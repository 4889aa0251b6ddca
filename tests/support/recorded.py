"""A comparison's directory, written from tables of scores: what a run would leave, without a run."""

import json

import numpy as np
import yaml

from rlhf_bench.core.costs import Cost
from rlhf_bench.results.schema import BASE, LEDGER_TABLE, SAMPLES_TABLE, SHARED, TABLES, base_at
from rlhf_bench.results.store import as_frame

SPLIT = "in_distribution"
LIMIT = 1e12


def record(directory, arms, base, at_temperature, /, **recipe):
    """`arms`: name -> (sampled, greedy), each [seeds, prompts]; `base`: (sampled, greedy), each [prompts]; `at_temperature`:
    temperature -> the same of the base policy. Seeds count from 1. Returns the directory."""
    metrics, scores, results = [], [], {}
    for name, (sampled, greedy) in arms.items():
        results[name] = {"method": "dpo", "data": "offline", "seeds": []}
        for seed, (own, likeliest) in enumerate(zip(sampled, greedy, strict=True), 1):
            for mark, found in ((0.0, base), (1.0, (own, likeliest))):
                scores += _prompts(name, seed, mark, *found)
                means = {"score": found[0].mean(), "greedy_score": found[1].mean()}
                key = {"arm": name, "seed": seed, "phase": "evaluation", "split": SPLIT, "update": int(9 * mark)}
                metrics.append(
                    key | {"fraction": mark, "mark": mark, "kl": mark, "kl_error": 0.1, "entropy": 1.0} | means
                )
            ended = {"seed": seed, "status": "done", "score": own.mean(), "kl": 1.0, "spent": {"flops": LIMIT}}
            results[name]["seeds"].append(ended)
    scores += _prompts(BASE, 0, 0.0, *base)
    for temperature, found in at_temperature.items():
        scores += _prompts(base_at(temperature), 0, 0.0, *found)
    told = _means(base) | {"at_temperature": {f"{t:g}": _means(found) for t, found in at_temperature.items()}}
    for table, rows in (("metrics", metrics), ("scores", scores)):
        as_frame(rows, TABLES[table]).to_parquet(directory / TABLES[table].file)
    as_frame([], SAMPLES_TABLE).to_parquet(directory / SAMPLES_TABLE.file)
    shared = {"arm": SHARED, "seed": 0, "phase": "shared", **Cost(flops=1.0).as_dict()}
    as_frame([shared], LEDGER_TABLE).to_parquet(directory / LEDGER_TABLE.file)
    whole = {"name": "made", "compute": {"column": "flops", "limit": LIMIT}} | recipe
    (directory / "recipe.yaml").write_text(yaml.safe_dump(whole))
    (directory / "base.json").write_text(json.dumps(told))
    (directory / "results.json").write_text(json.dumps({"arms": results, "timing": {}}))
    return directory


def _prompts(arm, seed, mark, sampled, greedy):
    key = {"arm": arm, "seed": seed, "mark": mark, "split": SPLIT}
    return [
        key | {"prompt_id": f"p{i}", "score": s, "greedy_score": g}
        for i, (s, g) in enumerate(zip(sampled, greedy, strict=True))
    ]


def _means(found):
    sampled, greedy = (float(np.mean(one)) for one in found)
    return {"score": {SPLIT: sampled}, "greedy_score": {SPLIT: greedy}, "numbers": {"kl": 0.0, "entropy": 1.5}}


def record_responses(directory, responses):
    """Add samples.parquet: `responses`: arm -> seed -> (the base policy's, the arm's) responses, a list each; the base policy's
    are also those at mark 0. The reference answer of prompt i is `reference i`."""
    rows = []
    for arm, seeds in responses.items():
        for seed, (base, own) in seeds.items():
            for mark, texts in ((0.0, base), (1.0, own)):
                for i, text in enumerate(texts):
                    where = {"arm": arm, "seed": seed, "mark": mark, "split": SPLIT, "prompt_id": f"p{i}"}
                    rows.append(
                        where | {"prompt": f"prompt {i}", "reference": f"reference {i}", "response": text, "score": 0.5}
                    )
    as_frame(rows, SAMPLES_TABLE).to_parquet(directory / SAMPLES_TABLE.file)
