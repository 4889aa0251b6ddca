"""Models as others give them: folders with weights, and repositories in Hugging Face's cache."""

import shutil
import tempfile
from pathlib import Path

import pytest


def write_weights(folder: Path, seed: int = 0, scalar: bool = False) -> Path:
    """Weights at random for the configuration in the folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(seed)
    kind, more = (AutoModelForSequenceClassification, {"num_labels": 1}) if scalar else (AutoModelForCausalLM, {})
    with tempfile.TemporaryDirectory() as aside:  # the folder's other files stay as they are
        kind.from_config(AutoConfig.from_pretrained(folder, **more)).save_pretrained(aside)
        for name in ("model.safetensors", *(["config.json"] if scalar else [])):
            shutil.copyfile(Path(aside) / name, folder / name)
    return folder


class HubCache:
    """Hugging Face's cache of a machine without a network, laid out as huggingface_hub's documentation says
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        from huggingface_hub import constants

        from rlhf_bench.models import hub

        self.folder = folder
        monkeypatch.setattr(
            constants, "HF_HUB_CACHE", str(folder)
        )  # huggingface_hub reads the environment as it is imported
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub.resolved.cache_clear()

    def commit(self, name: str, commit: str) -> Path:
        """The folder of a repository's commit, which its branch `main` is at from now on."""
        from rlhf_bench.models import hub

        hub.resolved.cache_clear()  # as in another process
        repository = self.folder / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        return snapshot
