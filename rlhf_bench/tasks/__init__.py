"""The tasks: prompts, demonstrations, judge and data. To add one, write its file and its line in `TASKS`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlhf_bench.tasks import arithmetic, files, gsm8k, verse
from rlhf_bench.tasks._base import Task, TaskKind

TASKS: dict[str, TaskKind] = {
    "arithmetic": TaskKind(arithmetic.ArithmeticSettings, arithmetic.build),
    "verse": TaskKind(verse.VerseSettings, verse.build),
    "files": TaskKind(files.FilesSettings, files.build),
    "gsm8k": TaskKind(gsm8k.Gsm8kSettings, gsm8k.build),
}

AnyTaskSettings = arithmetic.ArithmeticSettings | verse.VerseSettings | files.FilesSettings | gsm8k.Gsm8kSettings
TaskSettings = Annotated[AnyTaskSettings, Field(discriminator="kind")]
"""The recipe's `task:`; `kind` says which settings apply."""


def build_task(settings: AnyTaskSettings) -> Task:
    """The task for its settings. Tasks that read files raise BadInput here, before anything is started."""
    return TASKS[settings.kind].build(settings)


__all__ = ["TASKS", "AnyTaskSettings", "Task", "TaskKind", "TaskSettings", "build_task"]
