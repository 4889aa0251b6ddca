"""LoRA (Hu et al. 2021, arXiv:2106.09685): a model learns W + α/r · B A in place of W, in every linear layer of its
backbone. W is frozen; A [r, in] is drawn at random and B [out, r] starts at 0, so the model starts unchanged.

peft makes the layers. Engines and folders get the merged model, under the names of the model without adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_bench.models.cpu_kernels import with_cpu_kernels
from rlhf_bench.models.heads import ResponseValues
from rlhf_bench.models.settings import LoraSettings

ADAPTER = "default"
"""Its name within peft's layers: a model has one."""


def add_adapters(model: nn.Module, settings: LoraSettings, seed: int) -> None:
    """Freeze the model (TokenLogprobs or ResponseValues), except for a scalar head, and add an adapter to every linear
    layer of its backbone, in place. `seed` draws the adapters.

    They have no dropout: the policy that is trained is the policy that sampled."""
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    backbone = model.lm.base_model
    transposed = any(type(module).__name__ == "Conv1D" for module in backbone.modules())  # GPT-2's [in, out]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=transposed,
    )
    torch.manual_seed(seed)
    inject_adapter_in_model(config, backbone, ADAPTER)
    if isinstance(model, ResponseValues):
        model.lm.score.requires_grad_(True)
    with_cpu_kernels(model)


@dataclass(frozen=True)
class PlainWeight:
    """A parameter of the model without adapters."""

    name: str  # in the plain model
    parameters: tuple[nn.Parameter, ...]  # itself, and the adapter's A and B where there is one
    layer: nn.Module | None  # peft's layer, where there is an adapter

    def value(self) -> Tensor:
        """The parameter's own memory, or a new tensor where an adapter is merged into it. Neither changes."""
        weight = self.parameters[0].detach()
        return weight if self.layer is None else weight + self.layer.get_delta_weight(ADAPTER).detach()


def plain_weights(lm: nn.Module) -> Iterator[PlainWeight]:
    """Every parameter of a Hugging Face model, with or without adapters, each once."""
    adapted = {name: layer for name, layer in lm.named_modules() if hasattr(layer, "lora_A")}
    own = {id(p) for layer in adapted.values() for part in (layer.lora_A, layer.lora_B) for p in part.parameters()}
    for name, parameter in lm.named_parameters():
        if id(parameter) in own:
            continue
        module, _, kind = name.rpartition(".")
        layer = adapted.get(module.removesuffix(".base_layer")) if kind == "weight" else None
        parts = () if layer is None else (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
        yield PlainWeight(_plain(name), (parameter, *parts), layer)


def plain_state_dict(lm: nn.Module) -> dict[str, Tensor]:
    """The state that `save_pretrained` writes: the model with its adapters merged. Merged weights are in the host's memory,
    so the device does not hold the model twice."""
    merged = {weight.name: weight.value().cpu() for weight in plain_weights(lm) if weight.layer is not None}
    whole = {_plain(name): value for name, value in lm.state_dict().items() if ".lora_" not in name}
    return whole | merged


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")
