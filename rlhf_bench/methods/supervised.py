"""The two stages before any method: supervised fine-tuning and the reward model. Same learner, same records."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_bench.methods.base import Objective, Outputs, PerUnit
from rlhf_bench.methods.pairs import split_pairs


def sft_loss(out: Outputs, settings: None) -> PerUnit:
    """Negative log-likelihood per response token [T]."""
    return -out.logprobs, {"entropy": out.entropy.detach()}


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """−log σ(r⁺ − r⁻) per pair [P] (Bradley and Terry 1952; arXiv 2009.01325, section 3.4)."""
    return -logsigmoid(chosen - rejected)


def reward_model_loss(out: Outputs, settings: None) -> PerUnit:
    chosen, rejected = split_pairs(out.scores, out.responses)
    return bradley_terry(chosen, rejected), {
        "accuracy": (chosen > rejected).float(),
        "margin": (chosen - rejected).detach(),
    }


SFT = Objective("policy", "token", sft_loss)
REWARD_MODEL = Objective("critic", "row", reward_model_loss)
