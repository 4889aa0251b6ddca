"""The learner's step: against TRL's `DPOTrainer`, and against the floor that this machine's matrix products set."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tests.benchmarks.row import Measured, Row, interleaved

VOCABULARY, PAIRS, BETA, RATE = 32_768, 8, 0.1, 1e-4
TOGETHER = (8, 4, 2, 1)  # pairs in one of TRL's forward passes
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
RUNS, BUDGET = 5, 4096


@dataclass(frozen=True)
class Case:
    """A model, and pairs to train it on: `steps` × `PAIRS` of random tokens, lengths between two bounds. All prompts begin with
    the same `shared` tokens, as chats do with their system message."""

    write: Callable[[Path, str], Path]
    vocabulary: int
    prompt: tuple[int, int]
    response: tuple[int, int]
    steps: int
    shared: int = 0

    def pairs(self) -> list[tuple[list[int], list[int], list[int]]]:
        """Prompt, chosen, rejected; 1 ends a response."""
        rng = np.random.default_rng(0)

        def tokens(lengths: tuple[int, int]) -> list[int]:
            return rng.integers(2, self.vocabulary, rng.integers(lengths[0], lengths[1] + 1)).tolist()

        system = rng.integers(2, self.vocabulary, self.shared).tolist()
        return [
            (
                [*system, *tokens(self.prompt)[self.shared :]],
                [*tokens(self.response)[:-1], 1],
                [*tokens(self.response)[:-1], 1],
            )
            for _ in range(self.steps * PAIRS)
        ]


def write_chat_model(folder: Path, dtype: str) -> Path:
    """SmolLM2-135M-Instruct."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlhf_bench.cli.options import open_cache
    from rlhf_bench.training.local_model import local_model

    given = local_model("model", "smollm2-135m-instruct", open_cache(), print).path
    AutoModelForCausalLM.from_pretrained(given, dtype=getattr(torch, dtype)).save_pretrained(folder)
    return folder


def write_model(folder: Path, dtype: str) -> Path:
    """12.8M parameters: Qwen2 of 6 layers and width 256, its head tied to the embedding."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=640, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    return folder


SHORT = Case(write_model, VOCABULARY, (64, 192), (16, 96), steps=5)
LONG = Case(write_model, VOCABULARY, (512, 512), (64, 64), steps=5)
CHAT = Case(write_chat_model, 49_152, (40, 110), (8, 64), steps=2, shared=31)
CHAT_LONG = Case(write_chat_model, 49_152, (512, 512), (64, 64), steps=1, shared=31)


def rank(dtype: str, tokens_per_micro_batch: int = BUDGET) -> tuple[Any, Any]:
    """A learner group of one rank on a Ray cluster of its own, and the rank."""
    import ray

    from actors.allocator import ALLOCATOR
    from actors.learner.group import LearnerGroup
    from actors.learner.rank import LearnerRank
    from rlhf_bench.compute.engine_time import EngineTime

    class Rank(LearnerRank):
        def resident(self, reset: bool) -> float:
            return resident(reset)

    threads = int(os.environ["OMP_NUM_THREADS"])
    ray.init(address="local", num_cpus=threads, include_dashboard=False, log_to_driver=False, logging_level="error",
             object_store_memory=256 * 2**20, ignore_reinit_error=True)  # fmt: skip
    variables = {"OMP_NUM_THREADS": str(threads)} | ALLOCATOR
    actor = ray.remote(Rank).options(num_cpus=0, runtime_env={"env_vars": variables}).remote(0, 1, threads, 0, 0, dtype)
    group = LearnerGroup([actor], threads, 0, tokens_per_micro_batch, EngineTime())
    group.join()
    return group, actor


class Ours:
    """The project's own learner group: one DeepSpeed rank in a Ray actor."""

    def __init__(self, folder: Path, dtype: str, data: Sequence[tuple[list[int], list[int], list[int]]]):
        from rlhf_bench.core.types import Row as Sequences

        self.folder = folder
        self.group, self.actor = rank(dtype)
        rows = [Sequences(str(i), tuple(p), (tuple(c), tuple(r))) for i, (p, c, r) in enumerate(data)]
        self.group.load("reference", folder)
        measured, _ = self.group.measure("reference", rows)
        self.rows = [
            Sequences(r.id, r.prompt_ids, r.responses, {"reference_logprob": tuple(a.sum(keepdims=True) for a in m)})
            for r, m in zip(rows, measured, strict=True)
        ]
        self.group.free("reference")
        self.losses, self.each = list[float](), list[float]()

    def run(self) -> float:
        """All optimizer steps from the same start; seconds."""
        return self.seconds(self.batches)

    @property
    def batches(self) -> list[Sequence[Any]]:
        return [self.rows[at : at + PAIRS] for at in range(0, len(self.rows), PAIRS)]

    def seconds(self, batches: Sequence[Sequence[Any]]) -> float:
        """A step on each batch, from the same start."""
        self.group.load("policy", self.folder, 0, RATE, 1.0)
        self.group.steps(self.work(batches[:1]))  # what is done once is done; then from the start again
        self.group.load("policy", self.folder, 0, RATE, 1.0)
        return self.go_on(batches)

    def go_on(self, batches: Sequence[Sequence[Any]]) -> float:
        """A step on each batch, from where the steps before left the policy."""
        work = self.work(batches)
        self.losses, ends = [], [perf_counter()]
        for step in work:  # a call for each step, as in an arm
            self.losses.append(self.group.steps([step])[0][0]["loss"])
            ends.append(perf_counter())
        self.each = np.diff(ends).tolist()
        return ends[-1] - ends[0]

    def work(self, batches: Sequence[Sequence[Any]]) -> list[Any]:
        from rlhf_bench.methods import METHODS
        from rlhf_bench.training.roles import Step

        dpo = METHODS["dpo"]
        settings = dpo.settings(beta=BETA)
        return [Step(dpo.objectives[0], batch, settings, RATE) for batch in batches]

    def fresh_peak(self, tokens_per_micro_batch: int) -> float:
        """MiB that the steps add to a new rank, at their peak."""
        import ray

        group, actor = rank("float32", tokens_per_micro_batch)
        group.load("policy", self.folder, 0, RATE, 1.0)
        before = ray.get(actor.resident.remote(True))
        group.steps(self.work(self.batches))
        peak = ray.get(actor.resident.remote(False)) - before
        ray.kill(actor)
        return peak


