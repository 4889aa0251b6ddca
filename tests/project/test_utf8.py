"""All files are read and written as UTF-8, whatever the user's locale."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder in ("rlhf_bench", "actors", "cluster", "docs", "requirements")
    for path in (ROOT / folder).rglob("*.py")
]


def bare(tree):
    """Lines with a call that would read or write text in the locale's encoding."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        values = [node.value for node in [*call.args, *keywords.values()] if isinstance(node, ast.Constant)]
        binary = any(isinstance(value, str) and "b" in value and set(value) <= set("rwabx+") for value in values)
        opens = name == "open" and isinstance(call.func, ast.Name) and not binary
        texts = isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text") and "utf-8" not in values
        path_open = name == "open" and isinstance(call.func, ast.Attribute) and not binary and "mode" not in keywords
        path_open &= not call.args or isinstance(call.args[0], ast.Constant)
        told = name in ("run", "Popen", "check_output") and "text" in keywords
        if (opens or texts or path_open or told) and "encoding" not in keywords:
            yield call.lineno


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES])
def test_no_file_is_read_or_written_in_the_locales_encoding(path):
    found = list(bare(ast.parse(path.read_text(encoding="utf-8"))))
    assert not found


def test_what_is_bare_is_seen():
    calls = [
        "p.read_text()",
        "p.write_text(x)",
        "open(p)",
        "open(p, 'w')",
        "p.open('w')",
        "p.open()",
        "run(c, text=True)",
    ]
    assert all(list(bare(ast.parse(call))) for call in calls)
    fine = [
        "p.read_text(encoding='utf-8')",
        "p.read_text('utf-8')",
        "open(p, 'rb')",
        "p.open('ab', buffering=0)",
        "run(c)",
    ]
    assert not any(list(bare(ast.parse(call))) for call in fine)
