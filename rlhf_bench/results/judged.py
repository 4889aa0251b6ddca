"""What language models said of the arms' last responses beside an opponent's: the files in DIR/judged, and numbers by arm."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pandas as pd

from rlhf_bench.core.contests import Contest, Judged, Verdict
from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.files import finite_or_null, write_text, written_aside
from rlhf_bench.diagnostics.intervals import Interval
from rlhf_bench.diagnostics.preferences import AtEqualLength, OrderEffect, length_controlled, order_effect, win_rate
from rlhf_bench.diagnostics.statistics import MINIMUM_SEEDS, Adjusted, Paired, adjust
from rlhf_bench.results.judged_schema import JUDGED, JUDGED_TABLE


class Place(NamedTuple):
    """Where a contest's own response stands."""

    arm: str
    seed: int
    prompt_id: str


@dataclass(frozen=True, slots=True)
class ArmJudged:
    """An arm beside the opponent, over the prompts that were judged in both orders for all of `seeds`. `wins`, `ties` and
    `losses`: shares of contests by their outcome over both orders. `adjusted`: of the win rate, corrected by Holm for the arms of
    this judging; None below three seeds. `extra_length`: mean, in characters. Numbers are nan where nothing was judged."""

    arm: str
    seeds: tuple[int, ...]
    prompts: int
    win_rate: float
    interval: Interval | None
    adjusted: Adjusted | None
    at_equal_length: AtEqualLength
    wins: float
    ties: float
    losses: float
    order: OrderEffect
    extra_length: float

    @property
    def settled(self) -> bool:
        """The corrected interval leaves out one half."""
        found = self.adjusted.interval if self.adjusted else None
        return found is not None and not found.contains(0.5)


@dataclass(frozen=True, slots=True)
class Judging:
    """One judge's verdicts against one opponent. `about`: what its JSON file says. `missing`: contests without both verdicts, of
    `contests`. `later`: arms and seeds that finished after the judge was asked."""

    about: Mapping[str, Any]
    arms: tuple[ArmJudged, ...]
    contests: int
    missing: int
    later: tuple[tuple[str, int], ...]

    @property
    def complete(self) -> bool:
        return not self.missing and not self.later

    @property
    def against(self) -> str:
        return str(self.about["against"])


def judging_name(about: Mapping[str, Any]) -> str:
    """The same for every call by the same judge against the same opponent: a file's name, and a part of MLflow's metrics'."""
    identity = [about[key] for key in ("endpoint", "model", "prompt_sha256", "constrained", "max_tokens")]
    return f"{about['against']}-{sha256(json.dumps(identity).encode()).hexdigest()[:8]}"


def write_judged(
    directory: Path, about: Mapping[str, Any], found: Mapping[Place, Contest], judged: Mapping[Place, Judged]
) -> None:
    """Write a judging's table, and then its JSON file. Another call by the same judge against the same opponent replaces them; where
    it did not measure the judge's agreement with people, what an earlier one measured stays."""
    name = judging_name(about)
    rows = [
        {**place._asdict(), **asdict(judged[place]), "extra_length": contest.extra_length}
        for place, contest in found.items()
    ]
    (directory / JUDGED).mkdir(mode=0o700, exist_ok=True)
    with written_aside(directory / JUDGED / f"{name}.parquet") as aside:
        pd.DataFrame(rows, columns=list(JUDGED_TABLE.keys)).to_parquet(aside)
    path = directory / JUDGED / f"{name}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {key: earlier[key] for key in ("agreement",) if key in earlier}
    text = json.dumps(finite_or_null(kept | dict(about)), indent=1, allow_nan=False, ensure_ascii=False)
    write_text(path, text)


def read_judged(directory: Path) -> tuple[tuple[Mapping[str, Any], pd.DataFrame], ...]:
    """Every judging in DIR, by file name. Raises BadInput with a line for each file that is damaged."""
    found, problems = [], []
    for path in sorted((directory / JUDGED).glob("*.json")):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            rows = pd.read_parquet(path.with_suffix(".parquet"), columns=list(JUDGED_TABLE.keys))
            if not isinstance(about, dict) or not {"model", "against", "costs"} <= about.keys():
                raise ValueError("a key is missing")
            if strange := set(rows[["own_first", "own_second"]].stack().dropna()) - set(get_args(Verdict)):
                raise ValueError(f"{min(map(str, strange))} is no verdict")
        except (OSError, ValueError, LookupError) as error:
            reason = " ".join(str(error).split())[:100]
            problems.append(
                f"{path}: cannot be read, or its table ({reason}); remove both, and `rlhf-bench judge` writes them again"
            )
            continue
        found.append((about, rows))
    if problems:
        raise BadInput(*problems)
    return tuple(found)


