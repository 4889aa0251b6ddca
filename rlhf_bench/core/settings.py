"""The base of all settings: the recipe's sections, tasks, methods, tokenizer."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Settings that refuse unknown keys and numbers that are not finite, and that nobody changes once they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