class Theirs:
    """TRL's trainer on the same weights and pairs: reference log-probabilities precomputed, `together` pairs in a forward
    pass and gradients accumulated, fused AdamW, nothing logged or saved, padded no further than the longest of a batch."""

    def __init__(
        self,
        folder: Path,
        dtype: str,
        data: Sequence[tuple[list[int], list[int], list[int]]],
        together: int,
        words: int,
    ):
        self.folder, self.dtype, self.together, self.words = folder, dtype, together, words
        self.losses, self.each = list[float](), list[float]()
        self.texts = [
            {"prompt": _text(p), "chosen": f" {_text(c[:-1])} <eos>", "rejected": f" {_text(r[:-1])} <eos>"}
            for p, c, r in data
        ]
        self.peak = 0.0

    def run(self) -> float:
        import torch
        from datasets import Dataset
        from torch.utils.data import SequentialSampler
        from transformers import AutoModelForCausalLM, TrainerCallback
        from trl import DPOConfig, DPOTrainer

        class InOrder(DPOTrainer):
            def _get_train_sampler(self, *_: Any) -> Any:
                return SequentialSampler(self.train_dataset)

            def training_step(self, *args: Any, **kwargs: Any) -> Any:
                loss = super().training_step(*args, **kwargs)
                losses.append(loss)
                return loss

        class Clock(TrainerCallback):
            before = 0.0

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.before = resident(reset=True)

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 0:
                    ends.append(perf_counter())

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                ends.append(perf_counter())

        losses: list[Any] = []
        ends: list[float] = []
        model = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=getattr(torch, self.dtype), attn_implementation="sdpa"
        )
        clock = Clock()
        with tempfile.TemporaryDirectory() as aside:
            config = DPOConfig(
                output_dir=aside, per_device_train_batch_size=self.together,
                gradient_accumulation_steps=PAIRS // self.together, max_steps=len(self.texts) // PAIRS,
                learning_rate=RATE, beta=BETA,
                lr_scheduler_type="constant", warmup_steps=0, optim="adamw_torch_fused", adam_beta1=0.9, adam_beta2=0.95,
                weight_decay=0.0, max_grad_norm=1.0, precompute_ref_log_probs=True, max_length=None, use_cpu=True,
                bf16=False, fp16=False, gradient_checkpointing=False, save_strategy="no", logging_strategy="no",
                report_to="none", disable_tqdm=True, dataloader_pin_memory=False, seed=0,
            )  # fmt: skip
            trainer = InOrder(
                model=model, args=config, train_dataset=Dataset.from_list(self.texts), processing_class=tokenizer(self.words),
                callbacks=[clock],
            )  # fmt: skip
            trainer.train()
        passes = PAIRS // self.together  # each of which has its share of the step's loss
        self.losses = [float(sum(losses[at : at + passes])) for at in range(0, len(losses), passes)]
        self.peak = resident() - clock.before
        self.each = np.diff(ends).tolist()
        return ends[-1] - ends[0]


