"""Shared by the engine tests: one small Ray cluster, closed to other users, and tiny models with sharp distributions."""

import os

import pytest

from rlhf_bench.core.ray_folder import closed_cluster

# Ray reads these as it is imported. `rlhf-bench run` closes its own cluster in the same way.
os.environ |= closed_cluster()
os.environ["RAY_metrics_report_interval_ms"] = "1000"  # 10 s otherwise

VOCABULARY, PAD, EOS = 16, 0, 2

STORE_BYTES = 2**30
"""Room for the weights of the pretrained model at hand, some times over: what does not fit, Ray puts on the disk, and refuses
where that is nearly full."""


@pytest.fixture(scope="session")
def cluster():
    """A cluster of two CPUs in this session only; its workers use one thread each."""
    import ray

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=STORE_BYTES, log_to_driver=False,
        logging_level="error", runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}},
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def start(cluster):
    """start(cls, *arguments): an actor of the class as it is, which ends with the module."""
    actors = []

    def begin(cls, *arguments):
        # They reserve no CPUs: the cluster's two would bound the number of actors.
        actors.append(cluster.remote(cls).options(num_cpus=0).remote(*arguments))
        return actors[-1]

    yield begin
    for actor in actors:
        cluster.kill(actor)


@pytest.fixture(scope="session")
def write_llama():
    """write_llama(folder, scalar=False, **config): a random two-layer Llama as a Hugging Face folder.

    Its weights are larger than usual, so that next tokens are far from equally likely.
    """

    def write(folder, scalar=False, **config):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

        settings = {
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.2,
            "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": PAD, "tie_word_embeddings": True,
        }  # fmt: skip
        torch.manual_seed(7)
        cls, extra = (LlamaForSequenceClassification, {"num_labels": 1}) if scalar else (LlamaForCausalLM, {})
        cls(LlamaConfig(**settings | extra | config)).save_pretrained(folder)
        return folder

    return write
