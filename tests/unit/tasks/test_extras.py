"""Packages that one kind of task alone needs may be missing: one line says so, and no other task minds."""

import re
import sys

import pytest

from tests.support.checking import check, refusal, write_files

KINDS = {
    "poem": ("pronouncing", "{kind: poem}", "poem"),
    "reasoning_gym": ("reasoning_gym", "{kind: reasoning_gym, dataset: chain_sum}", "reasoning-gym"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_that_is_not_installed(kind, tmp_path, monkeypatch):
    module, task, extra = KINDS[kind]
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    recipe = write_files(tmp_path)
    line = rf"task\.kind: {kind} needs the package {module.replace('_', '-')}, which is not installed; .*'\.\[{extra}\]', .*"
    assert re.fullmatch(line, refusal(recipe, f"task={task}"))
    assert check(recipe) == (0, "")
