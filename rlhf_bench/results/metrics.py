"""Every number that is recorded of updates and evaluations: its name, unit and meaning, and its name in MLflow.

One name everywhere: a column of metrics.parquet, the part behind the group in MLflow, and what claims and report ask for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rlhf_bench.core.costs import COLUMNS
from rlhf_bench.core.types import HELD_OUT_SPLITS, OWN
from rlhf_bench.diagnostics.probes import PROBE_SETS

Phase = Literal["train", "evaluation"]
TRAIN: Phase = "train"
EVALUATION: Phase = "evaluation"
"""Of a row of metrics.parquet: an update of the policy, or an evaluation of it. Groups in MLflow too."""

SCORE, GREEDY_SCORE, BEST_OF_SCORE = SCORES = ("score", "greedy_score", "best_of_score")
BUDGET, BY_BUDGET, BY_TOKENS, BENCHMARK, JUDGE = "budget", "by_budget_permille", "by_tokens", "benchmark", "judge"
"""The other groups in MLflow."""

WORDS = {"SPLIT": "|".join(HELD_OUT_SPLITS), "SET": "|".join(PROBE_SETS), "NAME": ".+"}
"""Words in capitals that names have, and what may stand for them, as regular expressions."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a phase. `name` may have one of `WORDS` in it.

    `tracked`: MLflow gets it too. `compared`: MLflow gets it once more against compute and tokens, by which arms compare.
    `reported`: the report reads it of updates (of evaluations it reads nearly all).
    """

    name: str
    unit: str
    meaning: str
    tracked: bool = True
    compared: bool = False
    reported: bool = False

    def is_called(self, name: str) -> bool:
        pattern = re.sub("[A-Z]+", lambda word: f"({WORDS[word[0]]})", self.name)
        return re.fullmatch(pattern, name) is not None


def _both_sides(name: str, unit: str, meaning: str) -> tuple[Metric, Metric]:
    """The same of a pair's chosen and of its rejected response; SIDE in the meaning is which."""
    return (
        Metric(f"chosen_{name}", unit, meaning.replace("SIDE", "chosen")),
        Metric(f"rejected_{name}", unit, meaning.replace("SIDE", "rejected")),
    )


def _of_own_kind(*metrics: Metric) -> tuple[Metric, ...]:
    """The same of held-out pairs of the kind that the arm trains on."""
    return tuple(Metric(f"{OWN}{m.name}", m.unit, f"{m.meaning}; of the arm's own kind of pairs") for m in metrics)


_PAIR_NUMBERS = (
    *_both_sides("logprob", "nats", "log-probability of the SIDE response, mean over pairs"),
    *_both_sides("logratio", "nats", "that less the reference's, Δ of the SIDE response, mean over pairs"),
)

_EVALUATED_PAIRS = (
    *_PAIR_NUMBERS,
    Metric("margin", "nats", "Δ of the chosen response less Δ of the rejected one, mean over pairs"),
    Metric("displaced", "share", "pairs whose chosen response is less likely than under the base policy"),
    Metric("accuracy", "share", "pairs that the implicit reward ranks right: their margin is above 0"),
)


def _of_reward_model(key: str, which: str) -> tuple[Metric, ...]:
    """What a reward model says of the finished samples that the main split's score is of."""
    return (
        Metric(f"{key}/score", "reward", f"{which}'s score of the policy's samples that ended, mean"),
        Metric(f"{key}/pairs", "pairs", "pairs of one prompt's samples that the judge tells apart"),
        Metric(f"{key}/accuracy", "share", f"such pairs that {which} ranks as the judge does"),
        Metric(
            f"{key}/calibration_error", "0 to 1", f"gap between {which}'s confidence and its accuracy on these pairs"
        ),
        Metric(f"{key}/length_correlation", "−1 to 1", f"correlation of {which}'s score with length, within prompts"),
        Metric(f"{key}/judge_length_correlation", "−1 to 1", "the same of the judge's score of these samples"),
    )


_PARTIALS = (
    Metric("partial/log_chosen", "", "size of the loss's derivative in the chosen log-probability, mean over pairs"),
    Metric("partial/log_rejected", "", "the same in the rejected log-probability"),
    Metric("partial/active", "share", "pairs whose loss has both derivatives"),
    Metric("partial/log_ratio", "", "rejected over chosen derivative in log-probability, mean over active pairs"),
    Metric("partial/pi_log_chosen", "nats", "log of the derivative in the chosen probability, mean over active pairs"),
    Metric("partial/pi_log_rejected", "nats", "the same in the rejected probability"),
    Metric("partial/pi_log_ratio", "nats", "log of rejected over chosen derivative in probability, mean"),
    Metric(
        "partial/pi_log_ratio_theory", "nats", "what theory says that it is, for losses that have a β for each side"
    ),
)
"""Of an arm's loss on a pair."""

