"""One vLLM engine inside the calling process. With weight_sync.py the only file that imports vllm."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.rollout.held_weights import HeldWeights
from rlhf_bench.models.hub import folder_of
from rlhf_bench.recipe import RolloutPlacement
from rlhf_bench.training.sync_check import Held

Request = tuple[tuple[int, ...], int | None]
"""Prompt ids and the seed that its response is sampled with; None for the likeliest tokens."""

CPU_BLOCK_TOKENS = 32
"""Whole blocks of a prompt are cached. These are the smallest that vLLM's CPU attention has: its own choice, 128, is longer
than many chat prompts, whose system message and first words are then computed for every sample."""


@dataclass(frozen=True)
class Completion:
    """A sampled response."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # of each token, at the sampling temperature
    finished: bool  # by an end token, and not cut off at `max_tokens`
    cached: int  # prompt tokens that came from the prefix cache


class VLLMEngine:
    """Samples token ids from token ids. The engine runs in-process: no second process to lose, and a fast start.

    It starts with random weights of the model's shape: every weight comes by a sync, the first ones too.
    """

    def __init__(self, path: str, placement: RolloutPlacement, max_length: int, dtype: str, sync_backend: str):
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
        }
        import torch

        torch.set_num_threads(placement.cpus)
        from vllm import LLM
        from vllm.config.weight_transfer import WeightTransferConfig

        from actors.weight_sync import register_object_store_engine

        register_object_store_engine()
        # A prompt that is cut into chunks would have vLLM rewind its request's random generator, which CPU ones cannot.
        cpu_only = {} if placement.gpus else {
            "kv_cache_memory_bytes": placement.cache_mib * 2**20, "enforce_eager": True, "enable_chunked_prefill": False,
            "block_size": CPU_BLOCK_TOKENS,
        }  # fmt: skip
        self.llm = LLM(
            model=str(folder_of(path, weights=False)), load_format="dummy", skip_tokenizer_init=True, dtype=dtype,
            max_model_len=max_length, seed=0,
            max_num_seqs=placement.concurrent_requests, max_num_batched_tokens=max(2048, max_length),
            gpu_memory_utilization=placement.gpu_memory_fraction, distributed_executor_backend="uni",
            logprobs_mode="processed_logprobs", weight_transfer_config=WeightTransferConfig(backend=sync_backend),
            generation_config="vllm", disable_log_stats=True, trust_remote_code=False, **cpu_only,
        )  # fmt: skip
        self.held = self.llm.apply_model(HeldWeights)[0]
        self.version = -1
        self.fault: str | None = None  # of the last sync, see `HeldWeights.fault`
        self.open: set[int] = set()  # numbers of requests that are queued or half done

    def queue(
        self, requests: Mapping[int, Request], max_tokens: int, temperature: float, end_ids: frozenset[int]
    ) -> None:
        """Take requests, each under a number of the caller's. `decode` answers them."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        self._refuse_without_weights()
        if not self.open:
            # So a draw, its last bits and its cost depend on its own requests alone: a resumed run repeats it.
            self._forget_prompts()
        for number, (ids, seed) in requests.items():
            params = SamplingParams(
                temperature=0.0 if seed is None else temperature, max_tokens=max_tokens, seed=seed, logprobs=0,
                stop_token_ids=sorted(end_ids), detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
            )  # fmt: skip
            self.llm.llm_engine.add_request(str(number), tokens_input(list(ids)), params)
            self.open.add(number)

    def decode(self, until: int) -> dict[int, Completion]:
        """Decode until at least so many of the queued requests have ended, or all. By number, in the order in which they
        ended."""
        engine, found = self.llm.llm_engine, dict[int, Completion]()
        while len(found) < until and engine.has_unfinished_requests():
            for output in engine.step():
                completion = output.outputs[0]
                ids = tuple(completion.token_ids)
                found[int(output.request_id)] = Completion(
                    ids=ids,
                    logprobs=tuple(s[token].logprob for s, token in zip(completion.logprobs, ids, strict=True)),
                    finished=completion.finish_reason == "stop",
                    cached=output.num_cached_tokens or 0,
                )
        self.open -= found.keys()
        return found

    def generate(
        self, requests: Sequence[Request], max_tokens: int, temperature: float, end_ids: frozenset[int]
    ) -> list[Completion]:
        """All at once; completions in the requests' order."""
        self.queue(dict(enumerate(requests)), max_tokens, temperature, end_ids)
        found = self.decode(len(requests))
        return [found[i] for i in range(len(requests))]

    def abandon(self) -> None:
        """Drop all requests that are queued or half done."""
        self.llm.llm_engine.abort_request([str(number) for number in self.open])
        self.open.clear()

    def logprobs(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of a given response, from the engine's own forward pass."""
        from vllm import SamplingParams

        self._refuse_without_weights()
        ids = [*prompt_ids, *response_ids]
        # One token must be sampled, so a probe is at least one token shorter than max_length.
        params = SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        output = self.llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)[0]
        return [
            step[token].logprob
            for step, token in zip(output.prompt_logprobs[len(prompt_ids) :], response_ids, strict=True)
        ]

    def probe(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Held:
        """What a sync is checked by."""
        logprobs = self.logprobs(prompt_ids, response_ids)
        return Held(self.version, self.held.checksums, self.fault, logprobs)

    def _refuse_without_weights(self) -> None:
        if self.version < 0:
            raise RuntimeError("this engine has been sent no weights yet")

    def load(self, arrays: Mapping[str, Any], version: int) -> None:
        """A whole sync of weights by name, through the object store's backend."""
        self.call_worker("start_weight_update")
        self.call_worker("update_weights", update_info={"arrays": arrays})
        self.call_worker("finish_weight_update")
        self.finish_sync(version)

    def call_worker(self, method: str, **kwargs: Any) -> None:
        """One step of vLLM's weight-transfer protocol."""
        if method == "start_weight_update":
            self.held.begin()
        self.llm.collective_rpc(method, kwargs=kwargs)

    def finish_sync(self, version: int) -> None:
        """Cached keys and values belong to the old weights."""
        self._forget_prompts()
        self.version, self.fault = version, self.held.fault()

    def _forget_prompts(self) -> None:
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM would not reset its prefix cache: requests were still running")
