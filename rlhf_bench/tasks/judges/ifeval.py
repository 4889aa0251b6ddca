"""IFEval's verifiable instructions (arXiv 2311.07911), by the verifiers of `if-verifiable` (Apache-2.0), which are Google's own.

A prompt's reference is JSON with IFEval's two columns: `instruction_id_list`, such as ["punctuation:no_comma"], and `kwargs`, one
object for each. A verifier with an argument missing or out of range draws one at random, so such rows are refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any

from rlhf_bench.core.types import Judgement
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.tasks.loading.rows import FileRow

NEED_DOWNLOAD = ("change_case:capital_word_frequency", "length_constraints:number_sentences")
"""Kinds whose verifiers need nltk's sentence model, which is a download: they are left out."""
MAX_CHARACTERS = 20_000
"""Maximum length of a response, far beyond what IFEval asks for. The verifiers' time grows with the square of the length, so a
longer response follows no instruction."""
IDS, KWARGS = "instruction_id_list", "kwargs"


@cache
def _verifiers() -> Mapping[str, Any]:
    """By id. Imported here, since nltk and datasets take seconds and no other task needs them."""
    import langdetect
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    langdetect.DetectorFactory.seed = 0  # it samples: without a seed, one text gets several verdicts
    logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("Unable to detect language"))
    return {name: verifier for name, verifier in INSTRUCTION_DICT.items() if name not in NEED_DOWNLOAD}


def reference_of(row: FileRow) -> str:
    """The reference of a row with IFEval's columns. Unusable where a kind or an argument is not one that can be verified."""
    ids, kwargs = row.get(IDS), row.get(KWARGS)
    if not (isinstance(ids, list) and isinstance(kwargs, list) and 0 < len(ids) == len(kwargs)):
        raise Unusable(
            row.where,
            f"{IDS} and {KWARGS} are not two lists of one length; give each instruction its arguments, or {{}}",
            "whose instructions cannot be read",
        )
    given = [{k: v for k, v in one.items() if v is not None} if isinstance(one, dict) else one for one in kwargs]
    for name, arguments in zip(ids, given, strict=True):
        if problem := _problem(name, arguments):
            raise Unusable(row.where, problem, _left_out_as(name))
    return json.dumps({IDS: ids, KWARGS: given}, ensure_ascii=False)


def _left_out_as(name: object) -> str:
    return (
        f"with {name}, which needs a download"
        if name in NEED_DOWNLOAD
        else "with an instruction that cannot be verified"
    )


def _problem(name: object, arguments: object) -> str | None:
    """What is wrong with an instruction, and what to do about it."""
    if name in NEED_DOWNLOAD:
        return f"{name} needs a sentence model that is a download; leave the row out (task.unusable: leave_out)"
    if name not in _verifiers():
        near = get_close_matches(str(name), _verifiers(), 1)
        return f"no instruction '{name}'{f' (did you mean {near[0]}?)' if near else ''}; correct {IDS}"
    verifier = _verifiers()[str(name)](name)
    needed = sorted(verifier.get_instruction_args_keys())
    if not isinstance(arguments, dict) or sorted(arguments) != needed:
        return f"{name} takes {', '.join(needed) or 'no arguments'}; correct its {KWARGS}"
    try:
        verifier.build_description(**arguments)
        verifier.check_following("A text.")
        same = all(
            _plain(arguments[key]) == _plain(value) for key, value in (verifier.get_instruction_args() or {}).items()
        )
    except Exception:  # of whatever kind: it is the verifier that cannot use what the row gives
        same = False
    return (
        None if same else f"{name} cannot be verified with {json.dumps(arguments, default=str)}; correct its {KWARGS}"
    )


def _plain(value: object) -> object:
    """An argument as verifiers keep it: lists in any order, texts without white space at the ends and in any case."""
    if isinstance(value, list | set | tuple):
        return {_plain(one) for one in value}
    return value.strip().lower() if isinstance(value, str) else value


def judge_ifeval(response: str, reference: str) -> Judgement:
    """Score: the share of instructions that the response follows, by the strict rule.

    Parts, as the field reports them: `prompt_strict`, 1 where all are followed, and `instruction_strict`, the share of
    them, which weighs as many as there are in means over prompts; `prompt_loose` and `instruction_loose` likewise, where
    the response may also follow without its first or last line or its asterisks."""
    asked = json.loads(reference)
    pairs = list(zip(asked[IDS], asked[KWARGS], strict=True))
    verdicts = [_follows(name, json.dumps(arguments), response) for name, arguments in pairs]
    parts = {}
    for rule, followed in zip(("strict", "loose"), zip(*verdicts, strict=True), strict=True):
        parts[f"prompt_{rule}"] = float(all(followed))
        parts[f"instruction_{rule}"] = sum(followed) / len(followed)
    count = float(len(pairs))
    return Judgement(parts["instruction_strict"], parts, {"instruction_strict": count, "instruction_loose": count})


@lru_cache(maxsize=4096)
def _follows(name: str, arguments: str, response: str) -> tuple[bool, bool]:
    """Whether the response follows one instruction, strictly and loosely: the library's verdicts."""
    if len(response) > MAX_CHARACTERS:
        return False, False
    registry = _verifiers()
    from if_verifiable.common import evaluate_instructions

    try:
        results, _ = evaluate_instructions(response, [name], [json.loads(arguments)], "", dict(registry))
    except Exception:  # a verifier's mistake about a stranger's text, such as JSON nested too deep: not followed
        return False, False
    return (results[0].strict_pass, results[0].loose_pass) if results else (False, False)  # none: a blank response
