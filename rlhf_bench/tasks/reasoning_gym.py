"""The procedural tasks of `reasoning-gym` (arXiv 2505.24760, Apache-2.0): any of its data sets by name, with its own verifier.

Splits. `size` entries of the data set are made from `seed`, each by its index. A question's text decides between `train` and
`in_distribution`. `out_of_distribution`, where `harder` gives its parameters, is a second data set; a third of all texts is then its
alone, so that no question is on both sides. There is no `unseen`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

from pydantic import Field

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.settings import Section
from rlhf_bench.core.types import Demonstration, Judgement, Prompt, Split, TextPair
from rlhf_bench.tasks.base import HELD_OUT_FRACTION, Task, check_installed, fraction, generator
from rlhf_bench.tasks.defects import RULE_MADE

EVALUATE = frozenset(
    """composite string_insertion spiral_matrix binary_matrix n_queens simple_integration intermediate_integration
polynomial_multiplication puzzle24 countdown""".split()
)
"""Data sets whose verifiers run a response as Python, which could do anything here, and the one that holds others: refused."""
UNSTEADY = frozenset("acre codeio isomorphic_strings knight_swap list_functions ransom_note word_ladder".split())
"""Data sets whose entries differ between processes of one seed, so that a judge could not find its entry again: refused."""
HARDER_FRACTION = 1 / 3
_TAG = "answer"


class ReasoningGymSettings(Section):
    """A data set of reasoning-gym."""

    kind: Literal["reasoning_gym"] = Field(
        "reasoning_gym", description="A procedural data set of reasoning-gym, by name."
    )
    dataset: str = Field(description="Its name, such as chain_sum or family_relationships.")
    config: dict[str, Any] = Field(
        default_factory=dict, description="Parameters of the data set, as reasoning-gym has them."
    )
    harder: dict[str, Any] | None = Field(
        None, description="Its parameters for out_of_distribution; null leaves this split without prompts."
    )
    size: int = Field(10_000, ge=10, le=1_000_000, description="How many entries the prompts are drawn from.")
    seed: int = Field(0, ge=0, description="What all entries are made from, whatever the seed of an arm.")


@dataclass
class _Entries:
    """A data set's entries, made when they are asked for and kept."""

    dataset: Any
    made: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self.made:
            self.made[index] = self.dataset[index]
        return self.made[index]


Sources = dict[Split, _Entries]


def build(settings: ReasoningGymSettings) -> Task:
    """BadInput where there is no such data set, it does not take the parameters, or reasoning-gym is not installed."""
    check_installed("reasoning_gym", "reasoning-gym", "reasoning_gym")
    common = _Entries(_dataset(settings, "config", settings.config))
    sources: Sources = {"train": common, "in_distribution": common}
    if settings.harder is not None:
        sources["out_of_distribution"] = _Entries(_dataset(settings, "harder", settings.config | settings.harder))
    prompts = partial(_prompts, settings, sources)
    return Task(
        name="reasoning_gym",
        prompts=prompts,
        demonstrations=partial(_demonstrations, settings, prompts),
        judge=partial(_judge, sources),
        pairs=partial(_pairs, settings, sources, prompts),
        corpus=lambda: [text for i in range(200) for text in (common[i]["question"], str(common[i]["answer"]))],
        splits=tuple(sources),
    )


def _dataset(settings: ReasoningGymSettings, key: str, config: dict[str, Any]) -> Any:
    import reasoning_gym  # a hundred modules: seconds
    from reasoning_gym.factory import DATASETS

    name = settings.dataset
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, 3)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(DATASETS))}"
        raise BadInput(f"task.dataset: reasoning-gym has no '{name}'; {remedy}")
    if name in EVALUATE:
        raise BadInput(f"task.dataset: the verifier of '{name}' may run responses as Python; choose another")
    if name in UNSTEADY:
        raise BadInput(f"task.dataset: the entries of '{name}' differ from process to process; choose another")
    for given in ("seed", "size"):
        if given in config:
            raise BadInput(f"task.{key}: {given} is a key of the task itself; move it to task.{given}")
    try:
        dataset = reasoning_gym.create_dataset(name, **config, seed=settings.seed, size=settings.size)
        dataset[0]
    except Exception as error:  # asserts and TypeErrors of a hundred data sets: of the parameters
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"task.{key}: '{name}' does not take these parameters ({said}); correct them") from None
    return dataset


