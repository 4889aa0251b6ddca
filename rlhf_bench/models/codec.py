"""Prompts and answers as token ids, and back. Everything that a run trains on, samples and judges passes here, so that it
begins and ends alike.

**Where an answer begins.** A prompt is tokenized alone, as a sampler is given it. An answer's tokens are those of the whole,
prompt and answer, behind the prompt's own. Where a merge crosses the boundary (the prompt ends with "\\n" and the answer begins
with one, and "\\n\\n" is one token), the whole does not begin with the prompt's tokens. No sampler could write that token
then: the prompt keeps its tokens, and the answer is tokenized as it stands behind a text, without a space that the tokenizer
puts before the first word of one.

**Where it ends.** A response may end with any of one set of tokens: the chat template's end of a turn, those that the model's
generation_config.json lists (or config.json, where there is none), and the tokenizer's EOS. Sampling stops at each, decoding
takes each off, and a response that has none was cut off. A given answer ends with the first of them that there is, once, also
where its text has one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Prompt
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.models.chat import Behind, ChatTemplate
from rlhf_bench.models.hub import folder_of
from rlhf_bench.models.tokenizer import TextTokenizer, decode_response, encode_prompt, first_line

GENERATION = "generation_config.json"
_ANCHORS = ("\n", ".", "0")


@dataclass(frozen=True)
class Answer:
    """An answer's tokens, its end included; `opened` as in `Behind`."""

    ids: tuple[int, ...]
    opened: str = ""


@dataclass(frozen=True)
class Codec:
    """`chat`: None where texts are used as they stand. `listed`: the end tokens that the model's own files list."""

    tokenizer: TextTokenizer = field(repr=False)
    chat: ChatTemplate | None = None
    listed: tuple[int, ...] = ()
    ordinary: tuple[int, ...] = ()  # listed too, and tokens of a text: they end nothing

    @cached_property
    def ends(self) -> dict[int, str]:
        """Tokens that end a response, and who says so. The first one ends given answers."""
        said = (
            {} if self.chat is None or self.chat.end is None else {self.chat.end: "the chat template's end of a turn"}
        )
        eos, listed = (
            {self.tokenizer.eos_token_id: "the tokenizer's EOS"},
            dict.fromkeys(self.listed, "the model's list"),
        )
        return said | {i: who for i, who in (eos | listed | eos).items() if i not in said}

    @property
    def end_ids(self) -> frozenset[int]:
        return frozenset(self.ends)

    @property
    def end(self) -> int:
        """What a given answer ends with."""
        return next(iter(self.ends))

    @property
    def day(self) -> date | None:
        """The date that every prompt has; None where the template writes none."""
        return self.chat.day if self.chat is not None and self.chat.writes_date else None

    def prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """A prompt's tokens, with one BOS: a chat template says whether there is one."""
        return self._prompt_ids(self._asked(prompt))

    def answer(self, prompt: Prompt, text: str) -> Answer:
        """A given answer's tokens behind the prompt's. BadInput where the text has an end token before its end: no sampler
        could write what comes behind it."""
        bare, asked = self.without_ends(text), self._asked(prompt)
        behind = Behind(bare) if self.chat is None else self.chat.answer(prompt, bare, asked)
        before, whole = prompt.token_ids or self._prompt_ids(asked), self._prompt_ids(asked + behind.text)
        ids = whole[len(before) :] if whole[: len(before)] == before else encode_behind(self.tokenizer, behind.text)
        if inside := [i for i in ids if i in self.ends]:
            problem = f"a response has {self.spelled(inside[0])!r} before its end, which ends it; take that out, or leave the row "
            raise Unusable(prompt.place, f"{problem}out", "with an end token inside a response")
        return Answer((*ids, self.end), behind.opened)

    def decode(self, ids: Sequence[int]) -> str:
        """A response's text without the tokens that end it, and padding. Special tokens elsewhere stay, so that the judge sees
        them."""
        return decode_response(self.tokenizer, ids, self.end_ids)

    def whole(self, prompt: Prompt, response: str) -> str:
        """The answer that is judged: a response's text behind the prompt's prefill, which it continues."""
        return response if self.chat is None else self.chat.prefill(prompt) + response

    def without_ends(self, text: str) -> str:
        """Without end tokens that the text spells out at its end."""
        spelled = tuple(self.spelled(i) for i in self.ends)
        while (cut := text.rstrip()).endswith(spelled):
            text = cut[: -len(next(s for s in spelled if cut.endswith(s)))]
        return text

    def save(self, folder: Path) -> None:
        """Put the tokenizer into a model's folder, and all end tokens into its generation_config.json: by that transformers and
        vLLM know where to stop."""
        self.tokenizer.save_pretrained(folder)
        path = folder / GENERATION
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        text = json.dumps(known | {"eos_token_id": list(self.ends)}, indent=2, sort_keys=True)
        path.write_text(f"{text}\n", encoding="utf-8")

    def spelled(self, token: int) -> str:
        return self.tokenizer.backend_tokenizer.id_to_token(token) or f"token {token}"

    def pieces(self, ids: Sequence[int]) -> Iterator[str]:
        """What each token adds to the text; a part of a character is shown as the vocabulary has it."""
        shown = ""
        for at, token in enumerate(ids):
            text = self.tokenizer.backend_tokenizer.decode(list(ids[: at + 1]), skip_special_tokens=False)
            whole = text.startswith(shown) and len(text) > len(shown) and not text.endswith("\ufffd")
            yield text[len(shown) :] if whole else self.spelled(token)
            shown = text

    def warnings(self) -> Iterator[str]:
        """Where training and sampling would end differently, here or in other programs."""
        for token in self.ordinary:
            yield (
                f"the model's files list {token} as eos_token_id, which is {self.spelled(token)!r}, an ordinary token of the "
                "tokenizer: this run does not stop at it, and other programs do; correct generation_config.json"
            )
        if self.chat is None:
            return
        eos = self.tokenizer.eos_token_id
        if self.chat.end is None:
            yield (
                f"the chat template writes no token behind an answer: given answers end with the tokenizer's EOS "
                f"{self.spelled(eos)}, which a model that was trained with this template need not write"
            )
        elif self.end not in (self.listed or (eos,)):
            lists = "the model's list of end tokens" if self.listed else "the tokenizer's EOS"
            others = ", ".join(self.spelled(i) for i in self.listed or (eos,))
            yield (
                f"the chat template ends a turn with {self.spelled(self.end)}, and {lists} is {others}: this run stops at "
                f"either, and other programs sample past the answer; add {self.end} to eos_token_id in generation_config.json"
            )

    def _asked(self, prompt: Prompt) -> str:
        return prompt.text if self.chat is None else self.chat.prompt(prompt)

    def _prompt_ids(self, text: str) -> tuple[int, ...]:
        if self.chat is None:
            return encode_prompt(self.tokenizer, text)
        ids, bos = _ids(self.tokenizer, text), self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == (bos, bos):  # the template's, and one that the first message brings
            ids = ids[1:]
        return ids


