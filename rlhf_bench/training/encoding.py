"""Text to token ids, and whether everything fits into context and micro-batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Demonstration, Pair, Prompt, Row, TextPair
from rlhf_bench.methods.base import uses_reward_model
from rlhf_bench.models.tokenizer import encode_chat, encode_prompt, encode_response
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.pairs import start_prompts


class Encoder:
    """Text to token ids, refused where it exceeds the context or the micro-batch. An encoded prompt has no `where`: paths of
    this machine are for errors, and encoded prompts go into files and to other processes."""

    def __init__(self, recipe: Recipe, tokenizer: Any):
        self.tokenizer, self.max_length, self.room = tokenizer, recipe.model.max_length, recipe.data.max_response_tokens
        self.max_row_tokens = recipe.compute.tokens_per_micro_batch
        self.chat = recipe.model.tokenizer.chat_template is not None
        self.places: dict[str, str] = {}  # where each encoded prompt stands, by its id

    def _prompt(self, prompt: Prompt) -> Prompt:
        if prompt.turns and not self.chat:
            raise BadInput(
                f"{prompt.place}: the prompt is a conversation, and model.tokenizer.chat_template is null; set it to own"
            )
        ids = encode_chat(self.tokenizer, prompt) if self.chat else encode_prompt(self.tokenizer, prompt.text)
        if not set(ids) - {self.tokenizer.bos_token_id}:  # a normalizer may drop all there is
            raise BadInput(
                f"{prompt.place}: the tokenizer makes no tokens of the prompt; change it, or leave the row out"
            )
        self.places.setdefault(prompt.id, prompt.place)
        return replace(prompt, token_ids=ids, where="")

    def prompt(self, prompt: Prompt) -> Prompt:
        encoded = self._prompt(prompt)
        self._check_room(encoded)
        return encoded

    def _check_room(self, prompt: Prompt, who: str = "") -> None:
        if len(prompt.token_ids) + self.room > self.max_length:
            drawn = f", which {who} draws," if who else ""
            raise BadInput(
                f"{self.places[prompt.id]}: the prompt's {len(prompt.token_ids)} tokens leave no room for "
                f"data.max_response_tokens {self.room}{drawn} within model.max_length {self.max_length}; "
                "raise model.max_length, or leave the row out"
            )

    def _row(self, prompt: Prompt, **responses: str) -> tuple[Prompt, Row]:
        """The prompt and the row. `responses`: by the name that errors give them."""
        encoded, sides = self._prompt(prompt), []
        for side, text in responses.items():
            ids = encode_response(self.tokenizer, text)
            if not set(ids) - {self.tokenizer.eos_token_id}:
                raise BadInput(
                    f"{prompt.place}: the tokenizer makes no tokens of {side}; change it, or leave the row out"
                )
            if (tokens := len(encoded.token_ids) + len(ids)) > self.max_length:
                raise BadInput(
                    f"{prompt.place}: {side} makes {tokens} tokens with its prompt, more than model.max_length "
                    f"{self.max_length}; raise it, or leave the row out"
                )
            sides.append(ids)
        row = Row(prompt.id, encoded.token_ids, tuple(sides))
        *first, last = "prompt", *responses
        self._check_width(f"{prompt.place}: {', '.join(first)} and {last} make", row.tokens, "or leave the row out")
        return encoded, row

    def demonstration(self, demonstration: Demonstration) -> Row:
        return self._row(demonstration.prompt, response=demonstration.response)[1]

    def pair(self, index: int, pair: TextPair) -> Pair:
        prompt = replace(pair.prompt, where=pair.where or pair.prompt.where)
        encoded, row = self._row(prompt, chosen=pair.chosen, rejected=pair.rejected)
        chosen, rejected = row.responses
        if chosen == rejected:  # the texts differ in what a normalizer drops
            raise BadInput(f"{prompt.place}: chosen and rejected are the same tokens; leave the row out")
        return Pair(f"{prompt.id}/pair{index}", encoded, chosen, rejected)

    def check_draws(self, draws: Iterable[Draw]) -> None:
        """Raises BadInput where a prompt leaves no room for a response, or the widest possible row does not fit."""

        def tokens(draw: Draw) -> int:
            return len(draw.prompt.token_ids) + draw.responses * self.room + draw.other_side

        draws = list(draws)
        for draw in draws:  # prompts that only pairs have were not checked so far
            self._check_room(draw.prompt, draw.who)
        if (widest := max(draws, key=tokens, default=None)) is None:
            return
        what = f"with {widest.responses} response{'s' * (widest.responses > 1)} of data.max_response_tokens {self.room}"
        other = " and the pair's other side" if widest.other_side else ""
        where, remedy = self.places[widest.prompt.id], "draw fewer or shorter ones, or leave the row out"
        self._check_width(
            f"{where}: the prompt {what}, as {widest.who} draws them,{other} makes", tokens(widest), remedy
        )

    def _check_width(self, what: str, tokens: int, remedy: str) -> None:
        """A prompt goes through a model once, with all of its responses: no row is cut."""
        if tokens > self.max_row_tokens:
            raise BadInput(
                f"{what} {tokens} tokens, more than compute.tokens_per_micro_batch {self.max_row_tokens}, and a row is never cut; "
                f"raise it to {tokens} or more, {remedy}"
            )


@dataclass(frozen=True)
class Draw:
    """How many responses to a prompt go through a model at once, who draws them, and the tokens of a given response beside."""

    who: str
    prompt: Prompt
    responses: int
    other_side: int = 0


def draws_of(
    recipe: Recipe, train: Sequence[Prompt], held_out: Mapping[str, Sequence[Prompt]], pairs: Sequence[Pair] | None
) -> Iterator[Draw]:
    """The longest prompts of everything that a run draws. `pairs` is None where a weaker policy makes them."""
    candidates = recipe.data.candidates_per_prompt
    if pairs is None:
        for prompts in (train, *held_out.values()):
            yield Draw("the weaker policy", longest_prompt(prompts), 2)
    for name, arm in recipe.arms.items():
        if arm.data == "offline":
            continue
        given = None if arm.data == "online" else pairs  # the weaker policy's pairs have prompts of `train`
        prompts = train if given is None else start_prompts(recipe.data, arm.data, given, train)
        of_pair = candidates if uses_reward_model(arm) else 2
        yield Draw(f"arm {name}", longest_prompt(prompts), getattr(arm, "samples_per_prompt", of_pair))
        if given is not None and arm.data != "on_policy":  # one side is drawn, the other is the given pair's
            chosen = arm.data == "chosen_on_policy"
            others = {p.prompt.id: len(p.rejected_ids if chosen else p.chosen_ids) for p in given}
            yield from (Draw(f"arm {name}", p, 1, others[p.id]) for p in prompts)
    if any(uses_reward_model(arm) for arm in recipe.arms.values()):
        yield Draw(
            "the reward model's stage", longest_prompt(train[-recipe.reward_model.start_policy_prompts :]), candidates
        )


def longest_prompt(prompts: Sequence[Prompt]) -> Prompt:
    return max(prompts, key=lambda p: len(p.token_ids))
