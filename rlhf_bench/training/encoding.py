"""Text to token ids, and whether everything fits into context and micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.types import Demonstration, LabelledResponse, LabelledText, Pair, Prompt, Row, TextPair
from rlhf_bench.core.unusable import LeftOut, Unusable
from rlhf_bench.methods.base import uses_reward_model
from rlhf_bench.models.codec import Codec
from rlhf_bench.recipe import Recipe
from rlhf_bench.training.pairs import own_prompts, start_prompts

Item = TypeVar("Item")
Encoded = TypeVar("Encoded")


class Encoder:
    """Text to token ids, refused where it exceeds the context or the micro-batch. An encoded prompt has no `where`: paths of
    this machine are for errors, and encoded prompts go into files and to other processes."""

    def __init__(self, recipe: Recipe, codec: Codec):
        self.codec, self.max_length, self.room = codec, recipe.model.max_length, recipe.data.max_response_tokens
        self.max_row_tokens = recipe.compute.tokens_per_micro_batch
        self.places: dict[str, str] = {}  # where each encoded prompt stands, by its id
        self.unopened: list[str] = []  # where answers lack what the chat template opens every answer with
        self.opened = ""
        self.faults = LeftOut()  # rows that could not be encoded

    def _prompt(self, prompt: Prompt) -> Prompt:
        if prompt.turns and self.codec.chat is None:
            problem = "the prompt is a conversation, and model.tokenizer.chat_template is null; set it to own"
            raise Unusable(prompt.place, problem, "that are conversations, which need model.tokenizer.chat_template")
        ids = self.codec.prompt(prompt)
        if not set(ids) - {self.codec.tokenizer.bos_token_id}:  # a normalizer may drop all there is
            raise _without_tokens(prompt, "the prompt")
        self.places.setdefault(prompt.id, prompt.place)
        answer = self.codec.without_ends(prompt.answer)  # as a response's text, which is compared with it, has none
        return replace(prompt, token_ids=ids, answer=answer, where="")

    def prompt(self, prompt: Prompt, draws: Sequence[Drawn] = ()) -> Prompt:
        """`draws`: those that it must fit into."""
        encoded = self._prompt(prompt)
        self._check_room(encoded)
        for draw in draws:
            self._check_draw(draw.of(encoded))
        return encoded

    def _check_room(self, prompt: Prompt, who: str = "", where: str | None = None) -> None:
        if len(prompt.token_ids) + self.room > self.max_length:
            drawn = f", which {who} draws," if who else ""
            raise Unusable(
                where or self.places[prompt.id],
                f"the prompt's {len(prompt.token_ids)} tokens leave no room for data.max_response_tokens {self.room}{drawn} "
                f"within model.max_length {self.max_length}; raise model.max_length, or leave the row out",
                "with a prompt that leaves no room for a response within model.max_length",
            )

    def _row(self, prompt: Prompt, **responses: str) -> tuple[Prompt, Row]:
        """The prompt and the row. `responses`: by the name that errors give them."""
        encoded, sides = self._prompt(prompt), []
        prompt = replace(prompt, token_ids=encoded.token_ids)  # and with its place, for errors
        for side, text in responses.items():
            answer = self.codec.answer(prompt, text)
            ids = answer.ids
            if answer.opened:
                self.opened = answer.opened
                self.unopened.append(f"{prompt.place}, {side}")
            if not ids[:-1]:
                raise _without_tokens(prompt, side)
            if (tokens := len(encoded.token_ids) + len(ids)) > self.max_length:
                raise Unusable(
                    prompt.place,
                    f"{side} makes {tokens} tokens with its prompt, more than model.max_length {self.max_length}; raise it, or "
                    "leave the row out",
                    "with more tokens than model.max_length",
                )
            sides.append(ids)
        row = Row(prompt.id, encoded.token_ids, tuple(sides))
        *first, last = "prompt", *responses
        self._check_width(prompt.place, f"{', '.join(first)} and {last} make", row.tokens, "or leave the row out")
        return encoded, row

    def notes(self) -> Iterator[str]:
        """What a reader of the results must know of the chat template."""
        if self.codec.day is not None:
            yield f"the chat template writes the date, in this run {self.codec.day}; a resumed run keeps it"
        if self.unopened:
            yield (
                f"{len(self.unopened)} given answers (first {self.unopened[0].rpartition('/')[2]}) do not begin with {self.opened!r}, which the "
                "chat template opens every answer with: they stand right behind it, and samples do not look like that"
            )

    def demonstration(self, demonstration: Demonstration) -> Row:
        return self._row(demonstration.prompt, response=demonstration.response)[1]

    def pair(self, index: int, pair: TextPair, draws: Sequence[Drawn] = ()) -> Pair:
        """`draws`: those that its prompt must fit into."""
        prompt = replace(pair.prompt, where=pair.where or pair.prompt.where)
        encoded, row = self._row(prompt, chosen=pair.chosen, rejected=pair.rejected)
        chosen, rejected = row.responses
        for draw in draws:
            if draw.optional and len(encoded.token_ids) + self.room > self.max_length:
                continue
            self._check_room(encoded, where=prompt.place)
            self._check_draw(draw.of(encoded, chosen, rejected), prompt.place)
        if chosen == rejected:  # the texts differ in what a normalizer drops
            problem = "chosen and rejected are the same tokens; leave the row out"
            raise Unusable(prompt.place, problem, "with equal sides in tokens")
        return Pair(f"{prompt.id}/pair{index}", encoded, chosen, rejected)

    def labelled(self, index: int, text: LabelledText) -> LabelledResponse:
        prompt = replace(text.prompt, where=text.where or text.prompt.where)
        encoded, row = self._row(prompt, completion=text.response)
        return LabelledResponse(f"{prompt.id}/label{index}", encoded, row.responses[0], text.desirable)

    def usable(
        self, draw: Callable[[int], Sequence[Item]], count: int, encode: Callable[[Item], Encoded], leave_out: bool
    ) -> list[Encoded]:
        """`count` items, encoded. `draw(n)` gives n, and fewer are a prefix of more. Those that cannot be encoded are counted in
        `faults`, for the caller to refuse; with `leave_out`, others take their places."""
        encoded, seen = list[Encoded](), 0
        while len(encoded) < count:
            try:
                items = draw(seen + count - len(encoded))
            except BadInput as error:
                if not seen:
                    raise
                what = str(error).partition(":")[0]
                problem = f"{count} are asked for, and fewer can be used; left out are {self.faults}"
                raise BadInput(f"{what}: {problem}; ask for fewer, or mend the rows") from None
            for item in items[seen:]:
                try:
                    encoded.append(encode(item))
                except Unusable as fault:
                    self.faults.add(fault)
            seen = len(items)
            if not leave_out:  # `faults` are refused, all kinds and all of the data together
                break
        return encoded

    def check_draws(self, draws: Iterable[Draw]) -> None:
        """Raises BadInput where a prompt leaves no room for a response, or the widest possible row does not fit."""
        draws = list(draws)
        for draw in draws:  # prompts that only pairs have were not checked so far
            self._check_room(draw.prompt, draw.who)
        if draws:
            self._check_draw(max(draws, key=self._tokens))

    def _tokens(self, draw: Draw) -> int:
        return len(draw.prompt.token_ids) + draw.responses * self.room + draw.other_side

    def _check_draw(self, draw: Draw, where: str | None = None) -> None:
        what = f"with {draw.responses} response{'s' * (draw.responses > 1)} of data.max_response_tokens {self.room}"
        other = " and the pair's other side" if draw.other_side else ""
        said, remedy = (
            f"the prompt {what}, as {draw.who} draws them,{other} makes",
            "draw fewer or shorter ones, or leave the row out",
        )
        self._check_width(where or self.places[draw.prompt.id], said, self._tokens(draw), remedy)

    def _check_width(self, where: str, what: str, tokens: int, remedy: str) -> None:
        """A prompt goes through a model once, with all of its responses: no row is cut."""
        if tokens > self.max_row_tokens:
            raise Unusable(
                where,
                f"{what} {tokens} tokens, more than compute.tokens_per_micro_batch {self.max_row_tokens}, and a row is never cut; "
                f"raise it to {tokens} or more, {remedy}",
                "with more tokens than compute.tokens_per_micro_batch",
            )


def _without_tokens(prompt: Prompt, side: str) -> Unusable:
    problem = f"the tokenizer makes no tokens of {side}; change it, or leave the row out"
    return Unusable(prompt.place, problem, "of which the tokenizer makes no tokens")


@dataclass(frozen=True)
class Draw:
    """How many responses to a prompt go through a model at once, who draws them, and the tokens of a given response beside."""

    who: str
    prompt: Prompt
    responses: int
    other_side: int = 0


@dataclass(frozen=True)
class Drawn:
    """The same for any prompt of a set. `beside`: which side of the pair's goes through with it. `optional`: prompts without room
    for a response are passed over."""

    who: str
    responses: int
    beside: Literal["chosen", "rejected"] | None = None
    optional: bool = False

    def of(self, prompt: Prompt, chosen: Sequence[int] = (), rejected: Sequence[int] = ()) -> Draw:
        other = {None: (), "chosen": chosen, "rejected": rejected}[self.beside]
        return Draw(self.who, prompt, self.responses, len(other))


@dataclass(frozen=True)
class DrawnFrom:
    """What a run may draw on any prompt of a set. Which of them it will draw on is known when all of them are, so where rows are
    left out, one goes that any of these draws would be too wide for."""

    train: Sequence[Drawn] = ()
    held_out: Sequence[Drawn] = ()
    pairs: Sequence[Drawn] = ()  # on their prompts


def drawn_from(recipe: Recipe, pairs_come: bool) -> DrawnFrom:
    """`pairs_come`: with the data. Where they do not, and there is sft, a weaker policy makes them."""
    weaker = [] if pairs_come or recipe.sft is None else [Drawn("the weaker policy", 2)]
    train, held_out, pairs = list(weaker), list(weaker), list[Drawn]()
    for name, arm in recipe.arms.items():
        if arm.data == "offline":
            continue
        of_pair = recipe.data.candidates_per_prompt if uses_reward_model(arm) else 2
        by_arm = Drawn(f"arm {name}", getattr(arm, "samples_per_prompt", of_pair))
        train.append(by_arm)
        if arm.data != "online":
            pairs.append(by_arm)
        if arm.data in ("chosen_on_policy", "rejected_on_policy"):
            pairs.append(Drawn(f"arm {name}", 1, "rejected" if arm.data == "chosen_on_policy" else "chosen"))
        evaluated = Drawn(f"the evaluation of arm {name}", of_pair, optional=True)
        held_out.append(evaluated)
        pairs.append(evaluated)
    if recipe.reward_models:
        train.append(Drawn("the reward model's stage", recipe.data.candidates_per_prompt))
    return DrawnFrom(train, held_out, pairs)


def draws_of(
    recipe: Recipe,
    train: Sequence[Prompt],
    held_out: Mapping[str, Sequence[Prompt]],
    pairs: Sequence[Pair] | None,
    held_out_pairs: Sequence[Pair] = (),
) -> Iterator[Draw]:
    """The longest prompts of everything that a run draws, where there are any. `pairs` is None where a weaker policy makes
    them."""

    def longest(who: str, prompts: Sequence[Prompt], responses: int) -> Iterator[Draw]:
        if prompts:
            yield Draw(who, max(prompts, key=lambda p: len(p.token_ids)), responses)

    candidates = recipe.data.candidates_per_prompt
    own = own_prompts(recipe, train, pairs or [], held_out[recipe.evaluation.splits[0]], held_out_pairs)
    if pairs is None:
        for prompts in (train, *held_out.values()):
            yield from longest("the weaker policy", prompts, 2)
    for name, arm in recipe.arms.items():
        if arm.data == "offline":
            continue
        given = None if arm.data == "online" else pairs  # the weaker policy's pairs have prompts of `train`
        prompts = train if given is None else [p for some in start_prompts(arm.data, given, train) for p in some]
        of_pair = candidates if uses_reward_model(arm) else 2
        yield from longest(f"arm {name}", prompts, getattr(arm, "samples_per_prompt", of_pair))
        if given is not None and arm.data != "on_policy":  # one side is drawn, the other is the given pair's
            chosen = arm.data == "chosen_on_policy"
            others = {p.prompt.id: len(p.rejected_ids if chosen else p.chosen_ids) for p in (*given, *held_out_pairs)}
            yield from (Draw(f"arm {name}", p, 1, others[p.id]) for p in prompts)
            yield from (Draw(f"the evaluation of arm {name}", p, 1, others.get(p.id, 0)) for p in own)
    for settings in recipe.reward_models.values():
        asked = train[-settings.start_policy_prompts :]
        yield from longest("the reward model's stage", asked, candidates)
    for name, arm in recipe.arms.items():
        if arm.data != "offline":  # its kind of pairs
            yield from longest(f"the evaluation of arm {name}", own, candidates if uses_reward_model(arm) else 2)