def build_codec(tokenizer: Any, model: str | None, chat: bool, day: date) -> Codec:
    """For a model at a folder or Hugging Face id, or None for a new one. `day`: the date for templates that write one."""
    found = () if model is None else listed_ends(model, len(tokenizer))
    ends = {tokenizer.eos_token_id, *tokenizer.backend_tokenizer.get_added_tokens_decoder()}
    listed, ordinary = tuple(i for i in found if i in ends), tuple(i for i in found if i not in ends)
    template = ChatTemplate(tokenizer, day, (tokenizer.eos_token_id, *listed)) if chat else None
    return Codec(tokenizer, template, listed, ordinary)


def listed_ends(model: str, vocabulary: int) -> tuple[int, ...]:
    """The end tokens that generation_config.json lists, or config.json where there is none; empty where neither does."""
    from transformers.utils import cached_file

    for name in (GENERATION, "config.json"):
        try:
            path = cached_file(folder_of(model, weights=False), name, _raise_exceptions_for_missing_entries=False)
            found = None if path is None else json.loads(Path(path).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise BadInput(
                f"model.name_or_path: {name} of {model} cannot be read ({first_line(error)}); copy or download it again"
            ) from None
        if found is None:
            continue
        listed = found if isinstance(found, list) else [found]
        if wrong := [i for i in listed if type(i) is not int or not 0 <= i < vocabulary]:
            raise BadInput(
                f"model.name_or_path: {name} of {model} lists {wrong[0]!r} as eos_token_id, which is no token of the "
                f"tokenizer's {vocabulary}; give the tokenizer that belongs to the model, or correct the list"
            )
        return tuple(listed)
    return ()


def encode_behind(tokenizer: TextTokenizer, text: str) -> tuple[int, ...]:
    """The tokens of a text that stands behind another one: without the space that some tokenizers (sentencepiece's) put
    before the first word of a text, and which would stand twice."""
    alone = _ids(tokenizer, text)
    if tokenizer.backend_tokenizer.encode("0", add_special_tokens=False).tokens[:1] not in (
        ["▁0"],
        ["▁"],
        ["Ġ0"],
        ["Ġ"],
    ):
        return alone
    for anchor in _ANCHORS:
        start, both = _ids(tokenizer, anchor), _ids(tokenizer, anchor + text)
        if both[: len(start)] == start:
            return both[len(start) :]
    return alone


def _ids(tokenizer: TextTokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
