"""lm-eval, the field's harness for benchmarks (EleutherAI, MIT licence): its tasks loaded and checked, policies measured.

Nothing else imports it. It comes with an extra of the project's, and reads tasks, and the code that they name, from its own
folder and from one of the user's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_bench.core.errors import BadInput, Problems, RunFailed
from rlhf_bench.core.text import listed
from rlhf_bench.experiment.policies import Policy
from rlhf_bench.results.benchmarks import Measurement

EXTRA = "benchmarks"
QUIET = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Set where the user has not set them, before lm-eval is imported."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of an object in memory, in how Python shows it."""
CPU_BATCH = 8
"""Requests in a batch without a GPU; with one, lm-eval finds the largest that fits."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A name that was asked for, and the digest of all that its numbers depend on beside the policy."""

    name: str
    digest: str


def check_installed() -> None:
    """BadInput where lm-eval is not."""
    if find_spec("lm_eval") is None:
        raise BadInput(
            f"evaluate needs the package lm-eval, which is not installed; install it with python -m pip install --editable "
            f"'.[{EXTRA}]'"
        )


class Harness:
    """`include`: a folder of the user's with tasks of lm-eval's as YAML, which take precedence over its own. `limit`: how many
    prompts of each task are asked, all where it is None. `chat`: whether prompts are a user's message in the chat template."""

    def __init__(self, include: Path | None, limit: int | None, chat: bool, dtype: str):
        self.limit, self.chat, self.dtype = limit, chat, dtype
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        with _apart():
            from lm_eval.tasks import TaskManager

            self._tasks = TaskManager(include_path=str(include) if include else None)

    def benchmarks(self, names: Sequence[str]) -> list[Benchmark]:
        """With their prompts read. BadInput with a line for every name that is unknown, whose data cannot be had, or that would
        run what a policy writes."""
        problems, found = Problems(), []
        for name in dict.fromkeys(names):
            with problems.step():
                found.append(Benchmark(name, self._digest(name)))
        problems.refuse()
        return found

    def _digest(self, name: str) -> str:
        """Of lm-eval's version, how prompts are put, and of every task its configuration and the prompts that are asked."""
        if name not in self._tasks.task_index:
            near = get_close_matches(name, self._tasks.all_tasks, 3)
            hint = f"; near it are {listed(near)}" if near else ""
            raise BadInput(
                f"--tasks: lm-eval has no task {name}{hint}. `lm-eval ls tasks` shows all; a YAML file of your own in the folder of "
                "--include-path adds one"
            )
        try:
            with _apart():
                tasks: Mapping[str, Any] = self._tasks.load([name])["tasks"]
                told = {key: [_settings(task), list(islice(task.eval_docs, self.limit))] for key, task in tasks.items()}
        except Exception as error:  # whatever the task's code, its data or the Hub raises
            raise BadInput(
                f"--tasks: {name} cannot be loaded ({_first_line(error)}); bring its data set within reach of Hugging Face's datasets, "
                "or name local files in a task of your own: --include-path and docs/mlflow.md#outside-benchmarks"
            ) from error
        if unsafe := [key for key, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)]:
            raise BadInput(f"--tasks: {listed(unsafe)} would run code that a policy writes; choose another task")
        text = json.dumps([version("lm_eval"), self.chat, told], sort_keys=True, default=str)
        return hashlib.sha256(ADDRESS.sub("", text).encode()).hexdigest()[:16]

    def measure(self, policy: Policy, benchmarks: Sequence[Benchmark]) -> Iterator[list[Measurement]]:
        """The policy's numbers, by benchmark. Raises RunFailed with one line where lm-eval fails."""
        with _apart():
            import torch
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
        gpu = torch.cuda.is_available()
        model: Any = None
        for benchmark in benchmarks:
            try:
                with _apart():
                    model = model or HFLM(
                        pretrained=str(policy.folder),
                        tokenizer=str(policy.tokenizer),
                        dtype=self.dtype,
                        device="cuda" if gpu else "cpu",
                        batch_size="auto" if gpu else CPU_BATCH,
                        use_safetensors=True,  # other weights are pickles
                    )
                    results = simple_evaluate(
                        model=model,
                        tasks=[benchmark.name],
                        task_manager=self._tasks,
                        limit=self.limit,
                        apply_chat_template=self.chat,
                        log_samples=False,
                    )
            except Exception as error:  # whatever lm-eval, the task's code or the model raises
                raise RunFailed(
                    f"{policy}: lm-eval failed at {benchmark.name}: {_first_line(error)}; what was measured before is kept"
                ) from error
            yield list(measurements(results, policy, benchmark, version("lm_eval")))


def measurements(
    results: Mapping[str, Any], policy: Policy, benchmark: Benchmark, lm_eval: str
) -> Iterator[Measurement]:
    """The numbers in what `lm_eval.simple_evaluate` returns: of each task, and of a group the mean. What is no number is none."""
    whole = {**results["results"], **results.get("groups", {})}
    for task, found in whole.items():
        for key, value in found.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = found.get(f"{metric}_stderr,{kept}")
            yield Measurement(
                arm=policy.arm,
                seed=policy.seed,
                weights=policy.weights,
                benchmark=benchmark.name,
                digest=benchmark.digest,
                task=task,
                metric=metric,
                filter=kept,
                value=float(value),
                standard_error=float(error) if _is_number(error) else None,
                prompts=_prompts(results, task),
                shots=results.get("n-shot", {}).get(task),
                higher_is_better=results.get("higher_is_better", {}).get(task, {}).get(metric),
                version=str(results.get("versions", {}).get(task, "")),
                lm_eval=lm_eval,
            )


def _prompts(results: Mapping[str, Any], task: str) -> int:
    """That were asked: of a group those of all its tasks."""
    counted = results["n-samples"]
    if task in counted:
        return int(counted[task]["effective"])
    return sum(_prompts(results, child) for child in results.get("group_subtasks", {}).get(task, ()))


def _is_number(value: Any) -> bool:
    """Finite, and no truth value: lm-eval writes "N/A" where it has none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _settings(task: Any) -> dict[str, Any]:
    """A task's configuration without the place that it was read from. Functions stand there as their source."""
    config: dict[str, Any] = task.dump_config()
    return config | {"metadata": {k: v for k, v in (config.get("metadata") or {}).items() if k != "config_source"}}


@contextmanager
def _apart() -> Iterator[None]:
    """What lm-eval and its tasks print goes to standard error: standard output is the command's own. Of their logs, errors only."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with redirect_stdout(sys.stderr):
        yield


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
