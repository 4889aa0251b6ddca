"""The 3D-properties (arXiv 2406.07327) in numbers: pure functions of log-probabilities, in nats.

Drastic drop of the rejected response, degradation into suppression of the chosen one, dispersion onto responses that
no pair contains. docs/diagnostics.md says how each number is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_bench.core.types import PairEvaluation


def pair_numbers(logprobs: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Means over pairs, from log-probabilities [P, 2] (chosen, rejected) under policy and reference; P >= 1.

    `displaced` is the share of pairs whose chosen response lost probability (likelihood displacement, arXiv
    2410.08847). A pair counts in `accuracy` where its margin is above 0: at π = π0, none does.
    """
    return _means(logprobs, logprobs - reference)


def numbers_of_evaluated(pairs: Sequence[PairEvaluation]) -> dict[str, float]:
    """`pair_numbers` of pairs that were evaluated; at least one."""
    logprobs = np.array([(p.chosen_logprob, p.rejected_logprob) for p in pairs])
    return _means(logprobs, np.array([(p.chosen_logratio, p.rejected_logratio) for p in pairs]))


def _means(logprobs: np.ndarray, ratios: np.ndarray) -> dict[str, float]:
    return {
        "chosen_logprob": float(logprobs[:, 0].mean()),
        "rejected_logprob": float(logprobs[:, 1].mean()),
        "chosen_logratio": float(ratios[:, 0].mean()),
        "rejected_logratio": float(ratios[:, 1].mean()),
        "margin": float((ratios[:, 0] - ratios[:, 1]).mean()),
        "displaced": float((ratios[:, 0] < 0).mean()),
        "accuracy": pairwise_accuracy(ratios[:, 0], ratios[:, 1]),
    }


def pairwise_accuracy(chosen: Sequence[float] | np.ndarray, rejected: Sequence[float] | np.ndarray) -> float:
    """Share of pairs whose chosen response has the larger reward: log-ratios (DPO's implicit reward) or a reward
    model's scores. A tie is no success."""
    return float((np.asarray(chosen) > np.asarray(rejected)).mean())


def probe_numbers(name: str, logprobs: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Mean log-probability [probes] of one probe set under the policy, and less that under the reference."""
    return {f"probe/{name}": float(logprobs.mean()), f"probe/{name}_logratio": float((logprobs - reference).mean())}


def kl_numbers(kl: np.ndarray) -> dict[str, float]:
    """Mean KL per response and its standard error, nats, from that of every response [P prompts, k samples of each].

    KL(π‖π0) = E_y∼π Σ_t KL(π(·|y_<t) ‖ π0(·|y_<t)), by the chain rule; the sum over the vocabulary is exact, so that only the
    responses are a sample. Prompts are drawn, and their samples with them: the error is that of the mean over prompts (nan
    for one prompt).
    """
    by_prompt = kl.mean(axis=1)
    error = float(by_prompt.std(ddof=1) / np.sqrt(len(by_prompt))) if len(by_prompt) > 1 else float("nan")
    return {"kl": float(by_prompt.mean()), "kl_error": error}
