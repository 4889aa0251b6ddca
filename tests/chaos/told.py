"""What came of faults of a whole run: of its directory, its models, its MLflow store, its process group."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.compare import differences


class Told:
    """`survived`: fault -> what the run did, where that is what docs/reliability.md promises. `wrong`: a line for all else."""

    def __init__(self) -> None:
        self.survived: dict[str, str] = {}
        self.wrong: list[str] = []

    def tell(self, fault: str, done: str, fine: bool, otherwise: str = "") -> None:
        """`otherwise`: exit code and words of the run, for a reader who looks for the reason why it was not fine."""
        if fine:
            self.survived[fault] = done
        else:
            self.wrong.append(f"{fault}: not {done}: {otherwise[:20]} … {otherwise[-500:]}")

    def compare(self, after: str, directory: Path, whole: Path) -> None:
        self.wrong += [f"{after}: {line}" for line in differences(directory, whole, ["ppo"])]
