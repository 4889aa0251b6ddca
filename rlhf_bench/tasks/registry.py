"""The tasks that stand on their own: all kinds but `mixture`, which is made of two of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlhf_bench.tasks import arithmetic, files, gsm8k, slogan, verse
from rlhf_bench.tasks.base import TaskKind

SINGLE_TASKS: dict[str, TaskKind] = {
    "arithmetic": TaskKind(arithmetic.ArithmeticSettings, arithmetic.build),
    "verse": TaskKind(verse.VerseSettings, verse.build),
    "slogan": TaskKind(slogan.SloganSettings, slogan.build),
    "files": TaskKind(files.FilesSettings, files.build),
    "gsm8k": TaskKind(gsm8k.Gsm8kSettings, gsm8k.build),
}

AnySingleSettings = (
    arithmetic.ArithmeticSettings
    | verse.VerseSettings
    | slogan.SloganSettings
    | files.FilesSettings
    | gsm8k.Gsm8kSettings
)
SingleTaskSettings = Annotated[AnySingleSettings, Field(discriminator="kind")]
