"""A tokenizer's chat template: what it writes for a prompt, what it writes for an answer behind that, and how it ends a turn."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from functools import cached_property
from os.path import commonprefix
from typing import Any

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Prompt, Turn
from rlhf_bench.core.unusable import Unusable
from rlhf_bench.models.tokenizer import first_line

ASSISTANT = "assistant"
_MARK = "Answer0Mark"
"""Stands for an answer where only what is written around it matters."""
_LABELS = {"name", "tool_call_id", "id"}
"""Keys of a message that may go unused: they say nothing that the message does not."""


@dataclass(frozen=True)
class Behind:
    """What stands behind a prompt: an answer, up to where its turn ends. `opened`: what the template begins every answer with,
    and this answer does not; it then stands right behind it."""

    text: str
    opened: str = ""


@dataclass(frozen=True)
class ChatTemplate:
    """The tokenizer's own template, rendered in transformers' sandbox. `day` is the date that it writes, if it writes one: the
    same all through a run. `ends`: tokens that end a response whatever the template says (EOS and the model's list)."""

    tokenizer: Any = field(repr=False)
    day: date
    ends: Collection[int] = ()

    @property
    def writes_date(self) -> bool:
        return "strftime_now" in self._source()

    def prompt(self, prompt: Prompt) -> str:
        """Up to where the answer begins: the generation prompt, or the end of a message of the assistant's that the answer
        continues. BadInput where the template refuses or would leave out something of it."""
        if prompt.turns and prompt.turns[-1].role == ASSISTANT:
            text = self._render(prompt, prompt.turns, continue_final_message=True)
        else:
            text = self._render(prompt, _turns(prompt), add_generation_prompt=True)
        self._check_whole(prompt, text)
        return text

    def prefill(self, prompt: Prompt) -> str:
        """The message of the assistant's that an answer continues, without white space at its end that the template drops; ""
        where there is none."""
        if not prompt.turns or prompt.turns[-1].role != ASSISTANT:
            return ""
        content = prompt.turns[-1].content
        return content if self.prompt(prompt).endswith(content.lstrip()) else content.rstrip()

    def answer(self, prompt: Prompt, answer: str, asked: str) -> Behind:
        """What the template writes for the answer behind `asked`, the rendered prompt, before the token that ends the turn.

        Templates need not write an answer behind their own generation prompt. Some open one ("<think>") that they drop from
        finished answers: then the answer's own text goes on from there. Others render a prompt in another way once it is
        answered: then the answer is what they write behind its header."""
        whole = self._answered(prompt, answer)
        if whole.startswith(asked):
            return Behind(self._without_end(whole[len(asked) :]))
        before = self._answered(prompt, _MARK)
        header = before[: before.rindex(_MARK)] if _MARK in before else asked
        if asked.startswith(header) and header != asked:
            return _behind_opened(answer, asked[len(header) :])
        if not whole.startswith(header):
            problem = "the tokenizer's chat template does not write the answer behind its prompt; leave the row out, or correct "
            raise Unusable(prompt.place, f"{problem}the template", "that the chat template does not take")
        return Behind(self._without_end(whole[len(header) :]))

    @cached_property
    def end(self) -> int | None:
        """The token by which the template ends an answer's turn; None where it writes none.

        The first special token that it writes behind an answer both at the end and before a further question; or else, at
        the end alone, the first that is known to end a response: EOS, or one of the model's list."""
        last = self._tail
        try:
            further = self._tail_before((Turn("user", "?"),))
        except BadInput:
            further = last
        special = self._special()
        for text, known in ((commonprefix([last, further]), special | set(self.ends)), (last, set(self.ends))):
            if found := [i for i in self._ids(text) if i in known]:
                return found[0]
        return None

    @cached_property
    def _tail(self) -> str:
        return self._tail_before(())

    def _tail_before(self, further: tuple[Turn, ...]) -> str:
        """What the template writes behind an answer."""
        turns = (Turn("user", "?"), Turn(ASSISTANT, _MARK), *further)
        try:
            text = self.tokenizer.apply_chat_template(
                [turn.message for turn in turns], tokenize=False, strftime_now=self._today
            )
        except Exception as error:  # of any kind, as below
            raise BadInput(
                f"model.tokenizer.chat_template: the tokenizer's own takes no question and answer ({first_line(error)}); correct "
                "it, or set this key to null"
            ) from None
        return str(text).rpartition(_MARK)[2]

    def _without_end(self, text: str) -> str:
        if self.end is None:
            return text.removesuffix(self._tail)
        token = self.tokenizer.backend_tokenizer.id_to_token(self.end)
        before, found, _ = text.rpartition(token)
        return before if found else text

    def _answered(self, prompt: Prompt, answer: str) -> str:
        *before, last = _turns(prompt)
        if last.role == ASSISTANT:
            return self._render(prompt, (*before, last._replace(content=last.content + answer)))
        return self._render(prompt, (*before, last, Turn(ASSISTANT, answer)))

    def _render(self, prompt: Prompt, turns: Sequence[Turn], **how: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                [turn.message for turn in turns], tools=json.loads(prompt.tools) if prompt.tools else None,
                tokenize=False, strftime_now=self._today, **how,
            )  # fmt: skip
        except Exception as error:  # templates raise errors of any kind, for example for roles that do not alternate or for a system message
            raise Unusable(
                prompt.place,
                f"the tokenizer's chat template does not take the prompt ({first_line(error)}); leave the row out, or set "
                "model.tokenizer.chat_template: null",
                "that the chat template does not take",
            ) from None
        return text

    def _today(self, form: str) -> str:
        return datetime.combine(self.day, time()).strftime(form)

    def _check_whole(self, prompt: Prompt, text: str) -> None:
        """BadInput where a system message, a question, a message's other keys or the tools do not reach the text."""
        source = self._source(bool(prompt.tools))
        keys = {key for turn in prompt.turns if turn.more for key in json.loads(turn.more)} - _LABELS
        lost = [f"of a message's '{key}'" for key in sorted(keys) if key not in source]
        lost += ["of the tools"] if prompt.tools and "tools" not in source else []
        lost += [
            f"of a message of '{t.role}'"
            for t in prompt.turns
            if t.role in ("system", "developer", "user") and t.content.strip() not in text
        ]
        if lost:
            problem = (
                f"the tokenizer's chat template makes nothing {lost[0]}; leave the row out, or choose a model whose "
            )
            raise Unusable(
                prompt.place, f"{problem}template does", f"of which the chat template makes nothing {lost[0]}"
            )

    def _source(self, tools: bool = False) -> str:
        try:
            return str(self.tokenizer.get_chat_template(tools=[{}] if tools else None))
        except ValueError as error:  # of several templates, none is the default
            raise BadInput(
                f"model.tokenizer.chat_template: {first_line(error)}; name one of the tokenizer's templates default"
            ) from None

    def _special(self) -> set[int]:
        added = self.tokenizer.backend_tokenizer.get_added_tokens_decoder()
        return {index for index, token in added.items() if token.special}

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def _turns(prompt: Prompt) -> tuple[Turn, ...]:
    return prompt.turns or (Turn("user", prompt.text),)


def _behind_opened(answer: str, opened: str) -> Behind:
    """The answer behind what the template has opened, which it may begin with itself, or close without."""
    for written in (opened, opened.strip()):
        if written and answer.startswith(written):
            return Behind(answer[len(written) :])
    closing = opened.strip().replace("<", "</", 1)
    return Behind(answer, "" if closing != opened.strip() and closing in answer else opened)
