"""What a recipe names that others have made, and what tells it from another one of that name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

MODEL, TOKENIZER = "model.name_or_path", "model.tokenizer.name_or_path"
REWARD_MODEL, GOLD_REWARD_MODEL = "reward_model.name_or_path", "gold_reward_model.name_or_path"
"""Keys of the recipe."""
REWARD_MODELS = (REWARD_MODEL, GOLD_REWARD_MODEL)

Content = Mapping[str, str]
"""The SHA-256 of every file that is read, by its name in the folder; or the commit of a repository, under `COMMIT`."""
COMMIT = "commit"


@dataclass(frozen=True)
class Given:
    """What a key of the recipe named when a run began. DIR records it."""

    name: str
    content: Content

    @property
    def identity(self) -> str:
        """A text that no other content has."""
        if len(self.content) == 1:
            ((kind, value),) = self.content.items()
            return f"commit {value}" if kind == COMMIT else f"sha256 {value}"
        return f"sha256 {hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()}"
