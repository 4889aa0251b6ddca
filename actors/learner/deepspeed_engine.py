"""A model as DeepSpeed wraps it, and what may be done with it."""

from __future__ import annotations

from typing import Any, Literal

ModelName = Literal["policy", "reference", "critic"]

MODEL_HEAD: dict[ModelName, Literal["causal", "scalar"]] = {
    "policy": "causal",
    "reference": "causal",
    "critic": "scalar",
}


def engine_config(zero_stage: int, dtype: str, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's settings. Micro-batches are cut by tokens here, so DeepSpeed counts none of its own. Where the full
    gradients are at hand they are clipped here too, by the norm that is reported: DeepSpeed would take it once more."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0 if has_full_gradients(zero_stage, dtype) else max_grad_norm,
        "zero_optimization": {"stage": zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": 2**31,
    }


def has_full_gradients(zero_stage: int, dtype: str) -> bool:
    """Whether each rank holds them, as they go to the optimizer: else DeepSpeed keeps them in parts or copies of its own."""
    return zero_stage == 0 and dtype == "float32"
