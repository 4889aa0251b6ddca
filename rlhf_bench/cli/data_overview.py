"""What `rlhf-bench check` prints about the data: counts, lengths, repeats, and leaks of held-out prompts into training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from rlhf_bench.core.types import Prompt, Row
from rlhf_bench.training.inputs import Inputs

QUANTILES = (0, 0.5, 0.9, 0.99, 1)


def data_check(inputs: Inputs) -> Iterator[str]:
    """Lines to print."""
    pairs, held_out_pairs = inputs.pairs or [], inputs.held_out_pairs
    prompts = {"train": inputs.train, **inputs.held_out, "tuning": inputs.tuning}
    lengths = {f"{split} prompts": [len(p.token_ids) for p in found] for split, found in prompts.items()}
    lengths["demonstrations' responses"] = [len(row.responses[0]) for row in inputs.demonstrations]
    for name, some in (("pairs", pairs), ("held-out pairs", held_out_pairs)):
        lengths[f"{name}' chosen"] = [len(p.chosen_ids) for p in some]
        lengths[f"{name}' rejected"] = [len(p.rejected_ids) for p in some]
    yield f"data, tokens at quantiles {', '.join(f'{q:g}' for q in QUANTILES)}:"
    for name, counts in lengths.items():
        if counts:
            yield f"  {name}: {len(counts)} of {_quantiles(counts)}"
    if inputs.pairs is None:
        yield "  pairs: none with the data; a weaker policy makes them"
    elif not pairs:
        yield "  pairs: none with the data, and no arm needs any; held-out ones are among the base policy's own answers"

    def keys(found: Iterable[Prompt | Row]) -> list[str]:
        ids = [list(one.token_ids if isinstance(one, Prompt) else one.prompt_ids) for one in found]
        return [_key(text) for text in inputs.tokenizer.backend_tokenizer.decode_batch(ids)]

    yield "data, repeats (case, white space and punctuation aside):"
    for split, found in prompts.items():
        if found:
            yield f"  {split} prompts: {_repeats(keys(found))}"
    if pairs:
        whole = _repeats((p.prompt.token_ids, p.chosen_ids, p.rejected_ids) for p in pairs)
        yield f"  pairs: {whole} of all three texts, {_repeats(keys(p.prompt for p in pairs))} of the prompt"

    yield "data, leaks: held-out prompts whose words training shows too:"
    trained = {
        "train prompts": set(keys(inputs.train)),
        "demonstrations": set(keys(inputs.demonstrations)),
        "pairs": set(keys(p.prompt for p in pairs)),
    }
    held_out = {**inputs.held_out, "tuning": inputs.tuning, "held-out pairs": [p.prompt for p in held_out_pairs]}
    for split, found in held_out.items():
        if found:
            yield f"  {split}: {_leaks(found, keys(found), trained)}"


def _quantiles(lengths: Sequence[int]) -> str:
    return ", ".join(f"{x:.0f}" for x in np.quantile(lengths, QUANTILES, method="higher"))


def _repeats(keys: Iterable[object]) -> int:
    return sum(count - 1 for count in Counter(keys).values())


def _key(text: str) -> str:
    """Letters, digits and signs of arithmetic, in lower case, with single spaces between them."""
    return " ".join("".join(c if c.isalnum() or c in "+-*/^=<>" else " " for c in text.casefold()).split())


def _leaks(prompts: Sequence[Prompt], keys: Sequence[str], trained: Mapping[str, set[str]]) -> str:
    """How many of the prompts are in each of the sets, with one of them by name."""
    said = []
    for name, known in trained.items():
        if leaked := [p.id for p, key in zip(prompts, keys, strict=True) if key in known]:
            said.append(f"{len(leaked)} in {name} (first {leaked[0]})")
    return f"{', '.join(said) or 'none'} of {len(prompts)}"
