"""Draws the toy model's curves and the bandit's."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from rlhf_bench.core.plot_style import PALETTE
from rlhf_bench.theory.bandit import PROBLEMS, VARIANTS, Bandit, best_of_n_reward, reference, rewards
from rlhf_bench.theory.style import LINES, STYLE
from rlhf_bench.theory.toy import SCENARIOS, Toy


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high [X] of a 95% interval by Student's t at every point, from values [X, seeds]."""
    mean = values.mean(1)
    half = stats.t.ppf(0.975, values.shape[1] - 1) * stats.sem(values, axis=1)
    return mean, mean - half, mean + half


def draw_toy(toy: Toy) -> Figure:
    """Chosen, rejected, and unseen by both definitions, against epochs: one line a scenario, one dashed a control."""
    panels = (
        ("chosen", "chosen: prompt i's response i"),
        ("rejected", "rejected: prompt i's response 4+i"),
        ("outside_pair", "unseen, the paper's words: mean of the\neight responses outside the prompt's pair"),
        ("in_no_pair", "unseen, in no pair at all:\nmean of responses 8 and 9"),
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 6.6), layout="constrained")
        grid = figure.subplots(2, 2, sharex=True)
        for axes, (name, title) in zip(grid.flatten(), panels, strict=True):
            axes.set_title(title, fontsize=9)
            for index in range(len(SCENARIOS)):
                _line(axes, np.arange(toy.epochs + 1), getattr(toy.network[index], name), index)
                axes.plot(getattr(toy.table[index], name)[:, 0], color=PALETTE[index], linewidth=0.7, alpha=0.7)
            axes.set_ylabel("probability, mean over prompts")
        grid[0, 1].set_yscale("log")
        grid[0, 1].set_ylim(bottom=1e-8)
        for axes in grid[1]:
            axes.set_xlabel("epochs of DPO")
        handles = [Line2D([], [], color=PALETTE[i], linestyle=LINES[i], label=s.name) for i, s in enumerate(SCENARIOS)]
        handles.append(
            Line2D([], [], color="0.3", linewidth=0.7, alpha=0.7, label="tabular control (thin, same colours)")
        )
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        figure.suptitle(f"Toy model, network: mean over {len(toy.seeds)} seeds and its 95% interval", fontsize=9)
    return figure


def draw_bandit(bandit: Bandit) -> Figure:
    """Expected reward against rounds and against KL, one column a problem."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 6.6), layout="constrained")
        grid = figure.subplots(2, 2, sharey="col")
        for i, cell in enumerate(bandit.cells):
            column, index = PROBLEMS.index(cell.problem), VARIANTS.index(cell.variant)
            reward, kl = bandit.rounds.reward[:, i], bandit.rounds.kl[:, i]
            _line(grid[0, column], np.arange(len(reward)), reward, index)
            grid[1, column].plot(kl.mean(1), reward.mean(1), color=PALETTE[index], linestyle=LINES[index])
            grid[1, column].plot(
                kl[-1], reward[-1], color=PALETTE[index], linestyle="none", marker=".", markersize=4, alpha=0.5
            )
        for column, problem in enumerate(PROBLEMS):
            reward = rewards(problem)
            limit = best_of_n_reward(reference(), reward, bandit.settings.samples)
            for row in grid[:, column]:
                row.axhline(limit, color="0.3", linewidth=0.9, linestyle=":")
                row.set_ylabel("expected reward")
            grid[0, column].set_title(problem.name, fontsize=9)
            grid[0, column].set_xlabel(f"rounds of {bandit.settings.groups} x {bandit.settings.samples} samples")
            grid[1, column].set_xlabel("KL to the reference (nats)")
        handles = [Line2D([], [], color=PALETTE[i], linestyle=LINES[i], label=v.name) for i, v in enumerate(VARIANTS)]
        label = f"best of {bandit.settings.samples} samples of the reference"
        handles.append(Line2D([], [], color="0.3", linewidth=0.9, linestyle=":", label=label))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        figure.suptitle(
            f"Bandit: mean over {len(bandit.seeds)} seeds and its 95% interval; dots are single seeds at the end",
            fontsize=9,
        )
    return figure


def _line(axes: Axes, x: np.ndarray, values: np.ndarray, index: int) -> None:
    mean, low, high = band(values)
    axes.plot(x, mean, color=PALETTE[index], linestyle=LINES[index])
    axes.fill_between(x, low, high, color=PALETTE[index], alpha=0.18, linewidth=0)