UPDATE_METRICS = (
    Metric("loss", "", "the method's loss for the policy, mean over the update's optimizer steps"),
    Metric("grad_norm", "", "norm of the policy's gradient before clipping, mean over the steps", reported=True),
    Metric("skipped", "0 or 1", "1 for an update that left the weights alone", reported=True),
    Metric("critic_loss", "", "the method's loss for the critic, mean over the steps"),
    Metric("critic_grad_norm", "", "norm of the critic's gradient before clipping, mean over the steps"),
    Metric("critic_skipped", "share", "steps of the critic that were skipped"),
    Metric("critic_value", "reward", "the critic's value, mean over response tokens"),
    Metric("critic_value_error", "reward²", "squared distance of value and return, mean over response tokens"),
    Metric(
        "reward",
        "reward",
        "what the method was told of its samples, mean over those that ended",
        compared=True,
        reported=True,
    ),
    Metric("gold", "0 to 1", "the judge's score of the same samples, mean", compared=True, reported=True),
    Metric("response_length", "tokens", "length of the samples, mean"),
    Metric("finished", "share", "samples that ended within the length limit"),
    Metric("unfinished", "share", "samples that did not end, and were taken to be worse than the worst that did"),
    Metric("empty", "share", "samples that ended at once"),
    Metric("undecided", "share", "samples that cost the judge too much to compare, and count as wrong"),
    Metric("equal_rewards", "share", "prompts whose samples all have the same reward, from which nothing is learned"),
    Metric(
        "policy_version_lag", "updates", "age of the policy that drew the update's data, mean over samples or pairs"
    ),
    Metric("pairs", "pairs", "pairs in the update; of single responses with a label, half as many as there are"),
    Metric(
        "pair_passes",
        "passes",
        "how often the arm has trained on each of its pairs, or of its labelled responses, so far",
        reported=True,
    ),
    Metric("desirable", "share", "responses with the label true (KTO, `unpaired`)"),
    Metric(
        "prompt_passes", "passes", "how often the base policy has answered each of the arm's prompts", reported=True
    ),
    *_PAIR_NUMBERS,
    Metric("margin", "nats", "Δ of the chosen response less Δ of the rejected one, mean over pairs", compared=True),
    Metric("accuracy", "share", "pairs whose margin is above 0"),
    Metric("entropy", "nats per token", "entropy of the policy's next-token distribution, mean over response tokens"),
    Metric("sample_logprob", "nats", "log-probability that the policy gave its samples, mean over responses"),
    Metric("kl", "nats", "log-probability of the samples less the reference's, mean over responses"),
    Metric(
        "kl_coefficient",
        "reward per nat",
        "price of KL in this update, in the reward's own units; with `kl_in: loss` on the scale of advantages",
    ),
    Metric("kl_penalty", "reward", "what KL cost, mean over responses; 0 with `kl_in: loss`"),
    Metric(
        "reward_deviation",
        "reward",
        "σ of the finished samples' rewards, by which PPO and REINFORCE++ divide rewards and penalty",
    ),
    Metric("selected", "share", "prompts of whose samples one was better than another, and was trained on (RFT)"),
    Metric("selected_reward", "reward", "reward of those samples, mean (RFT)"),
    Metric("clip_fraction", "share", "tokens whose probability ratio left the clipping range"),
    Metric("step_kl", "nats per token", "KL to the policy before the update: mean of ρ − 1 − log ρ over tokens"),
    Metric("importance", "", "truncated importance weight, mean over tokens"),
    Metric("importance_capped", "share", "tokens whose importance weight was truncated"),
    Metric("learning_rate", "", "the policy's learning rate in this update"),
    Metric("beta", "", "β of the loss in this update, where it follows a schedule"),
    Metric("beta_chosen", "", "β⁺ of the loss in this update, where it follows a schedule"),
    Metric("beta_rejected", "", "β⁻ of the loss in this update, where it follows a schedule"),
    Metric("state/NAME", "", "a number that the method carries from update to update, such as β⁻ or a KL coefficient"),
)
"""Of updates. An arm has those that its method produces."""

