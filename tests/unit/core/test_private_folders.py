"""Folders that a command makes are closed to other users of the machine."""

import os
import stat

from rlhf_bench.core.files import make_private
from rlhf_bench.core.lock import held
from rlhf_bench.training.cache import Cache


def mode(folder):
    return stat.S_IMODE(folder.stat().st_mode)


def test_missing_folders_are_made_closed_and_others_keep_their_permissions(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    before = os.umask(0o022)
    try:
        make_private(shared / "outputs" / "run")
        make_private(shared)
    finally:
        os.umask(before)
    assert (mode(shared), mode(shared / "outputs"), mode(shared / "outputs" / "run")) == (0o755, 0o700, 0o700)


def test_output_and_cache_are_made_so(tmp_path):
    with held(tmp_path / "outputs" / "run", lambda line: None):
        pass
    Cache(tmp_path / "cache").get("kind", "key", lambda folder: {})
    assert {mode(tmp_path / name) for name in ("outputs", "outputs/run", "cache")} == {0o700}
