"""`rlhf-bench judge`."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_bench.cli.options import cache_folder, say_aside, write_line
from rlhf_bench.core.errors import Problems, RunFailed
from rlhf_bench.core.lock import held

if TYPE_CHECKING:
    from rlhf_bench.core.contests import Contest
    from rlhf_bench.llm_judge.asking import Outcome
    from rlhf_bench.llm_judge.budget import Prices
    from rlhf_bench.llm_judge.endpoint import Endpoint
    from rlhf_bench.llm_judge.labels import Labelled
    from rlhf_bench.llm_judge.prompt import JudgePrompt
    from rlhf_bench.llm_judge.session import Judge, Limits
    from rlhf_bench.results.judged import Place


def judge(
    endpoint: Annotated[
        str, typer.Option(help="base address of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1")
    ],
    model: Annotated[str, typer.Option(help="the judge's name there")],
    directory: Annotated[
        Path | None, typer.Argument(help="the --output of a run that has ended", show_default=False)
    ] = None,
    against: Annotated[
        str, typer.Option(help="the opponent: base, an arm's name, or reference (the data's answers)")
    ] = "base",
    agreement: Annotated[
        Path | None,
        typer.Option(
            help="pairs that people have judged: the judge's agreement with them is measured", show_default=False
        ),
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="a prompt of your own, docs/llm_judge.md", show_default="the project's own")
    ] = None,
    key_variable: Annotated[
        str, typer.Option(help="environment variable that holds the server's key")
    ] = "OPENAI_API_KEY",
    queries: Annotated[
        int | None, typer.Option(min=1, help="send at most so many requests in all", show_default="no limit")
    ] = None,
    money: Annotated[
        float | None, typer.Option(min=0, help="spend at most so much in all", show_default="no limit")
    ] = None,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="price of a million prompt tokens", show_default="not counted")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0, help="price of a million reply tokens", show_default="not counted")
    ] = None,
    concurrent: Annotated[int, typer.Option(min=1, max=1024, help="requests in flight")] = 32,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds after which a request counts as failed")] = 60.0,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="the longest reply; raise it where the prompt asks for reasons")
    ] = 64,
    constrain: Annotated[
        bool,
        typer.Option(
            "--constrain", help="have the server allow nothing but a verdict (response_format): for small models"
        ),
    ] = False,
) -> None:
    """Have a language model compare the responses of every arm with an opponent's: win rates in summary.json and the report.

    Both orders of each pair are asked, once: answers are kept, and the same command asks only what is missing. Exit code 1 where
    verdicts are missing at the end: the report then says INCOMPLETE. Without a DIRECTORY, only --agreement is measured.

    Example: rlhf-bench judge outputs/quickstart --endpoint http://127.0.0.1:8000/v1 --model NAME --agreement pairs.jsonl
    """
    from rlhf_bench.llm_judge.budget import Prices
    from rlhf_bench.llm_judge.endpoint import Endpoint, check_endpoint
    from rlhf_bench.llm_judge.labels import read_labelled
    from rlhf_bench.llm_judge.prompt import read_prompt
    from rlhf_bench.llm_judge.session import Limits

    problems, key = Problems(), os.environ.get(key_variable, "").strip()
    url, text, labelled, pairs = "", None, None, dict[Path, Any]()
    with problems.step():
        url = check_endpoint(endpoint, key_variable, key)
    with problems.step():
        text = read_prompt(prompt)
    with problems.step():
        labelled = read_labelled(agreement) if agreement else None
    with problems.step():
        pairs = _contests(directory, against)
    if directory is None and agreement is None:
        problems.add(
            "DIRECTORY: is missing; name the output of a run, or --agreement with pairs that people have judged"
        )
    if money is not None and price_in is None and price_out is None:
        problems.add("--money: needs prices; give --price-in and --price-out per million tokens")
    problems.refuse()
    assert text is not None

    prices = None if price_in is None and price_out is None else Prices(price_in or 0.0, price_out or 0.0)
    limits = Limits(queries or math.inf, math.inf if money is None else money, prices or Prices(), concurrent)
    server = Endpoint(url, model, key, timeout, max_tokens, constrain)
    with held(directory, say_aside) if directory is not None else nullcontext():
        outcome = _judge(server, text, limits, prices, against, pairs, labelled)
        if directory is not None:
            _report(directory, pairs, model)
    _refuse_incomplete(outcome)


def _judge(
    server: Endpoint,
    prompt: JudgePrompt,
    limits: Limits,
    prices: Prices | None,
    against: str,
    pairs: Mapping[Path, Mapping[Place, Contest]],
    labelled: Labelled | None,
) -> Outcome:
    """Ask what is not known yet, and write down what is, by the folder of each comparison."""
    from rlhf_bench.llm_judge.agreement import cost_record, measured_agreement
    from rlhf_bench.llm_judge.answers import opened
    from rlhf_bench.llm_judge.session import Judge
    from rlhf_bench.report.sections.judged import agreement_line, cost_words
    from rlhf_bench.results.judged import write_judged

    asked = [*(labelled.contests if labelled else ()), *(c for found in pairs.values() for c in found.values())]
    with opened(cache_folder(), server) as book:
        if book.damaged:
            say_aside(f"{book.file}: {book.damaged} lines cannot be read; what they answered is asked again")
        judge = Judge(server, prompt, book)
        outcome = judge.ask(asked, limits, say_aside)
        agreed = measured_agreement(judge, labelled, prices) if labelled else None
        for place, found in pairs.items():
            about = _about(judge, against, outcome, agreed)
            about["costs"] = cost_record(judge.costs(list(found.values())), prices)
            write_judged(place, about, found, {at: judge.judged(one) for at, one in found.items()})
    if agreed and not pairs:
        write_line(agreement_line(server.model, agreed))
        write_line(f"{server.model}: {cost_words(agreed['costs'])}")
    return outcome


def _contests(directory: Path | None, against: str) -> dict[Path, dict[Place, Contest]]:
    """By the folder of each comparison: one, or those of a series; none without a directory."""
    from rlhf_bench.report.series import series_labels
    from rlhf_bench.results.contests import contests
    from rlhf_bench.results.reader import read_recorded

    if directory is None:
        return {}
    places = [directory / label for label in series_labels(directory) or [""]]
    return {place: contests(read_recorded(place), against) for place in places}


def _about(judge: Judge, against: str, outcome: Outcome, agreed: dict[str, Any] | None) -> dict[str, Any]:
    """What a judging's file says of how it came about, but for costs."""
    about = {
        "model": judge.endpoint.model,
        "endpoint": judge.endpoint.url,
        "prompt_sha256": judge.prompt.sha256,
        "constrained": judge.endpoint.constrained,
        "max_tokens": judge.endpoint.max_tokens,
        "against": against,
        "failures": dict(outcome.failures),
        "stopped": outcome.stopped,
    }
    return about if agreed is None else about | {"agreement": agreed}


def _report(directory: Path, places: Any, model: str) -> None:
    """Write summary.json and the report again, and print what they say of this judge."""
    from rlhf_bench.report import write_report
    from rlhf_bench.report.sections.judged import judging_lines
    from rlhf_bench.report.series import series_labels, write_series

    for place in places:
        for judging in write_report(place).judgings:
            if judging.about["model"] == model:
                for line in judging_lines(judging):
                    write_line(line)
    if labels := series_labels(directory):
        write_series(directory, labels)
    write_line(f"report: {(directory / 'report.html').resolve()}")
    write_line(f"MLflow: rlhf-bench track {shlex.quote(str(directory))} sends it the win rates")


def _refuse_incomplete(outcome: Outcome) -> None:
    """RunFailed where questions were left without a verdict."""
    if not outcome.failures:
        return
    causes = "; ".join(
        f"{count} {cause}" + (f" ({outcome.said[cause]})" if cause in outcome.said else "")
        for cause, count in outcome.failures.most_common()
    )
    stopped = f"; gave up: {outcome.stopped}" if outcome.stopped else ""
    raise RunFailed(
        f"judge: {outcome.failures.total()} questions have no verdict: {causes}{stopped}; the same command asks them again"
    )
