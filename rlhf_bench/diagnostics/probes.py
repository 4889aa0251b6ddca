"""Fixed responses that no pair contains: where the probability goes that both sides of the pairs lose (arXiv 2406.07327).

For each held-out pair, at most one response of every kind, to the pair's own prompt:

    base_samples     a sample of π0
    other_prompts    another held-out prompt's chosen response
    permuted         the chosen response's tokens in another order, its end kept last
    format_breaking  tokens drawn evenly from the whole vocabulary, as many as the chosen response has, then its end

A response that is a side of any pair with this prompt, held out (of whatever kind) or trained on, is not a probe: the loss acts on it
directly. Another one is tried in its place; a prompt for which none is found is dropped from the set, and counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_bench.core.types import Pair, Row

Response = tuple[int, ...]

PROBE_SETS = ("base_samples", "other_prompts", "permuted", "format_breaking")
ATTEMPTS = 16
"""Responses tried before a prompt is dropped from a set. Of two tokens' orders, all are seen but once in 65,536."""


@dataclass(frozen=True)
class Probes:
    """The sets, by name: rows with one response each; how many prompts each had to drop; what a reader must know."""

    rows: Mapping[str, tuple[Row, ...]]  # without sets that are empty
    dropped: Mapping[str, int]
    notes: tuple[str, ...]


def make_probes(
    pairs: Sequence[Pair],
    base_samples: Sequence[Sequence[Response]],
    training_pairs: Iterable[Pair],
    end_ids: Collection[int],
    vocabulary: int,
    max_length: int,
    seed: int,
    further_pairs: Iterable[Pair] = (),
) -> Probes:
    """Probe sets for the held-out `pairs`; the same for the same arguments.

    `base_samples[i]` are samples of π0 for pair i's prompt, of which the first that may be used is taken. Token ids run
    below `vocabulary`. Prompt and response stay within `max_length` tokens. `further_pairs` are held out too, and have no
    probes of their own, but no probe is a side of one. Raises ValueError where the samples are not one group per pair.
    """
    if len(base_samples) != len(pairs):
        raise ValueError(
            f"{len(base_samples)} groups of base samples for {len(pairs)} pairs: one group a pair is needed"
        )
    known = Sides.of(pairs, training_pairs, further_pairs)
    rows: dict[str, tuple[Row, ...]] = {}
    dropped: dict[str, int] = {}
    notes = [note] if (note := _overlap(pairs, known.trained)) else []
    for number, name in enumerate(PROBE_SETS):
        found = []
        for i, pair in enumerate(pairs):
            prompt = pair.prompt.token_ids
            tried = _candidates(
                name, i, pairs, base_samples, end_ids, vocabulary, np.random.default_rng([seed, number, i])
            )
            fitting = (a for a in tried if known.allow(prompt, a, max_length))
            if (response := next(fitting, None)) is not None:
                found.append(Row(f"{pair.id}/{name}", prompt, (response,)))
        dropped[name] = len(pairs) - len(found)
        if found:
            rows[name] = tuple(found)
        elif pairs:
            notes.append(
                f"probe set {name} is empty: every response tried for the {len(pairs)} held-out prompts is a side of a pair or too long; it has no curve"
            )
    return Probes(rows, dropped, tuple(notes))


@dataclass(frozen=True)
class Sides:
    """By prompt, the responses that no probe may be."""

    held_out: Mapping[Response, set[Response]]
    trained: Mapping[Response, set[Response]]

    @classmethod
    def of(cls, pairs: Iterable[Pair], training_pairs: Iterable[Pair], further_pairs: Iterable[Pair]) -> Sides:
        return cls(_sides([*pairs, *further_pairs]), _sides(training_pairs))

    def allow(self, prompt: Response, response: Response, max_length: int) -> bool:
        """Whether it may be a probe. Prompt and response stay within `max_length` tokens."""
        taken = response in self.held_out.get(prompt, ()) or response in self.trained.get(prompt, ())
        return not taken and len(prompt) + len(response) <= max_length


def _sides(pairs: Iterable[Pair]) -> dict[Response, set[Response]]:
    """By prompt, the responses that are a side of any of its pairs."""
    found: dict[Response, set[Response]] = {}
    for pair in pairs:
        found.setdefault(pair.prompt.token_ids, set()).update((pair.chosen_ids, pair.rejected_ids))
    return found


def _overlap(pairs: Sequence[Pair], trained: Mapping[Response, set[Response]]) -> str | None:
    both = sum(bool({p.chosen_ids, p.rejected_ids} & trained.get(p.prompt.token_ids, set())) for p in pairs)
    if not both:
        return None
    return f"{both} of {len(pairs)} held-out pairs have a side that is trained on (same prompt, same response): their likelihoods are not held out; remove them from the data"


def _candidates(
    name: str,
    i: int,
    pairs: Sequence[Pair],
    base_samples: Sequence[Sequence[Response]],
    end_ids: Collection[int],
    vocabulary: int,
    rng: np.random.Generator,
) -> Iterator[Response]:
    """Responses of one kind for pair i, to be tried in turn."""
    if name == "base_samples":
        yield from map(tuple, base_samples[i])
        return
    chosen = pairs[i].chosen_ids
    body = [token for token in chosen if token not in end_ids]
    end = chosen[len(body) :]
    for _ in range(ATTEMPTS):
        if name == "other_prompts":
            other = pairs[int(rng.integers(len(pairs)))]
            if other.prompt.token_ids != pairs[i].prompt.token_ids:
                yield other.chosen_ids
        elif name == "permuted":
            yield (*(int(token) for token in rng.permutation(body)), *end)
        else:
            drawn = rng.integers(vocabulary - len(end_ids), size=len(body))
            for index in sorted(end_ids):  # every id but those of an end
                drawn += drawn >= index
            yield (*map(int, drawn), *end)
