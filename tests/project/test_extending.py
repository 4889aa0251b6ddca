"""The code of docs/extending.md works: its blocks are put into a copy of the project, and its tests and commands pass there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^rlhf-bench (check .+)$", re.MULTILINE)


def changed(text, diff):
    """`text` with the changes: a line with + replaces the line with - before it, or is added below a line without a sign."""
    anchor, replaces = "", False
    for line in diff.splitlines():
        sign, rest = line[0], line[1:].removesuffix(" …")
        if sign == "+":
            new = rest if replaces else f"{anchor}\n{rest}"
            text, anchor, replaces = text.replace(anchor, new), rest, False
        else:
            assert text.count(rest) == 1, f"the page names {line!r}, which the file has {text.count(rest)} times"
            anchor, replaces = rest, sign == "-"
    return text


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of rlhf_bench and the recipes, with the page's blocks in it."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("rlhf_bench", "recipes"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for room in ("methods", "tasks"):
        (copy / "tests" / "unit" / room).mkdir(parents=True)
    for language, name, text in BLOCK.findall(PAGE):
        path = copy / name
        if language == "diff":
            text = changed(path.read_text("utf-8"), text)
        else:
            assert not path.exists(), f"{name}: the page's example has become part of the project"
        path.write_text(text, "utf-8")
    return copy


def python(project, *arguments):
    environment = os.environ | {"PYTHONPATH": str(project), "RLHF_BENCH_CACHE": str(project / "cache")}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_pages_tests_pass(project):
    names = [name for _, name, _ in BLOCK.findall(PAGE) if name.startswith("tests/")]
    assert len(names) == 2
    done = python(project, "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0 and "8 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("command", COMMAND.findall(PAGE))
def test_the_pages_recipes_are_accepted(project, command):
    done = python(project, "rlhf_bench", *command.split(), "--quiet")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_pages_code_is_in_the_projects_style(project):
    files = [str(project / name) for language, name, _ in BLOCK.findall(PAGE) if language == "python"]
    for arguments in (("check",), ("format", "--check")):
        done = python(project, "ruff", *arguments, "--config", str(ROOT / "pyproject.toml"), *files)
        assert done.returncode == 0, done.stdout