def _split_of(settings: ReasoningGymSettings, question: str) -> Split:
    place = fraction(question)
    if place < HELD_OUT_FRACTION:
        return "in_distribution"
    return "out_of_distribution" if settings.harder is not None and place > 1 - HARDER_FRACTION else "train"


def _prompts(settings: ReasoningGymSettings, sources: Sources, split: Split, count: int, seed: int) -> list[Prompt]:
    found: dict[str, Prompt] = {}
    if split in sources:
        for index in generator("reasoning_gym", split, seed).sample(range(settings.size), settings.size):
            if len(found) == count:
                break
            entry = sources[split][index]
            if entry["question"] not in found and _split_of(settings, entry["question"]) == split:
                name = f"reasoning_gym/{split}/{index:06d}"
                found[entry["question"]] = Prompt(name, entry["question"], str(entry["answer"]))
    if len(found) < count:
        raise BadInput(
            f"task {settings.dataset}, {split}: {count} different prompts are asked for, and {settings.size} entries have "
            f"{len(found)}; ask for fewer, raise task.size or widen task.config"
        )
    return list(found.values())


def _demonstrations(
    settings: ReasoningGymSettings, prompts: Callable[[Split, int, int], list[Prompt]], count: int, seed: int
) -> list[Demonstration]:
    return [Demonstration(prompt, _answer(settings, prompt)) for prompt in prompts("train", count, seed)]


def _answer(settings: ReasoningGymSettings, prompt: Prompt) -> str:
    if prompt.answer == "None":
        raise BadInput(
            f"task.dataset: '{settings.dataset}' verifies answers and gives none, so there are no demonstrations and no "
            "offline pairs; turn off sft, and use arms that sample"
        )
    return prompt.answer


def _pairs(
    settings: ReasoningGymSettings,
    sources: Sources,
    prompts: Callable[[Split, int, int], list[Prompt]],
    count: int,
    seed: int,
) -> list[TextPair]:
    """The right answer against another question's that scores less here."""
    asked = prompts("train", count, seed)
    pool = prompts("train", max(count, 50), seed)[:50]
    rng = generator("reasoning_gym", "pairs", seed)
    pairs = []
    for prompt in asked:
        right = _answer(settings, prompt)
        others = [other.answer for other in rng.sample(pool, len(pool))]
        best = _judge(sources, prompt, right).score
        wrong = next((other for other in others if _judge(sources, prompt, other).score < best), None)
        if wrong is None:
            raise BadInput(
                f"task {settings.dataset}: no other question's answer is worse for {prompt.id}; use arms that sample"
            )
        pairs.append(TextPair(prompt, right, wrong, RULE_MADE))
    return pairs


def _judge(sources: Sources, prompt: Prompt, response: str) -> Judgement:
    """The verifier's score of what stands in the last <answer>…</answer>, or of the whole response where there is none. Part
    `right`: the score is 1; verifiers give part of it for answers that are nearly right or wrongly put."""
    from reasoning_gym.utils import extract_answer

    _, split, index = prompt.id.split("/")
    source = sources[split]  # type: ignore[index]
    entry, given = source[int(index)], extract_answer(response, _TAG)
    if entry["question"] != prompt.text:
        raise RuntimeError(
            f"{prompt.id}: this process makes another question of the same seed; choose another task.dataset"
        )
    try:
        with warnings.catch_warnings(action="ignore"):
            score = float(source.dataset.score_answer(response.strip() if given is None else given, entry))
    except Exception:  # a verifier's mistake about a stranger's text: it is not right
        score = 0.0
    score = min(1.0, max(0.0, score)) if score == score else 0.0
    return Judgement(score, {"right": float(score == 1)})
