"""The recipe's `model` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlhf_bench.core.settings import Section
from rlhf_bench.models.tokenizer import TokenizerSettings


class LoraSettings(Section):
    """Low-rank adapters beside every linear layer except the head. They are trained in place of the weights (docs/lora.md)."""

    rank: int = Field(16, ge=1, description="rank of an adapter's two matrices")
    alpha: float = Field(32.0, gt=0, description="the adapter's output is multiplied by alpha / rank")


class ModelSettings(Section):
    """The policy's architecture: a pretrained model, or a Llama built from scratch."""

    name_or_path: str | None = Field(
        None,
        description="a Hugging Face folder, id or id@commit, a GGUF file (converted once), or the model at hand, smollm2-135m-instruct (docs/data.md#the-model); null builds a Llama of the sizes below",
    )
    hidden_size: int = Field(128, ge=8, description="width (from scratch)")
    layers: int = Field(4, ge=1, description="decoder layers (from scratch)")
    heads: int = Field(4, ge=1, description="attention heads (from scratch)")
    intermediate_size: int = Field(384, ge=8, description="width of the feed-forward layers (from scratch)")
    max_length: int = Field(64, ge=8, description="maximum number of tokens of a prompt and its response together")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="number format of weights and activations")
    lora: LoraSettings | None = Field(
        None,
        description="train adapters in place of the weights, in every stage and arm; null trains all weights",
    )
    tokenizer: TokenizerSettings = Field(
        default_factory=lambda: TokenizerSettings(kind="characters"),
        description="trained on the task's texts, or a pretrained one",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelSettings:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of 2 × heads (rotary embeddings turn pairs of numbers)")
        return self
