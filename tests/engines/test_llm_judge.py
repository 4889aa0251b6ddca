"""`rlhf-bench judge` against vLLM's own server, with a real model: the whole way of a question, and what the server counts."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from rlhf_bench.llm_judge.answers import Costs, opened
from rlhf_bench.llm_judge.endpoint import Endpoint
from rlhf_bench.llm_judge.labels import read_labelled
from rlhf_bench.llm_judge.prompt import read_prompt
from rlhf_bench.llm_judge.session import Judge, Limits

NAME = "smollm2"


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    """The address of vLLM's OpenAI-compatible server on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", smollm2, "--served-model-name", NAME,
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--max-num-seqs", "16", "--enforce-eager",
    ]  # fmt: skip
    variables = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | variables)
    try:
        deadline = time.monotonic() + 600
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def answers(address):
    try:
        urllib.request.urlopen(address, timeout=2).close()
    except OSError:
        return False
    return True


def test_a_real_server_judges_every_pair_and_counts_its_tokens(server, tmp_path):
    rows = [
        {"prompt": f"Count to {n}.", "a": " ".join(map(str, range(1, n + 1))), "b": "No.", "label": "a"}
        for n in range(2, 6)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = read_labelled(tmp_path / "pairs.jsonl")
    endpoint = Endpoint(server, NAME, timeout_seconds=120.0, max_tokens=32, constrained=True)
    with opened(tmp_path, endpoint) as book:
        judge = Judge(endpoint, read_prompt(None), book)
        first = judge.ask(pairs.contests, Limits(), print)
        again = judge.ask(pairs.contests, Limits(), print)
        judged, costs = [judge.judged(contest) for contest in pairs.contests], judge.costs(pairs.contests)
    assert first.answered == 8 and not first.failures and again.answered == 0
    assert all(one.own_first and one.own_second for one in judged)
    assert costs.queries == costs.answers == 8 and costs != Costs(8, 8)
    longest = max(len(judge.prompt.message(contest, True)) for contest in pairs.contests)
    assert 8 * 50 < costs.prompt_tokens < 8 * longest and 8 * 5 < costs.completion_tokens <= 8 * 32


def test_a_model_that_the_server_does_not_have_is_named(server, tmp_path):
    endpoint = Endpoint(server, "no-such-model", timeout_seconds=60.0)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "p", "a": "x", "b": "y", "label": "a"}))
    pairs = read_labelled(tmp_path / "pairs.jsonl")
    with opened(tmp_path, endpoint) as book:
        outcome = Judge(endpoint, read_prompt(None), book).ask(pairs.contests, Limits(concurrent=1), print)
    assert outcome.stopped.startswith("not found: 404") and "no-such-model" in outcome.stopped
