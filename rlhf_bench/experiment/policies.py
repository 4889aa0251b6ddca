"""The policies that a comparison has left: finished ones in DIR, and the base policy that they began with, wherever it is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_bench.core.errors import BadInput, Problems
from rlhf_bench.core.given import COMMIT, MODEL
from rlhf_bench.core.text import listed
from rlhf_bench.models.hub import folder_of
from rlhf_bench.models.weights import weights_sha256
from rlhf_bench.results.benchmarks import PolicyKey, recorded_weights
from rlhf_bench.results.given import recorded_given
from rlhf_bench.results.reader import RecordedComparison
from rlhf_bench.results.schema import BASE, CHECKPOINTS
from rlhf_bench.training.cache import Cache


@dataclass(frozen=True, slots=True)
class Policy:
    """`seed`: of a base policy that all seeds share 0. `weights`: their SHA-256. `tokenizer`: a folder with the comparison's."""

    arm: str
    seed: int
    folder: Path
    weights: str
    tokenizer: Path

    @property
    def key(self) -> PolicyKey:
        return self.arm, self.seed

    def __str__(self) -> str:
        return _named(self.key)


def policies(
    recorded: RecordedComparison, cache: Cache, arms: Collection[str] = (), seeds: Collection[int] = ()
) -> list[Policy]:
    """The base policy (or every seed's own), then every arm's and seed's that has finished; with `arms`, which may name the base,
    and `seeds` those alone. BadInput with a line for each that cannot be found, or whose weights are others than recorded."""
    known, problems = recorded_weights(recorded.base, recorded.results), Problems()
    _check_choice(recorded, known, arms, seeds, problems)
    found = []
    for key in known:
        if _is_chosen(key, arms, seeds):
            with problems.step():
                folder = _base(recorded, cache, key, known[key]) if key[0] == BASE else _finished(recorded, key)
                found.append(_checked(recorded, key, folder, known))
    problems.refuse()
    return found


def _is_chosen(key: PolicyKey, arms: Collection[str], seeds: Collection[int]) -> bool:
    """A base policy of all seeds is of any seed."""
    arm, seed = key
    return (not arms or arm in arms) and (not seeds or seed in seeds or key == (BASE, 0))


def _check_choice(
    recorded: RecordedComparison,
    known: Collection[PolicyKey],
    arms: Collection[str],
    seeds: Collection[int],
    problems: Problems,
) -> None:
    """Adds a line for each name and seed that leads to no policy."""
    there, numbers = [BASE, *recorded.results["arms"]], sorted({seed for arm, seed in known if arm != BASE})
    finished = f"there are {listed(list(map(str, numbers)))}" if numbers else "none has finished"
    for arm in arms:
        if arm not in there:
            problems.add(f"--arm {arm}: no such arm in {recorded.directory}; there are {listed(there)}")
        elif not any(key[0] == arm for key in known):
            problems.add(f"--arm {arm}: none of its seeds has finished; run it again, or leave it out")
    for seed in seeds:
        if seed not in numbers:
            problems.add(f"--seed {seed}: no arm has finished with it in {recorded.directory}; {finished}")


def _named(key: PolicyKey) -> str:
    arm, seed = key
    return (
        "base policy" if key == (BASE, 0) else f"base policy of seed {seed}" if arm == BASE else f"{arm}, seed {seed}"
    )


def _folder(recorded: RecordedComparison, key: PolicyKey) -> Path:
    return recorded.directory / CHECKPOINTS / key[0] / f"seed-{key[1]}"


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _finished(recorded: RecordedComparison, key: PolicyKey) -> Path:
    folder = _folder(recorded, key)
    if not _has_weights(folder):
        raise BadInput(
            f"{folder}: the policy of {_named(key)} is not there; bring it back, or choose other arms and seeds by --arm and --seed"
        )
    return folder


def _base(recorded: RecordedComparison, cache: Cache, key: PolicyKey, weights: str | None) -> Path:
    """By its weights, in the cache or where the recipe's model is."""
    if weights is None:
        raise BadInput(
            f"{recorded.directory}: an older run, which does not say what weights its {_named(key)} has; choose arms by --arm"
        )
    for folder in _places(recorded, cache):
        if _has_weights(folder) and weights_sha256(folder) == weights:
            return folder
    raise BadInput(
        f"{_named(key)}: its weights (SHA-256 {weights[:12]}…) are neither below RLHF_BENCH_CACHE ({cache.folder}) nor where the "
        f"recipe's model is; `rlhf-bench run {recorded.directory / 'recipe.yaml'} --output {recorded.directory}` makes it again, or "
        "choose arms by --arm"
    )


def _places(recorded: RecordedComparison, cache: Cache) -> Iterator[Path]:
    """Folders that may hold it: fine-tuned ones first, where the recipe fine-tunes."""
    kept, name = cache.folders(), recorded.recipe.get("model", {}).get("name_or_path")
    for kind in ("base", "converted") if recorded.recipe.get("sft") else ("converted",):
        yield from kept.get(kind, [])
    if name is None or recorded.recipe.get("sft"):
        return
    given = (recorded_given(recorded.directory) or {}).get(MODEL)
    commit = given.content.get(COMMIT) if given else None
    yield folder_of(name if commit is None or "@" in name else f"{name}@{commit}")


def _checked(
    recorded: RecordedComparison, key: PolicyKey, folder: Path, known: Mapping[PolicyKey, str | None]
) -> Policy:
    """A base policy with the tokenizer of a finished one, which is the comparison's: a given model may come with another."""
    own = weights_sha256(folder)
    if known[key] not in (None, own):
        raise BadInput(
            f"{folder}: holds other weights than those with which {_named(key)} finished; bring them back, or choose others by "
            "--arm and --seed"
        )
    finished = [_folder(recorded, other) for other in known if other[0] != BASE]
    tokenizers = [folder] if key[0] != BASE else [other for other in finished if _has_weights(other)]
    return Policy(*key, folder, own, tokenizers[0] if tokenizers else folder)
