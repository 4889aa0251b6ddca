"""Weights of the pretrained chat model at hand reach an engine in bfloat16, and are known to have reached it."""

from pathlib import Path

import pytest
import ray
from transformers import AutoTokenizer

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Row
from rlhf_bench.methods.supervised import SFT
from rlhf_bench.recipe import Placement, RolloutPlacement
from rlhf_bench.training.roles import Step
from rlhf_bench.training.sync_check import Probe, relative_gap

TEXTS = [
    ("Write a slogan for pencils.", "Pencils: A World of Flourishes, where every line is light."),
    ("Explain rivers.", "A river is a natural stream of water. qwe zebra 17 lamps!! Ünder"),
]
"""Prompts and answers, likely ones and most unlikely ones."""


def _row(tokenizer, prompt, answer):
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    answered = tokenizer.encode(answer, add_special_tokens=False)
    return Row(prompt, tuple(ids), ((*answered, tokenizer.eos_token_id),))


def test_in_bfloat16_it_is_synced_update_after_update_and_one_stale_tensor_is_seen(smollm2, start):
    """A run of it once ended at update 0, by one improbable token. At the end, rows alone and in company: as a scorer has them."""
    from actors.learner.group import LearnerGroup
    from actors.learner.rank import LearnerRank
    from actors.rollout.actor import RolloutActor
    from actors.rollout.pool import RolloutPool
    from actors.weight_sync import weight_sync

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    rows = [_row(tokenizer, *texts) for texts in TEXTS]
    placement = RolloutPlacement(cpus=1, cache_mib=64, concurrent_requests=4)
    engines = [start(RolloutActor, smollm2, placement, 256, "bfloat16", "object_store")]
    learner = LearnerGroup([start(LearnerRank, 0, 1, 1, 0, 0, "bfloat16")], 1, 0, 256, EngineTime())
    learner.join()
    learner.load("policy", Path(smollm2), learning_rate=5e-6)
    pool = RolloutPool(
        engines, placement, learner.shapes["policy"], frozenset({tokenizer.eos_token_id}), 256, EngineTime()
    )
    sync = weight_sync("object_store", learner, engines)
    tolerance = Placement().tolerance("bfloat16", learner.shapes["policy"])

    def gaps(version):
        measured, _ = learner.measure("policy", rows)
        sums = learner.checksums("policy")
        return [
            pool.check(Probe(row.prompt_ids, row.responses[0], found.tolist(), sums, tolerance, version))
            for row, (found,) in zip(rows, measured, strict=True)
        ]

    for version in range(2):
        sync.send(version)
        assert max(gaps(version)) < tolerance / 3
        old = {name: array.copy() for name, array in ray.get(learner.weights("policy")).items()}
        learner.steps([Step(SFT, rows, None, 5e-6)])
    stale = "model.layers.17.mlp.up_proj.weight"
    arrays = ray.get(learner.weights("policy")) | {stale: old[stale]}
    ray.get(engines[0].load_weights.remote([ray.put(arrays)], 2))
    with pytest.raises(RunFailed, match=f"an engine was sent another {stale} than the learner has"):
        gaps(2)
    together, _ = learner.measure("policy", rows)
    alone = [learner.measure("policy", [row])[0][0] for row in rows]
    assert max(relative_gap(a.tolist(), t.tolist()) for (a,), (t,) in zip(alone, together, strict=True)) < tolerance / 3
