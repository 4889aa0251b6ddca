"""The tasks that stand on their own: all kinds but `mixture`, which is made of two of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlhf_bench.tasks import arithmetic, files, gsm8k, instructions, poem, reasoning_gym, slogan, toy_slogan, verse
from rlhf_bench.tasks.base import TaskKind

SINGLE_TASKS: dict[str, TaskKind] = {
    "arithmetic": TaskKind(arithmetic.ArithmeticSettings, arithmetic.build),
    "verse": TaskKind(verse.VerseSettings, verse.build),
    "toy_slogan": TaskKind(toy_slogan.ToySloganSettings, toy_slogan.build),
    "slogan": TaskKind(slogan.SloganSettings, slogan.build),
    "poem": TaskKind(poem.PoemSettings, poem.build),
    "instructions": TaskKind(instructions.InstructionsSettings, instructions.build),
    "reasoning_gym": TaskKind(reasoning_gym.ReasoningGymSettings, reasoning_gym.build),
    "files": TaskKind(files.FilesSettings, files.build),
    "gsm8k": TaskKind(gsm8k.Gsm8kSettings, gsm8k.build),
}

AnySingleSettings = (
    arithmetic.ArithmeticSettings
    | verse.VerseSettings
    | toy_slogan.ToySloganSettings
    | slogan.SloganSettings
    | poem.PoemSettings
    | instructions.InstructionsSettings
    | reasoning_gym.ReasoningGymSettings
    | files.FilesSettings
    | gsm8k.Gsm8kSettings
)
SingleTaskSettings = Annotated[AnySingleSettings, Field(discriminator="kind")]