def _text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def tokenizer(words: int = VOCABULARY) -> Any:
    """Token i is the word "w<i>", 1 is the end; so that texts come back as the very same tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, words)}
    plain = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


def against_trl(case: Case, dtype: str) -> Measured:
    """Seconds of a case's steps of each, in turn, TRL with the number of pairs in a forward pass that is fastest here; losses
    must agree, or nothing was compared. In bfloat16 on a CPU without instructions for it, where a step of TRL's takes
    minutes, a step of one run of each stands for a run, and TRL has one pair in a pass."""
    import torch

    from actors.allocator import ALLOCATOR

    slow = dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with tempfile.TemporaryDirectory() as folder:
        model, data = case.write(Path(folder), dtype), case.pairs()
        ours = Ours(model, dtype, data)
        tried = {n: Theirs(model, dtype, data, n, case.vocabulary) for n in ([1] if slow else TOGETHER)}
        taken = {together: theirs.run() for together, theirs in tried.items()}
        best = min(taken, key=taken.__getitem__)
        theirs = tried[best]
        ours.run()
        if slow:
            steps, mine, others = 1, ours.each, theirs.each
        else:
            steps, (mine, others) = case.steps, interleaved(RUNS, ours.run, theirs.run)
        helped = None if slow else in_a_process(ALLOCATOR, their_seconds, model, dtype, data, best, case.vocabulary)
    apart = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    if not apart <= LOSS_TOLERANCE[dtype]:
        raise SystemExit(f"losses differ by {apart:.2g}: {ours.losses} and {theirs.losses}")
    done = steps * PAIRS
    notes = [
        f"losses agree to {apart:.1g}, steps {case.steps}",
        "TRL by pairs in a pass: " + ", ".join(f"{n}: {len(data) / s:.3g}" for n, s in taken.items()),
    ]
    if helped is not None:
        notes.append(f"with the settings of malloc that our rank has: {len(data) / helped:.3g}")
    return Measured(
        [b / a for a, b in zip(mine, others, strict=True)], [done / s for s in mine], [done / s for s in others],
        "pairs/s", "; ".join(notes),
    )  # fmt: skip


def their_seconds(
    model: Path, dtype: str, data: Sequence[tuple[list[int], list[int], list[int]]], pairs: int, words: int
) -> float:
    """The faster of two runs."""
    theirs = Theirs(model, dtype, data, pairs, words)
    return min(theirs.run(), theirs.run())


def floor_flops(case: Case, shape: Any) -> float:
    """The fewest operations of forward and backward of all steps: a prompt once, what all prompts share once in a step, the head
    where a response token is predicted, scores that are used and no others, nothing computed twice."""
    total = 0.0
    for i, (prompt, chosen, rejected) in enumerate(case.pairs()):
        p, sides = len(prompt), (len(chosen), len(rejected))
        known = case.shared if i % PAIRS else 0
        tokens = p - known + sum(sides)
        scores = (p * (p + 1) - known * (known + 1)) / 2 + sum(n * p + n * (n + 1) / 2 for n in sides)
        total += 6 * (shape.matmul_weights * tokens + shape.head_weights * sum(sides))
        total += 3 * 4 * shape.layers * shape.attention_width * scores
    return total


def matrix_rate() -> float:
    """Floating-point operations per second of a product of square float32 matrices."""
    import torch

    size = 2048
    a, b = torch.randn(size, size), torch.randn(size, size)
    began = perf_counter()
    for _ in range(5):
        a @ b
    return 5 * 2 * size**3 / (perf_counter() - began)


def against_floor(case: Case) -> Measured:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        data = case.pairs()
        ours = Ours(case.write(Path(folder), "float32"), "float32", data)
        ours.run()
        flops = floor_flops(case, ours.group.shapes["policy"])
        # Steps in the midst of a training: the first after a model is loaded also makes room for Adam's moments.
        rates, seconds = interleaved(RUNS, matrix_rate, lambda: ours.go_on(ours.batches))
    ratios = [flops / rate / s for rate, s in zip(rates, seconds, strict=True)]
    return Measured(ratios, [flops / s / 1e9 for s in seconds], [r / 1e9 for r in rates], "GFLOP/s")


def against_trl_in_memory(case: Case) -> Measured:
    """MiB that the first steps add, at their peak, to a process that has just loaded the model, each side with as few pairs
    in a forward pass as it can have. A process of its own for every measurement: memory that was freed may stay with a
    process, and hide what the next step needs."""
    with tempfile.TemporaryDirectory() as folder:
        # The second step is the first that has gradients, activations and the optimizer's state at once.
        model, data = case.write(Path(folder), "float32"), case.pairs()[: 2 * PAIRS]
        ours = Ours(model, "float32", data)
        longest = max(sum(map(len, pair)) for pair in data)
        mine, others = interleaved(
            RUNS,
            partial(ours.fresh_peak, longest),
            lambda: in_a_process({}, their_peak, model, data, 1, case.vocabulary),
        )
        whole = ours.fresh_peak(BUDGET), in_a_process({}, their_peak, model, data, PAIRS, case.vocabulary)
    notes = "a pair in a pass; with all of a step's pairs in one {:.0f} against {:.0f} MiB".format(*whole)
    return Measured([a / b for a, b in zip(mine, others, strict=True)], mine, others, "MiB", notes)


def their_peak(model: Path, data: Sequence[tuple[list[int], list[int], list[int]]], together: int, words: int) -> float:
    theirs = Theirs(model, "float32", data, together, words)
    theirs.run()
    return theirs.peak


def in_a_process(variables: Mapping[str, str], function: Any, *arguments: Any) -> Any:
    """What the function says in a process that has done nothing before, with these environment variables beside."""
    before = dict(os.environ)
    os.environ |= variables
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as one:
            return one.submit(function, *arguments).result()
    finally:
        for name in variables.keys() - before.keys():
            del os.environ[name]


def resident(reset: bool = False) -> float:
    """MiB of this process: resident now, and with that the start of a new peak; or the peak since then."""
    import gc

    if reset:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS" if reset else "VmHWM")


def resident_now() -> float:
    """MiB of this process."""
    return _status("VmRSS")


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


TO_TRL = "DPO learner, pairs/s, "
FLOOR = "fewest FLOPs at the machine's matrix rate"
ROWS = (
    Row("chat_dpo", f"{TO_TRL}float32, SmolLM2-135M-Instruct", "TRL", "at least", 2.0, partial(against_trl, CHAT, "float32")),
    Row(
        "chat_dpo_bfloat16", "the same, bfloat16", "TRL in bfloat16", "at least", 3.5,
        partial(against_trl, CHAT, "bfloat16"),
    ),
    Row(
        "chat_dpo_long", "the same, float32, prompt 512, response 64", "TRL", "at least", 2.2,
        partial(against_trl, CHAT_LONG, "float32"),
    ),
    Row("chat_memory", "peak memory of its learner's steps", "TRL", "at most", 0.6, partial(against_trl_in_memory, CHAT)),
    Row("chat_floor", "its learner's step, speed", FLOOR, "at least", 0.8, partial(against_floor, CHAT)),
    Row("dpo", f"{TO_TRL}float32, 12.8M parameters", "TRL", "at least", 6.0, partial(against_trl, SHORT, "float32")),
    Row(
        "dpo_long", "the same, prompt 512, response 64", "TRL", "at least", 6.0, partial(against_trl, LONG, "float32")
    ),
    Row(
        "dpo_bfloat16", "the same, bfloat16", "TRL in bfloat16", "at least", 5.0,
        partial(against_trl, SHORT, "bfloat16"),
    ),
    Row("memory", "peak memory of its learner's steps", "TRL", "at most", 0.5, partial(against_trl_in_memory, SHORT)),
    Row("floor", "its learner's step, speed", FLOOR, "at least", 0.6, partial(against_floor, SHORT)),
)  # fmt: skip
