"""All queries that were ever sent to one judge, and what came of each: the ledger of their costs, and the cache of their answers.

A JSON line for every request, in the cache folder `judge-HASH` of the judge's address and model. A question is known by its
content: the whole request, so by model, prompt, both responses, order and limits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlhf_bench.core.contests import Verdict
from rlhf_bench.core.errors import BadInput, RunFailed
from rlhf_bench.core.files import make_private, write_json
from rlhf_bench.llm_judge.endpoint import Attempt, Endpoint
from rlhf_bench.llm_judge.prompt import verdict


@dataclass(frozen=True, slots=True)
class Query:
    """One request that was sent. `charged_prompt_tokens` and `charged_completion_tokens`: what the server counted, or the bounds
    where it answered without counting; 0 where it did not answer."""

    question: str
    reply: str | None
    failure: str | None
    charged_prompt_tokens: int
    charged_completion_tokens: int


@dataclass(frozen=True, slots=True)
class Costs:
    """Requests sent, those that a verdict came of, and tokens."""

    queries: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, query: Query) -> Costs:
        return Costs(
            self.queries + 1,
            self.answers + (query.reply is not None),
            self.prompt_tokens + query.charged_prompt_tokens,
            self.completion_tokens + query.charged_completion_tokens,
        )


def question_key(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class AnswerBook:
    """See above. For one process at a time: `opened`."""

    def __init__(self, file: Path):
        self.file = file
        self._costs: dict[str, Costs] = {}
        self._replies: dict[str, str] = {}
        self.damaged = 0  # lines that a killed process or a full disk has cut short
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
            query = _query(line)
            if query is None:
                self.damaged += 1
            else:
                self._note(query)

    def add(self, question: str, attempt: Attempt, bounds: tuple[int, int]) -> Query:
        """Write down a request and hand it to the operating system: no answer that was paid for is lost with the process."""
        answered = attempt.failure in (None, "refused", "no verdict")
        counted = zip((attempt.prompt_tokens, attempt.completion_tokens), bounds, strict=True)
        tokens = [(bound if own is None else own) if answered else 0 for own, bound in counted]
        query = Query(question, attempt.reply, attempt.failure, *tokens)
        try:
            with self.file.open("ab") as stream:
                torn = stream.tell() and self._ends_within_a_line()
                stream.write((b"\n" if torn else b"") + json.dumps(asdict(query)).encode() + b"\n")
        except OSError as error:
            raise RunFailed(
                f"{self.file}: cannot be written ({error.strerror}); the same command asks what is left"
            ) from None
        self._note(query)
        return query

    def verdict(self, question: str) -> Verdict | None:
        reply = self._replies.get(question)
        return None if reply is None else verdict(reply)

    def costs(self, questions: Iterable[str]) -> Costs:
        """All that was ever sent for these questions, whichever command sent it."""
        found = [self._costs[q] for q in set(questions) if q in self._costs]
        return Costs(*(sum(getattr(one, f.name) for one in found) for f in fields(Costs)))

    def _note(self, query: Query) -> None:
        self._costs[query.question] = self._costs.get(query.question, Costs()).plus(query)
        if query.reply is not None:
            self._replies[query.question] = query.reply

    def _ends_within_a_line(self) -> bool:
        with self.file.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) != b"\n"


def _query(line: str) -> Query | None:
    try:
        return Query(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None


@contextmanager
def opened(cache: Path, endpoint: Endpoint) -> Iterator[AnswerBook]:
    """The book of a judge below the cache's folder, held for this process. Raises BadInput where another command asks the same
    judge, or where the folder cannot be used."""
    identity = {"endpoint": endpoint.url, "model": endpoint.model}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / f"judge-{digest}"
    lock = FileLock(folder / "lock", blocking=False)
    try:
        make_private(folder)
        if not (folder / "cache.json").exists():
            write_json(folder / "cache.json", identity)  # by which `rlhf-bench cache` knows the folder
        lock.acquire()
        book = AnswerBook(folder / "answers.jsonl")
    except Timeout:
        raise BadInput(
            f"--model {endpoint.model}: another command asks this judge; wait for its end, then the same command asks what is left"
        ) from None
    except OSError as error:
        raise BadInput(
            f"RLHF_BENCH_CACHE: {folder} cannot be used ({error.strerror}); name a folder that can"
        ) from None
    try:
        yield book
    finally:
        lock.release()
