"""Models that a run was given: their weights are replaced while it is stopped, and files in their folders have the names of our own
notes. Two runs of one recipe, each with a cache of its own: undisturbed, and with all of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.chaos.runs import environment
from tests.chaos.told import Told
from tests.support.attempts import Attempts
from tests.support.given_models import write_weights
from tests.support.running import contents

SIZES = {"hidden_size": 32, "layers": 2, "heads": 1, "intermediate_size": 64, "max_length": 16}
WEIGHTS = "model.safetensors"


def with_given_models(told: Told, folder: Path, recipe: Path, _: Path) -> None:
    """The run with all of it is compared with one of the same models."""
    given = {"model.name_or_path": folder / "model", "reward_model.name_or_path": folder / "reward"}
    named = _recipe(folder, recipe, *given.values())
    whole = Attempts(named, folder / "given", environment(folder / "given"))
    whole.start()
    done = whole.end()
    assert done.code == 0, done.errors[-2000:]
    _leave_notes(*given.values())
    tried = Attempts(named, folder / "replaced", environment(folder / "replaced"))
    tried.start_and_reach("ppo", 2)
    tried.end_by_group_kill()
    for key, place in given.items():
        _replace(told, tried, key, place)
    tried.start()
    done = tried.end()
    assert done.code == 0, done.errors[-2000:]
    before = len(told.wrong)
    told.compare("given models", tried.directory, whole.directory)
    for place, note in zip(given.values(), ("fresh.json", "reward.json"), strict=True):
        fault = f"{note} in a stranger's {place.name} folder"
        told.tell(fault, "means nothing", len(told.wrong) == before, "results differ")


def _recipe(folder: Path, recipe: Path, model: Path, reward: Path) -> Path:
    """The recipe, with models that are given."""
    from tests.support.broken_models import write_sound_model

    for place, scalar in ((model, False), (reward, True)):
        place.mkdir()
        write_weights(write_sound_model(place, **SIZES), scalar=scalar)
    own = f"{{name_or_path: {model}, max_length: 16, tokenizer: {{kind: pretrained, name_or_path: {model}}}}}"
    text = re.sub(r"^model: .*", f"model: {own}", recipe.read_text(), flags=re.M)
    scores = f"reward_model: {{name_or_path: {reward}, start_policy_prompts: 16}}"
    named = folder / "given.yaml"
    named.write_text(re.sub(r"^reward_model: .*", scores, text, flags=re.M))
    return named


def _leave_notes(model: Path, reward: Path) -> None:
    """As a stranger may: they would discard the weights, and point elsewhere."""
    from rlhf_bench.models.loading import RewardScaling

    for place in (model, reward):
        (place / "fresh.json").write_text('{"seed": 3}')
        RewardScaling(str(model), 9.0, 9.0).write(place)


def _replace(told: Told, tried: Attempts, key: str, place: Path) -> None:
    """By others of the same shapes, size and time. Then the run's own are brought back."""
    weights, kept = place / WEIGHTS, (place / WEIGHTS).read_bytes()
    times = weights.stat()
    write_weights(place, seed=1, scalar=key.startswith("reward"))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    before = contents(tried.directory)
    tried.start()
    done = tried.end()
    fine = done.code == 2 and f"{key}: {place} has other {WEIGHTS}" in done.errors
    fine = fine and weights.stat().st_size == times.st_size and contents(tried.directory) == before
    told.tell(f"replaced weights of {key}", "refused", fine, f"{done.code}: {done.errors}")
    weights.write_bytes(kept)
