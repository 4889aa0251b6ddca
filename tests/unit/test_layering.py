"""Imports point one way: the pure part knows no engine, one file knows vLLM's engine, one file DeepSpeed."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINES = {"ray", "vllm", "deepspeed"}
NUMERICS = {"torch", "numpy", "pydantic"}


def files(folder):
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py"))


def imports(path, top_level_only=False):
    """Dotted names of the modules a file imports, wherever in it; `from a import b` gives a.b as well as a."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = set()
    for node in ast.iter_child_nodes(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path):
    return {name.split(".")[0] for name in imports(path)}


def within(name, allowed):
    return any(name == one or name.startswith(one + ".") for one in allowed)


@pytest.mark.parametrize("path", files("rlhf_bench"), ids=str)
def test_the_pure_part_imports_no_engine(path):
    assert not packages(path) & ENGINES
    if path.name != "cli.py":
        assert "actors" not in packages(path)


def test_the_command_line_imports_actors_only_inside_a_command():
    assert "actors" in packages(Path("rlhf_bench/cli.py"))
    assert not any(within(name, ["actors"]) for name in imports(Path("rlhf_bench/cli.py"), top_level_only=True))


@pytest.mark.parametrize(("engine", "allowed"), [
    ("vllm", {"actors/vllm_engine.py", "actors/weight_sync.py"}),
    ("deepspeed", {"actors/learner_group.py"}),
])  # fmt: skip
def test_each_engine_is_known_to_its_own_files_only(engine, allowed):
    every = [path for folder in ("rlhf_bench", "actors", "cluster") for path in files(folder)]
    assert {path.as_posix() for path in every if engine in packages(path)} == allowed


@pytest.mark.parametrize(("folder", "allowed", "third_party"), [
    ("methods", ["rlhf_bench.methods", "rlhf_bench.sequences", "rlhf_bench.types"], NUMERICS),
    ("tasks", ["rlhf_bench.tasks", "rlhf_bench.types"], {"numpy", "pydantic", "pandas", "pyarrow", "datasets", "math_verify"}),
    # What a loss on pairs is, and what its pairs look like; no single method.
    ("diagnostics", ["rlhf_bench.diagnostics", "rlhf_bench.methods.base", "rlhf_bench.sequences", "rlhf_bench.types",
                     "rlhf_bench.flops", "rlhf_bench.distance", "rlhf_bench.heads"], NUMERICS | {"scipy"}),
])  # fmt: skip
def test_methods_tasks_and_diagnostics_know_little(folder, allowed, third_party):
    for path in files(f"rlhf_bench/{folder}"):
        ours = {name for name in imports(path) if within(name, ["rlhf_bench"])} - {"rlhf_bench"}
        assert all(within(name, allowed) for name in ours), path
        assert packages(path) - {"rlhf_bench"} <= third_party | set(sys.stdlib_module_names), path


def test_theory_needs_methods_and_a_runs_tables_but_nothing_that_runs():
    allowed = [f"rlhf_bench.{name}" for name in ("theory", "methods", "types", "plain_yaml", "diagnostics.statistics")]
    for path in files("rlhf_bench/theory"):
        ours = {name for name in imports(path) if within(name, ["rlhf_bench"])} - {"rlhf_bench"}
        assert all(within(name, allowed) for name in ours), path


def test_no_method_knows_another():
    for path in files("rlhf_bench/methods"):
        if path.name != "__init__.py":
            known = {n for n in imports(path) if within(n, ["rlhf_bench.methods"])} - {"rlhf_bench.methods"}
            assert all(within(name, ["rlhf_bench.methods.base"]) for name in known), path


@pytest.mark.parametrize(
    "path",
    [
        "types.py",
        "sequences.py",
        "attention.py",
        "heads.py",
        "flops.py",
        "ledger.py",
        "learning.py",
        "roles.py",
        "distance.py",
    ],
)
def test_the_ground_floor_does_not_look_up(path):
    upper = ["recipe", "material", "stages", "loop", "comparison", "records", "forecast", "tracking", "report", "cli",
             "sources", "feedback", "tuning", "theory"]  # fmt: skip
    assert not [n for n in imports(Path("rlhf_bench") / path) if within(n, [f"rlhf_bench.{u}" for u in upper])]


@pytest.mark.parametrize("path", ["loop.py", "sources.py", "comparison.py", "arms.py", "teams.py", "stages.py", "learning.py", "tuning.py"])
def test_what_runs_methods_knows_none_of_their_names(path):
    text = (ROOT / "rlhf_bench" / path).read_text(encoding="utf-8")
    assert not re.findall(r"(?i)\b\w*(?:\bppo|(?<!threa)dpo|flex)\w*", text)
