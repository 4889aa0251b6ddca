"""A whole online update of SmolLM2-135M-Instruct: GRPO by this project, and by TRL's trainer with transformers' generation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from tests.benchmarks.engines import local_ray
from tests.benchmarks.online_arm import begun, one_update
from tests.benchmarks.row import Measured, Row, interleaved

RUNS = 5
PROMPTS, SAMPLES, RESPONSE, RATE = 16, 8, 64, 1e-6
TOGETHER = 8  # responses in one of TRL's forward passes with a gradient
RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
OURS = [
    "model.lora=null", f"data.max_response_tokens={RESPONSE}", "reward_model=null", "compute.tokens_per_micro_batch=2048",
    f"data.train_prompts={64 * PROMPTS}",
]  # fmt: skip


class Theirs:
    """TRL's GRPO on the same prompts and judge, without a reference; a step of it for each call."""

    def __init__(self, inputs: Any) -> None:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM
        from trl import GRPOConfig, GRPOTrainer

        prompts = {p.text: p for p in inputs.train}
        task, tokenizer = inputs.task, inputs.codec.tokenizer

        def judged(prompts_asked: Any, completions: Any, **_: Any) -> list[float]:
            asked = (conversation[-1]["content"] for conversation in prompts_asked)
            answers = (messages[-1]["content"] for messages in completions)
            return [task.judge(prompts[text], answer).score for text, answer in zip(asked, answers, strict=True)]

        def score(prompts: Any, completions: Any, **more: Any) -> list[float]:
            return judged(prompts, completions, **more)

        rows = [{"prompt": [{"role": "user", "content": text}]} for text in prompts]
        model = AutoModelForCausalLM.from_pretrained(inputs.model, dtype=torch.float32, attn_implementation="sdpa")
        model.generation_config.eos_token_id = sorted(inputs.codec.end_ids)
        self.tokens = list[int]()
        self.aside = tempfile.TemporaryDirectory()
        config = GRPOConfig(
            output_dir=self.aside.name, per_device_train_batch_size=TOGETHER,
            gradient_accumulation_steps=PROMPTS * SAMPLES // TOGETHER, num_generations=SAMPLES,
            max_completion_length=RESPONSE, temperature=1.0, top_p=1.0, top_k=0, beta=0.0, learning_rate=RATE,
            lr_scheduler_type="constant", optim="adamw_torch_fused", use_cpu=True, bf16=False, fp16=False,
            gradient_checkpointing=False, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            dataloader_pin_memory=False, seed=0, max_steps=1,
        )  # fmt: skip
        self.trainer = GRPOTrainer(
            model=model,
            reward_funcs=score,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )

    def seconds(self) -> float:
        """Of one step."""
        began = perf_counter()
        self.trainer.train()
        return perf_counter() - began


def online() -> Measured:
    """Seconds of an update: sync, samples, judging, forward passes and the step. Both stop at the same end tokens, and draw from
    the same weights, so that responses are alike in length, not the same."""
    from rlhf_bench.cli.options import open_cache
    from rlhf_bench.recipe import load_recipe
    from rlhf_bench.training.inputs import prepare_inputs

    arm = {
        "method": "grpo", "prompts_per_update": PROMPTS, "samples_per_prompt": SAMPLES, "epochs_per_update": 1,
        "learning_rate": RATE, "kl_coefficient": 0.0,
    }  # fmt: skip
    local_ray()
    recipe = load_recipe(RECIPE, [*OURS, "arms=" + str({"grpo": arm})])
    inputs = prepare_inputs(recipe, open_cache())
    theirs, lengths = Theirs(inputs), list[float]()
    with tempfile.TemporaryDirectory() as aside:
        fleet, trainer = begun(recipe, inputs, Path(aside))

        def ours() -> float:
            began = perf_counter()
            rows = one_update(trainer).rows
            seconds = perf_counter() - began
            lengths.append(sum(row.response_tokens for row in rows) / (PROMPTS * SAMPLES))
            return seconds

        ours(), theirs.seconds()
        mine, others = interleaved(RUNS, ours, theirs.seconds)
        fleet.stop()
    notes = f"{PROMPTS} prompts × {SAMPLES}, {RESPONSE} tokens at most, {sum(lengths) / len(lengths):.0f} on average"
    return Measured([b / a for a, b in zip(mine, others, strict=True)], mine, others, "s", notes)


ROWS = (
    Row(
        "chat_online", "an update of GRPO, SmolLM2-135M-Instruct, seconds", "TRL, transformers' generation", "at least",
        5.0, online,
    ),
)  # fmt: skip
