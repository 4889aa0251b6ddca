"""The settings of a task of one's own files: where rows are, which columns are read, and how answers are judged."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rlhf_bench.core.settings import Section
from rlhf_bench.tasks.loading.data_source import PlaceSetting
from rlhf_bench.tasks.loading.trl import Columns
from rlhf_bench.tasks.loading.verdicts import JOINED, said

Value = Annotated[str, BeforeValidator(said)]


class Verdicts(Section):
    """Two answers and who says which is better, in place of the columns chosen and rejected."""

    answers: tuple[str, str] = Field(description="Columns with the two answers.")
    columns: tuple[str, ...] = Field(
        min_length=1,
        description="Columns with a verdict each. An answer is preferred that more than half of them name.",
    )
    values: tuple[Value, Value] = Field(
        description="What a verdict is where the first answer is better, and where the second is. Rows without a preferred answer are left out and counted."
    )

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.values[0] == self.values[1] or self.answers[0] == self.answers[1]:
            raise ValueError("answers and values each name two different ones")
        return self


class FilesSettings(Section):
    """Where rows are, which columns of them to read, and how answers are judged. docs/data.md has examples."""

    kind: Literal["files"] = Field("files", description="Prompts and pairs of your own: files, folders or the Hub.")
    prompts: PlaceSetting = Field(description="Training prompts, one a row.")
    held_out: PlaceSetting | None = Field(
        None, description="Held-out prompts like the training ones (in_distribution); or give held_out_share."
    )
    held_out_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="In place of held_out: this share of the prompts is held out, with all pairs on them, by a hash of the prompt's text.",
    )
    out_of_distribution: PlaceSetting | None = Field(
        None, description="Held-out prompts longer or harder than in training."
    )
    unseen: PlaceSetting | None = Field(None, description="Held-out prompts about things that training never shows.")
    pairs: PlaceSetting | None = Field(None, description="Preference pairs for the offline methods; none if left out.")
    id_column: str | None = Field(
        None, description="Column of prompts with a name of its own for each row; null numbers the rows."
    )
    prompt_column: str | tuple[str, ...] = Field(
        "prompt",
        min_length=1,
        description="Column with the prompt: a text or messages. Where it is missing, the prompt is what chosen and rejected share. A list joins the texts of several columns, [instruction, input], a blank line between two.",
    )
    reference_column: str = Field(
        "reference", description="Column with the right answer: needed beside prompts, optional beside pairs."
    )
    response_column: str | None = Field(
        "response",
        description="Column of the training prompts with the response to imitate; null if there are no demonstrations.",
    )
    chosen_column: str = Field("chosen", description="Column with the preferred response: a text or messages.")
    rejected_column: str = Field("rejected", description="Column with the other response: a text or messages.")
    verdicts: Verdicts | None = Field(
        None,
        description="Where rows have two answers and verdicts: chosen_column and rejected_column are made of them.",
    )
    max_prompt_characters: int | None = Field(None, ge=1, description="Leave out rows with a longer prompt.")
    max_response_characters: int | None = Field(None, ge=1, description="Leave out rows with a longer response.")
    unusable: Literal["refuse", "leave_out"] = Field(
        "refuse",
        description="Rows with a fault, such as an empty text, a repeated prompt, equal sides, a training prompt that is held out, or more tokens than there is room for: refuse them with their places, or leave_out and count them.",
    )
    judge: Literal["exact", "number", "boxed", "overlap", "ifeval"] = Field(
        "exact",
        description="exact: the response is the reference; number: the number after the marker equals the reference's; "
        "boxed: the last \\boxed{} equals the reference's, by math-verify; overlap: the words shared with the reference; ifeval: the instructions in the columns "
        "instruction_id_list and kwargs, which stand in place of a reference (docs/tasks.md#instructions).",
    )
    marker: str = Field("####", min_length=1, description="What stands before the answer, for judge: number.")

    @model_validator(mode="after")
    def _held_out_once(self) -> Self:
        if (self.held_out is None) == (self.held_out_share is None):
            raise ValueError("held_out or held_out_share says which prompts are held out; give one of the two")
        return self

    @property
    def prompt(self) -> str:
        """The prompt's column; of several, the name of the one that joins them."""
        return self.prompt_column if isinstance(self.prompt_column, str) else JOINED.join(self.prompt_column)

    @property
    def columns(self) -> Columns:
        whole = self.prompt in (self.response_column, self.reference_column)
        return Columns(self.prompt, self.chosen_column, self.rejected_column, whole)