EVALUATION_METRICS = (
    Metric("score", "0 to 1", "score at the sampling temperature, mean over the split's prompts", compared=True),
    Metric("greedy_score", "0 to 1", "score of the most likely tokens, mean over the split's prompts"),
    Metric("best_of_score", "0 to 1", "expected best score among n responses, mean over the split's prompts"),
    Metric("response_length", "tokens", "length of the scored responses, mean", tracked=False),
    Metric(
        "cut_off", "share", "scored responses that reached `data.max_response_tokens` without an end", tracked=False
    ),
    Metric("part/NAME", "0 to 1", "a part of the judge's score, mean; tasks name their parts", tracked=False),
    Metric(
        "kl", "nats", "KL to the base policy per response, over the vocabulary, on the policy's samples", compared=True
    ),
    Metric("kl_error", "nats", "standard error of that over prompts"),
    Metric("entropy", "nats per token", "entropy of the next-token distribution on the policy's samples"),
    Metric("argmax_confidence", "0 to 1", "probability of the likeliest next token on the policy's samples"),
    *_EVALUATED_PAIRS,
    Metric("accuracy/SPLIT", "share", "the same of the held-out pairs of another split"),
    Metric("ches", "", "CHES of the pairs under the base policy, mean"),
    Metric("ches_normalised", "", "CHES per token, mean"),
    Metric("probes/dropped", "responses", "prompts for which a probe set has no response, over all sets"),
    Metric("probe/SET", "nats", "log-probability of a probe set, mean over its responses"),
    Metric("probe/SET_logratio", "nats", "that less the base policy's"),
    Metric(
        "gradient/chosen_norm", "", "norm of the gradient of the chosen response's log-probability, mean over pairs"
    ),
    Metric("gradient/rejected_norm", "", "the same of the rejected response"),
    Metric("gradient/cosine", "−1 to 1", "cosine of the angle between both gradients of a pair, mean"),
    Metric("gradient/falling", "share", "pairs whose chosen response a small step of DPO on the pair would lower"),
    *_PARTIALS,
    *_of_own_kind(*_EVALUATED_PAIRS, *_PARTIALS),
    *_of_reward_model("reward_model", "the reward model"),
    *_of_reward_model("gold_reward_model", "the gold reward model"),
    Metric("diagnostics/seconds", "s", "wall time of probes and gradients in this evaluation"),
    Metric("diagnostics/flops", "FLOP", "their compute"),
)
"""Of evaluations. Scores, `response_length`, `cut_off` and `part/NAME` are of one split; all others stand in the main split's row."""

METRICS: dict[Phase, tuple[Metric, ...]] = {"train": UPDATE_METRICS, "evaluation": EVALUATION_METRICS}
COMPARED = {phase: frozenset(metric.name for metric in found if metric.compared) for phase, found in METRICS.items()}


def described(name: str, phase: Phase) -> Metric | None:
    """The metric of that name, where there is one."""
    return next((metric for metric in METRICS[phase] if metric.is_called(name)), None)


def mlflow_name(name: str, phase: Phase, split: str = "") -> str:
    """What a recorded number is called in MLflow: its group, and its own name. `split`: whose score it is."""
    if name in SCORES:
        return f"{name}/{split}"
    if name in COLUMNS or name == "fraction":
        return f"{BUDGET}/{name}"
    return f"{phase}/{name}"


def compared_name(axis: str, name: str) -> str:
    """What a number of that name in MLflow is called where it stands against compute or tokens."""
    return f"{axis}/{name.removeprefix(f'{EVALUATION}/')}"


_TOKENS = "response tokens that were sampled or trained on"
GROUPS = {
    TRAIN: ("update", "the metrics of updates"),
    EVALUATION: ("update", "the metrics of evaluations, and `mark`, the point at which the evaluation was due"),
    SCORE: ("update", "the score of each held-out split"),
    GREEDY_SCORE: ("update", "the score of the most likely tokens, of each held-out split"),
    BEST_OF_SCORE: ("update", "the expected best score among n responses, of each held-out split"),
    BUDGET: ("update", "what was spent so far, by column of the ledger; `fraction`: the share of the budget"),
    BY_BUDGET: (
        "thousandths of the budget",
        "`score/SPLIT`, `kl`, and `train/` with reward, gold and margin",
    ),
    BY_TOKENS: (_TOKENS, "the same"),
    BENCHMARK: (
        "prompts that were asked",
        "`TASK/METRIC`, and `TASK/METRIC/FILTER` where responses were filtered: what lm-eval measured of the policy; on the "
        "comparison's run, of the base policy",
    ),
    JUDGE: (
        "prompts that were judged",
        "`MODEL/OPPONENT-ID/win_rate`: what `rlhf-bench judge` found, once `rlhf-bench track` has sent it",
    ),
    "numbers": ("update", "`not_finite`: how many metrics of the step were left out, since they were not finite"),
    "system": (
        "seconds since 1970",
        "`HOST/…`, on the comparison's run: use of processors, memory and GPUs of every node",
    ),
}
"""Group in MLflow → what its step counts, and what it holds."""
