"""Tables and verdicts of the toy model and the bandit, as Markdown; and the outcomes of single seeds, as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from rlhf_bench.diagnostics import statistics
from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.diagnostics.resampling import confidence_interval
from rlhf_bench.theory.bandit import PROBLEMS, VARIANTS, Bandit, best_of_n_reward, effects, reference, rewards
from rlhf_bench.theory.toy import SCENARIOS, Toy, outcomes

PAPER_TOY: Mapping[str, tuple[str, str, str, str]] = {
    SCENARIOS[0].name: ("~0.585", "~1000", "~0.35", "~0.08"),
    SCENARIOS[1].name: ("~0.49", "~600", "~0.185", "~0.16"),
    SCENARIOS[2].name: ("~0.49", "~940", "~0.155", "~0.17"),
    SCENARIOS[3].name: ("~0.40", "~600-750", "~0.115", "~0.18"),
}
"""Read off the plots of arXiv 2406.07327: peak of the mean chosen probability, its epoch, chosen and unseen at 2000."""


Verdict = Literal["yes", "no", "not resolved"]
Key = TypeVar("Key")


def with_interval(values: Sequence[float] | np.ndarray, digits: int = 3) -> str:
    """`mean [low, high]`, the interval's 95% over seeds. It describes one outcome and decides nothing."""
    return _cell(float(np.mean(values)), confidence_interval([float(v) for v in values]), digits)


def decided(claims: Mapping[Key, np.ndarray]) -> dict[Key, tuple[str, Verdict]]:
    """For each of `claims`, differences per seed [seeds]: `mean [low, high]`, and whether the mean is above 0: yes, no (below),
    or not resolved. Intervals are Student's, corrected by Holm over all `claims`. Below three seeds there are none."""
    family = [statistics.paired(list(own), [0.0] * len(own), flips=False) for own in claims.values()]
    found = zip(claims, family, statistics.adjust(family), strict=True)
    return {key: (_cell(one.mean, corrected.interval), _verdict(corrected.interval)) for key, one, corrected in found}


def _cell(mean: float, interval: Interval | None, digits: int = 3) -> str:
    return f"{mean:.{digits}f}" + (f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]" if interval else "")


def _verdict(interval: Interval | None) -> Verdict:
    if interval is None or interval.contains(0.0):
        return "not resolved"
    return "yes" if interval.low > 0 else "no"


