"""GSM8K (Cobbe et al., arXiv 2110.14168): grade-school mathematics, from the files of its own release.

`train.jsonl` and `test.jsonl` have a `question` and an `answer`, a worked solution that ends in "#### 72".
`example_model_solutions.jsonl` has graded solutions of four models to 1,000 of the test questions. They end in "A: 72"
and are rewritten to "#### 72", so that pairs and demonstrations have one format.

Splits. Steps are the lines of a worked solution before its answer.
train: train.jsonl's questions of at most `training_steps` steps.
pairs: a right against a wrong solution to the same one of the 1,000 questions, of at most `training_steps` steps.
The held-out prompts are the 319 test questions without graded solutions, so that no pair shows any of them:
out_of_distribution: more steps than any question in training or in a pair;
unseen: as many steps as in training, but the question has a word that neither train.jsonl nor a graded solution has;
in_distribution: all others.
Training texts, pairs and the last two splits obey both length limits; out_of_distribution obeys the prompts' only.
The limits drop questions, and never move one from split to split.

The Hub's copy, openai/gsm8k, has no graded solutions. From there all test questions are held out, and there are no pairs:
a weaker policy makes them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from rlhf_bench.core.errors import BadInput, Problems
from rlhf_bench.core.settings import Section
from rlhf_bench.core.types import Demonstration, Judgement, Prompt, Split, TextPair
from rlhf_bench.core.unusable import LeftOut, Unusable
from rlhf_bench.tasks.base import PAIRS, Task, check_enough, choose, generator
from rlhf_bench.tasks.files import choose_prompts
from rlhf_bench.tasks.judges.answers import final_number, judge_number
from rlhf_bench.tasks.loading.data_source import Place, is_hub_id, rows_at
from rlhf_bench.tasks.loading.rows import FileRow, read_rows

Item = TypeVar("Item")
MARKER = "####"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


class Gsm8kSettings(Section):
    """Where the files are, and what to leave out for a small model."""

    kind: Literal["gsm8k"] = Field("gsm8k", description="GSM8K, with pairs from the graded solutions of four models.")
    folder: Path = Field(
        description="Folder with train.jsonl, test.jsonl and example_model_solutions.jsonl; or openai/gsm8k, or a folder with a copy of that, which have no graded solutions and so no pairs."
    )
    strip_calculator: bool = Field(True, description="Remove calculator notes, such as <<48/2=24>>, from solutions.")
    training_steps: int = Field(
        4, ge=2, description="Most steps of a solution in training; held-out questions of more are out_of_distribution."
    )
    max_prompt_characters: int | None = Field(None, ge=1, description="Leave out questions longer than this.")
    max_response_characters: int | None = Field(None, ge=1, description="Leave out solutions longer than this.")


@dataclass(frozen=True)
class _Problem:
    prompt: Prompt
    solution: str
    steps: int


@dataclass(frozen=True)
class _Graded:
    """One of the 1,000 questions with the solutions that were graded right and wrong, as (model, text), and how many were
    left out for having no answer line."""

    problem: _Problem
    right: tuple[tuple[str, str], ...]
    wrong: tuple[tuple[str, str], ...]
    unanswered: int

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.problem.prompt.text, *(text for _, text in self.right + self.wrong))


def build(settings: Gsm8kSettings) -> Task:
    """Reads and checks the three files. BadInput names what is wrong with each, and of each kind of fault the first row."""
    if not settings.folder.is_dir() and not is_hub_id(str(settings.folder)):
        raise BadInput(f"task.folder: there is no folder {settings.folder}; give the one with GSM8K's JSONL files")
    all_train, all_test, all_graded = _read(settings)
    train = [problem for problem in all_train if _is_trainable(settings, problem)]
    all_pairs, pairs = _make_pairs(settings, all_graded)
    shown = {_squeeze(graded.problem.prompt.text) for graded in all_graded}
    left = [problem for problem in all_test if _squeeze(problem.prompt.text) not in shown]
    known = _words(text for problem in all_train for text in (problem.prompt.text, problem.solution))
    known |= _words(text for graded in all_graded for text in graded.texts)
    held_out = _held_out(settings, left, known)
    splits: dict[Split, list[Prompt]] = {"train": [problem.prompt for problem in train], **held_out}
    dropped = len(left) - sum(map(len, held_out.values()))
    solutions = {problem.prompt.id: problem.solution for problem in train}
    unanswered = sum(graded.unanswered for graded in all_graded)
    return Task(
        name="gsm8k",
        prompts=partial(choose_prompts, "gsm8k", splits),
        demonstrations=partial(_demonstrations, splits, solutions),
        judge=_judge,
        pairs=None if _is_dataset(settings) else partial(_pairs, pairs),
        corpus=partial(_corpus, splits, solutions, pairs),
        splits=tuple(splits),
        sizes={**{split: len(found) for split, found in splits.items()}, PAIRS: len(pairs)},
        notes=(
            f"train: {len(train)} of {len(all_train)} questions are within the limits on length and steps",
            f"pairs: {len(pairs)} of {all_pairs} are within the limits on length and steps",
            f"held out: {', '.join(f'{len(prompts)} {split}' for split, prompts in held_out.items())}; {dropped} of "
            f"{len(left)} questions without graded solutions are beyond the length limits",
            *([f"graded solutions left out: {unanswered} without an answer line"] if unanswered else []),
        ),
    )


# Reading


def _is_dataset(settings: Gsm8kSettings) -> bool:
    """Whether it is the Hub's copy: there, or a folder with its card, and without the release's files."""
    return not settings.folder.is_dir() or (
        (settings.folder / "README.md").is_file() and not (settings.folder / "train.jsonl").exists()
    )


def _read(settings: Gsm8kSettings) -> tuple[list[_Problem], list[_Problem], list[_Graded]]:
    """The questions of train.jsonl and of test.jsonl, and the graded ones: all that can be read, before what cannot is
    refused."""
    problems, faults = Problems(), LeftOut()
    train, test, graded = list[_Problem](), list[_Problem](), list[_Graded]()
    for part, found in (("train", train), ("test", test)):
        with problems.step():
            found += _usable(_rows(settings, part, faults), partial(_question, settings, part, {}), faults)
    if not _is_dataset(settings):
        with problems.step():
            path = settings.folder / "example_model_solutions.jsonl"
            graded += _usable(read_rows(path, "task.folder", faults.add), partial(_graded, settings), faults)
    with problems.step():
        faults.refuse()
    problems.refuse()
    return train, test, graded


def _rows(settings: Gsm8kSettings, part: str, faults: LeftOut) -> Iterator[FileRow]:
    if _is_dataset(settings):
        return rows_at(Place(source=str(settings.folder), config="main", split=part), "task.folder", faults.add)
    return read_rows(settings.folder / f"{part}.jsonl", "task.folder", faults.add)


def _usable(rows: Iterator[FileRow], read: Callable[[FileRow], Item], faults: LeftOut) -> Iterator[Item]:
    for row in rows:
        try:
            yield read(row)
        except Unusable as fault:
            faults.add(fault)


def _question(settings: Gsm8kSettings, part: str, places: dict[str, str], row: FileRow) -> _Problem:
    """`places`: where each question so far stands."""
    problem = _problem(settings, row, part, row.text("answer"))
    if first := places.get(problem.prompt.text):
        said = f"the same question as {first}; remove one of the two"
        raise Unusable(row.where, said, "with a question that came before")
    places[problem.prompt.text] = row.where
    return problem


def _problem(settings: Gsm8kSettings, row: FileRow, part: str, answer: str) -> _Problem:
    """The prompt is the question and a line break; its reference is the number alone."""
    solution = _clean(answer, settings.strip_calculator)
    number = final_number(solution, MARKER)
    if number is None:
        said = f"no single number after '{MARKER}' ends the solution; correct or remove the row"
        raise Unusable(row.where, said, "whose solution does not end with a number")
    question = row.text("question").strip() + "\n"
    prompt = Prompt(f"gsm8k/{part}/{row.number:06d}", question, str(number), where=row.where)
    return _Problem(prompt, solution, steps=solution.rpartition(MARKER)[0].strip().count("\n") + 1)


def _clean(solution: str, strip_calculator: bool) -> str:
    """The solution in one format: "#### 72" in place of a last line "A: 72", calculator notes removed if so set."""
    text = re.sub(r"\nA: (.*)\Z", rf"\n{MARKER} \1", solution.strip())
    return re.sub(r"<<.*?>>", "", text) if strip_calculator else text


def _graded(settings: Gsm8kSettings, row: FileRow) -> _Graded:
    """One of the 1,000. Solutions without an answer line (the models ran out of tokens) are left out, and counted."""
    sides: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    unanswered = 0
    for model in MODELS:
        match row.get(model):
            case {"solution": str(solution), "is_correct": bool(is_correct)}:
                text = _clean(solution, settings.strip_calculator)
                if MARKER in text:
                    sides[is_correct].append((model, text))
                else:
                    unanswered += 1
            case _:
                said = f"'{model}' is not an object with a text 'solution' and a true or false 'is_correct'"
                raise Unusable(
                    row.where, f"{said}; correct or remove the row", "without a graded solution of each model"
                )
    problem = _problem(settings, row, "graded", row.text("ground_truth"))
    return _Graded(problem, tuple(sides[True]), tuple(sides[False]), unanswered)


# Splits and pairs


def _fits(text: str, limit: int | None) -> bool:
    return limit is None or len(text) <= limit


def _is_trainable(settings: Gsm8kSettings, problem: _Problem) -> bool:
    return (
        problem.steps <= settings.training_steps
        and _fits(problem.prompt.text.strip(), settings.max_prompt_characters)
        and _fits(problem.solution, settings.max_response_characters)
    )


def _held_out(settings: Gsm8kSettings, left: list[_Problem], known: set[str]) -> dict[Split, list[Prompt]]:
    held_out: dict[Split, list[Prompt]] = {"in_distribution": [], "out_of_distribution": [], "unseen": []}
    for problem in left:
        prompt = problem.prompt
        if problem.steps > settings.training_steps:
            if _fits(prompt.text.strip(), settings.max_prompt_characters):
                held_out["out_of_distribution"].append(prompt)
        elif _is_trainable(settings, problem):
            held_out["in_distribution" if _words([prompt.text]) <= known else "unseen"].append(prompt)
    return held_out


def _make_pairs(settings: Gsm8kSettings, graded: list[_Graded]) -> tuple[int, list[TextPair]]:
    """How many pairs there are, and those within the limits: each right solution against each wrong one."""
    total, pairs = 0, []
    for item in graded:
        total += len(item.right) * len(item.wrong)
        if item.problem.steps > settings.training_steps:
            continue
        if not _fits(item.problem.prompt.text.strip(), settings.max_prompt_characters):
            continue
        pairs += [
            TextPair(item.problem.prompt, chosen, rejected, f"{better}>{worse}")
            for better, chosen in item.right
            for worse, rejected in item.wrong
            if _fits(chosen, settings.max_response_characters) and _fits(rejected, settings.max_response_characters)
        ]
    return total, pairs


def _squeeze(text: str) -> str:
    """White space evened out: the files of the release differ in it."""
    return " ".join(text.split())


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())}


# The task's functions


def _demonstrations(
    splits: dict[Split, list[Prompt]], solutions: dict[str, str], count: int, seed: int
) -> list[Demonstration]:
    prompts = choose_prompts("gsm8k", splits, "train", count, seed)
    return [Demonstration(prompt, solutions[prompt.id]) for prompt in prompts]


def _pairs(pairs: list[TextPair], count: int, seed: int) -> list[TextPair]:
    """`count` pairs, spread over as many questions as there are: all first pairs of a question, then all second."""
    check_enough(pairs, count, "gsm8k, preference pairs")
    shuffled = choose(pairs, len(pairs), generator("gsm8k", "pairs", seed), "gsm8k, preference pairs")
    seen: Counter[str] = Counter()
    rounds: dict[int, list[TextPair]] = defaultdict(list)
    for pair in shuffled:
        rounds[seen[pair.prompt.id]].append(pair)
        seen[pair.prompt.id] += 1
    return [pair for number in sorted(rounds) for pair in rounds[number]][:count]


def _judge(prompt: Prompt, response: str) -> Judgement:
    return judge_number(response, prompt.answer, MARKER)


def _corpus(splits: dict[Split, list[Prompt]], solutions: dict[str, str], pairs: list[TextPair]) -> list[str]:
    prompts = [prompt.text for split in splits.values() for prompt in split]
    pair_texts = [text for pair in pairs for text in (pair.prompt.text, pair.chosen, pair.rejected)]
    answers = [f"{MARKER} {prompt.answer}" for split in splits.values() for prompt in split]
    return list(dict.fromkeys([*prompts, *solutions.values(), *pair_texts, *answers]))
