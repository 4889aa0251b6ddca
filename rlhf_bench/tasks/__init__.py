"""The tasks: prompts, demonstrations, judge and data. To add one, write its file and its lines in `registry.py`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlhf_bench.tasks import mixture
from rlhf_bench.tasks.base import Task, TaskKind
from rlhf_bench.tasks.registry import SINGLE_TASKS, AnySingleSettings

TASKS: dict[str, TaskKind] = {**SINGLE_TASKS, "mixture": TaskKind(mixture.MixtureSettings, mixture.build)}

AnyTaskSettings = AnySingleSettings | mixture.MixtureSettings
TaskSettings = Annotated[AnyTaskSettings, Field(discriminator="kind")]
"""The recipe's `task:`; `kind` says which settings apply."""


def build_task(settings: AnyTaskSettings) -> Task:
    """The task for its settings. Tasks that read files raise BadInput here, before anything is started."""
    return TASKS[settings.kind].build(settings)


__all__ = ["TASKS", "AnyTaskSettings", "Task", "TaskKind", "TaskSettings", "build_task"]