def toy_table(toy: Toy) -> str:
    """Outcomes of the four scenarios beside the paper's, the control, and a verdict on each ordering of the paper."""
    by_scenario = {s.name: outcomes(c) for s, c in zip(SCENARIOS, toy.network, strict=True)}
    half = min(500, toy.epochs)
    lines = [
        f"Mean over {len(toy.seeds)} seeds [95 % interval]. The paper's values are read off its plots, at 2000 epochs.",
        "",
        f"| scenario | peak chosen | epoch of the peak | chosen at {half} | chosen at {toy.epochs} | rejected at {toy.epochs} "
        f"| unseen at {toy.epochs}: outside the pair | unseen: responses 8-9 | others' chosen |",
        "| --- " * 9 + "|",
    ]
    for (name, own), curves in zip(by_scenario.items(), toy.network, strict=True):
        peak, epoch, end, unseen = (f" (paper {v})" for v in PAPER_TOY[name])
        cells = [
            name,
            with_interval(own["peak_chosen"]) + peak,
            with_interval(own["peak_epoch"], 0) + epoch,
            with_interval(curves.chosen[half]),
            with_interval(own["end_chosen"]) + end,
            f"{np.mean(own['end_rejected']):.1e}",
            with_interval(own["end_outside_pair"]) + unseen,
            with_interval(own["end_in_no_pair"]) + unseen,
            with_interval(own["end_others_chosen"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| the paper's statement | difference [interval] | verdict |", "| --- | --- | --- |"]
    lines += [f"| {statement} | {' | '.join(found)} |" for statement, found in decided(toy_claims(toy)).items()]
    lines += ["", "| tabular control | start | end | largest fall between epochs |", "| --- | --- | --- | --- |"]
    for scenario, curves in zip(SCENARIOS, toy.table, strict=True):
        fall = max(0.0, float(-np.diff(curves.chosen[:, 0]).min()))
        lines.append(f"| {scenario.name} | {curves.chosen[0, 0]:.3f} | {curves.chosen[-1, 0]:.3f} | {fall:.1e} |")
    return "\n".join(lines)


def toy_claims(toy: Toy) -> dict[str, np.ndarray]:
    """The paper's statements as differences per seed [seeds]: a statement holds where they are above 0."""
    own = [outcomes(curves) for curves in toy.network]
    claims = {
        f"chosen loses over a tenth of its peak by the end: {s.name}": 0.9 * o["peak_chosen"] - o["end_chosen"]
        for s, o in zip(SCENARIOS, own, strict=True)
    }
    for what, key in (("peak chosen", "peak_chosen"), ("chosen at the end", "end_chosen")):
        for better, worse in ((0, 1), (0, 2), (1, 3), (2, 3)):
            claims[f"{what}: scenario {better + 1} above {worse + 1}"] = own[better][key] - own[worse][key]
    return claims


def toy_records(toy: Toy) -> list[dict[str, Any]]:
    """One row per scenario and seed."""
    return [
        {"scenario": scenario.name, "seed": seed, **{k: float(v[i]) for k, v in outcomes(curves).items()}}
        for scenario, curves in zip(SCENARIOS, toy.network, strict=True)
        for i, seed in enumerate(toy.seeds)
    ]


def bandit_table(bandit: Bandit) -> str:
    """Rewards of the four variants on both problems, and the effect of each ingredient with a verdict."""
    lines = [
        f"Mean over {len(bandit.seeds)} seeds [95 % interval]. Every variant tried the same learning rates on other seeds.",
        "",
        "| problem | variant | learning rate | reward at the end | mean reward over the rounds | KL at the end (nats) |",
        "| --- " * 6 + "|",
    ]
    for i, cell in enumerate(bandit.cells):
        reward, kl = bandit.rounds.reward[:, i], bandit.rounds.kl[-1, i]
        lines.append(
            f"| {cell.problem.name} | {cell.variant.name} | {cell.learning_rate:g} | {with_interval(reward[-1])} "
            f"| {with_interval(reward[1:].mean(0))} | {with_interval(kl, 2)} |"
        )
    samples = bandit.settings.samples
    lines += ["", f"Without training: the reference, and the best of {samples} of its samples.", ""]
    for problem in PROBLEMS:
        reward = rewards(problem)
        base, best = float((reference() * reward).sum()), best_of_n_reward(reference(), reward, samples)
        lines.append(f"- {problem.name}: {base:.3f}, {best:.3f}")
    lines += [
        "",
        "| problem | effect | on the reward at the end | above 0 | on the mean over the rounds | above 0 |",
        "| --- " * 6 + "|",
    ]
    found = decided(
        {
            (problem.name, effect, at): difference
            for problem, block in zip(PROBLEMS, _blocks(bandit), strict=True)
            for at, reward in (("end", block[-1]), ("mean", block[1:].mean(0)))
            for effect, difference in effects(reward).items()
        }
    )
    lines += [
        f"| {problem} | {effect} | {' | '.join([*found[problem, effect, 'end'], *found[problem, effect, 'mean']])} |"
        for problem, effect, at in found
        if at == "end"
    ]
    return "\n".join(lines)


def _blocks(bandit: Bandit) -> list[np.ndarray]:
    """Rewards by problem: [R+1, variants, seeds] each."""
    size = len(VARIANTS)
    return [bandit.rounds.reward[:, i * size : (i + 1) * size] for i in range(len(PROBLEMS))]


def bandit_records(bandit: Bandit) -> list[dict[str, Any]]:
    """One row per problem, variant and seed."""
    return [
        {
            "problem": cell.problem.name, "variant": cell.variant.name, "learning_rate": cell.learning_rate, "seed": seed,
            "end_reward": float(bandit.rounds.reward[-1, i, j]),
            "mean_reward": float(bandit.rounds.reward[1:, i, j].mean()),
            "end_kl": float(bandit.rounds.kl[-1, i, j]),
        }
        for i, cell in enumerate(bandit.cells)
        for j, seed in enumerate(bandit.seeds)
    ]  # fmt: skip
