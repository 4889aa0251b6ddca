"""What an engine's model has taken in by a sync, and whether it holds and uses it.

On CPUs vLLM multiplies with copies of its matrices in a form of the kernel's own (oneDNN's), and drops the matrices
themselves, so what it holds cannot be read. It can be asked: a matrix times a unit vector is a column of it, without any
rounding. A few columns of every matrix, others at every sync, are noted as vLLM is about to copy it, and asked for later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from rlhf_bench.models.checksum import checksum

COLUMNS = 4
"""Of each matrix. An update that changes a matrix changes numbers in every column, also in bfloat16."""
LINEAR, EMBEDDING = "UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"


class HeldWeights:
    """Watches the model of an engine take in weights."""

    def __init__(self, model: Any):
        self.model, self.load_weights = model, model.load_weights
        self.syncs = 0
        self.checksums: dict[str, int] = {}  # of what the last sync brought, by Hugging Face name
        self.columns: dict[Any, torch.Tensor] = {}  # of each module's matrix at the last sync: outputs × COLUMNS
        model.load_weights = self._load
        self.multiplying = {n: m for n, m in model.named_modules() if _kind(m) in (LINEAR, EMBEDDING)}
        for method in {id(m.quant_method): m.quant_method for m in self.multiplying.values()}.values():
            method.process_weights_after_loading = self._noting(method.process_weights_after_loading)

    def begin(self) -> None:
        """Another sync begins."""
        self.syncs += 1
        self.checksums, self.columns = {}, {}

    def _load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        return self.load_weights(self._watched(weights))

    def _watched(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self.checksums[name] = checksum(tensor)
            yield name, tensor

    def _noting(self, process: Callable[[Any], None]) -> Callable[[Any], None]:
        def note(module: Any) -> None:
            self.columns[module] = module.weight[:, self._chosen(module.weight.shape[1])].clone()
            process(module)

        return note

    def _chosen(self, inputs: int) -> torch.Tensor:
        """Indices of the columns that are compared at this sync."""
        return torch.randint(inputs, (COLUMNS,), generator=torch.Generator().manual_seed(self.syncs))

    @torch.no_grad()
    def fault(self) -> str | None:
        """The first tensor that the model does not hold as it came, as the middle of a sentence; None where there is none.

        What vLLM keeps under its Hugging Face name is compared whole, but for linear layers: it joins those of some models,
        and turns those of others."""
        for name, module in self.model.named_modules():
            for own, parameter in () if _kind(module) == LINEAR else module.named_parameters(recurse=False):
                came = self.checksums.get(f"{name}.{own}")
                if came is not None and came != checksum(_without_padding(module, parameter)):
                    return f"an engine does not hold {name}.{own} as it was sent"
        for name, module in self.multiplying.items():
            if module not in self.columns:
                return f"an engine has taken in nothing for {name}.weight"
            if not torch.equal(self._asked(module), self.columns[module]):
                return f"an engine does not multiply with the {name}.weight that it was sent"
        return None

    def _asked(self, module: Any) -> torch.Tensor:
        """The same columns, of the matrix that the module multiplies with."""
        inputs = module.input_size if _kind(module) == LINEAR else module.embedding_dim
        noted = self.columns[module]
        units = torch.zeros(COLUMNS, inputs, dtype=noted.dtype, device=noted.device)
        units[torch.arange(COLUMNS), self._chosen(inputs)] = 1
        return module.quant_method.apply(module, units, None).T


def _kind(module: Any) -> str:
    return type(getattr(module, "quant_method", None)).__name__


def _without_padding(module: Any, parameter: torch.Tensor) -> torch.Tensor:
    """vLLM may add rows to a vocabulary."""
    return parameter[: module.org_vocab_size] if _kind(module) == EMBEDDING else parameter