def judging(about: Mapping[str, Any], rows: pd.DataFrame, finished: Mapping[str, Sequence[int]]) -> Judging:
    """The numbers of one judging, by arm in the order of `finished`: arm -> its finished seeds."""
    arms, there = list(finished), set(zip(rows["arm"], rows["seed"], strict=True))
    expected = [(arm, seed) for arm, seeds in finished.items() for seed in seeds if arm != about["against"]]
    preferences = {arm: _of_arm(rows[rows["arm"] == arm]) for arm in arms if (rows["arm"] == arm).any()}
    judged = [_arm(arm, *table) for arm, table in preferences.items()]
    tested = [_against_half(preferences[one.arm][0]) for one in judged]
    corrected = iter(adjust([one for one in tested if one is not None]))
    found = []
    for one, test in zip(judged, tested, strict=True):
        adjusted = next(corrected) if test is not None else None
        if adjusted and adjusted.interval:
            adjusted = replace(adjusted, interval=adjusted.interval.moved(0.5).within(0.0, 1.0))
        found.append(replace(one, adjusted=adjusted))
    complete = int((rows["own_first"].notna() & rows["own_second"].notna()).sum())
    later = tuple(one for one in expected if one not in there)
    return Judging(about, tuple(found), len(rows), len(rows) - complete, later)


def win_rates_of_seeds(rows: pd.DataFrame) -> dict[tuple[str, int], tuple[float, int]]:
    """By arm and seed: the mean preference over the prompts that were judged in both orders, and how many they are. Without those
    that have none."""
    found = rows.assign(preference=[one.preference for one in _verdicts(rows)]).dropna(subset="preference")
    groups = found.groupby(["arm", "seed"])["preference"]
    return {(str(arm), int(seed)): (float(own.mean()), len(own)) for (arm, seed), own in groups}


def _verdicts(rows: pd.DataFrame) -> list[Judged]:
    return [
        Judged(*(v if isinstance(v, str) else None for v in pair))  # type: ignore[arg-type]
        for pair in zip(rows["own_first"], rows["own_second"], strict=True)
    ]


def _of_arm(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[Judged]]:
    """Preferences and extra lengths [seeds, prompts], complete; and the verdicts of all contests."""
    verdicts = _verdicts(rows)
    rows = rows.assign(preference=[one.preference for one in verdicts])
    table = rows.pivot(index="seed", columns="prompt_id", values="preference")
    table = table.dropna(how="all").dropna(axis="columns")
    lengths = rows.pivot(index="seed", columns="prompt_id", values="extra_length")
    return table, lengths.loc[table.index, table.columns].astype("float64"), verdicts


def _arm(arm: str, table: pd.DataFrame, lengths: pd.DataFrame, verdicts: list[Judged]) -> ArmJudged:
    order, nothing = order_effect(verdicts), math.nan
    if not table.size:
        empty = AtEqualLength(nothing, None, nothing)
        return ArmJudged(arm, (), 0, nothing, None, None, empty, nothing, nothing, nothing, order, nothing)
    cells, estimate = table.to_numpy(), win_rate(table.to_numpy())
    return ArmJudged(
        arm=arm,
        seeds=tuple(map(int, table.index)),
        prompts=table.shape[1],
        win_rate=estimate.mean,
        interval=estimate.interval().within(0.0, 1.0) if estimate.parts else None,
        adjusted=None,
        at_equal_length=length_controlled(cells, lengths.to_numpy()),
        wins=float((cells > 0.5).mean()),
        ties=float((cells == 0.5).mean()),
        losses=float((cells < 0.5).mean()),
        order=order,
        extra_length=float(lengths.to_numpy().mean()),
    )


def _against_half(table: pd.DataFrame) -> Paired | None:
    """Own share less one half, as a difference to test; None below three seeds, or with a single prompt."""
    if len(table) < MINIMUM_SEEDS or table.shape[1] < 2:
        return None
    estimate = win_rate(table.to_numpy())
    shifted = replace(estimate, mean=estimate.mean - 0.5)
    return Paired(tuple(float(x) for x in table.mean(axis=1) - 0.5), shifted, math.nan)
