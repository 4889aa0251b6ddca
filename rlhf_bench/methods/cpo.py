"""Contrastive preference optimisation (arXiv 2401.08417, section 3): DPO with a uniform reference, and a supervised term.

loss = −log σ( β (log π(a⁺) − log π(a⁻)) ) − λ/|a⁺| log π(a⁺)

The supervised term is per token, as in published code; the paper writes the whole response's.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import PairLogprobs
from rlhf_bench.methods.pairs import PairSettings, pair_method
from rlhf_bench.methods.schedules import Scheduled, resolved


class CPOSettings(PairSettings):
    method: Literal["cpo"] = "cpo"
    beta: Scheduled = Field(0.1, description="β > 0, scale of the difference in log-probability")
    sft_weight: float = Field(1.0, ge=0, description="λ, weight of the supervised term on the chosen response")

    @property
    def reference_free(self) -> bool:
        return True


def pair_loss(pairs: PairLogprobs, settings: CPOSettings) -> Tensor:
    """Loss per pair [P]. |a⁺| counts the response's tokens, its end included."""
    contrast = -logsigmoid(resolved(settings.beta) * (pairs.chosen - pairs.rejected))
    return contrast - settings.sft_weight * pairs.chosen / pairs.chosen_tokens


METHOD = pair_method("cpo", CPOSettings, pair_loss)
