"""What vLLM, which is only given a folder, says of responses. Standard input: [[prompt ids, response ids], …] as JSON; the last
line of standard output: the responses' log-probabilities in nats.

    python vllm_logprobs.py FOLDER
"""

import json
import os
import sys

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}


def main(folder: str) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=folder, dtype="float32", max_model_len=32, kv_cache_memory_bytes=32 * 2**20, enforce_eager=True,
        enable_chunked_prefill=False, distributed_executor_backend="uni", disable_log_stats=True, seed=0,
    )  # fmt: skip
    asked = json.load(sys.stdin)
    prompts = [{"prompt_token_ids": [*prompt, *response]} for prompt, response in asked]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    found = []
    for (prompt, response), output in zip(asked, outputs, strict=True):
        steps = output.prompt_logprobs[len(prompt) :]
        found.append(sum(step[token].logprob for step, token in zip(steps, response, strict=True)))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
