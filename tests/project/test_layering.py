"""Who may import whom: rooms in one table, engines in their own files, no circle between files."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAY_IMPORT = {
    "core": [],
    "tasks": ["core"],
    "methods": ["core"],
    "models": ["core"],
    "recipe": ["core", "tasks", "methods", "models"],
    "diagnostics": ["core", "methods", "models"],
    "llm_judge": ["core", "diagnostics"],
    "compute": ["core", "methods", "models", "recipe"],
    "theory": ["core", "methods", "diagnostics"],
    "results": ["core", "recipe", "diagnostics"],
    "training": ["core", "tasks", "methods", "models", "recipe", "compute", "diagnostics"],
    "report": ["core", "recipe", "compute", "diagnostics", "theory", "results"],
    "experiment": ["core", "methods", "models", "recipe", "compute", "training", "results", "report"],
    "cli": [
        "core",
        "theory",
        "recipe",
        "compute",
        "llm_judge",
        "results",
        "training",
        "report",
        "experiment",
        "methods",
        "models",
    ],  # fmt: skip
}
"""Room -> the rooms that its files may import, wherever in a file: also inside a function, and under TYPE_CHECKING."""

ENGINES = {
    "ray": {"actors/", "cluster/local_job.py"},
    "vllm": {"actors/rollout/vllm_engine.py", "actors/weight_sync.py"},
    "deepspeed": {
        "actors/learner/rank.py",
        "actors/learner/deepspeed_engine.py",
        "actors/learner/training_state.py",
    },
    "lm_eval": {"rlhf_bench/experiment/harness.py"},
    "mlflow": {"rlhf_bench/experiment/tracking/mlflow_store.py"},
}
"""Library -> the files or folders that may import it."""

NUMERICS = {"torch", "numpy", "pydantic"}
LIBRARIES = {
    "methods": NUMERICS,
    "tasks": {
        "numpy",
        "pydantic",
        "pandas",
        "pyarrow",
        "datasets",
        "fsspec",
        "math_verify",
        "pronouncing",
        "if_verifiable",
        "langdetect",
        "reasoning_gym",
    },
    "diagnostics": NUMERICS | {"scipy", "rapidfuzz"},
}
"""Of the rooms of pure functions: the libraries that they may import."""


def files(*folders):
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path, top_level_only=False):
    """Dotted names of the modules that a file imports; `from a import b` gives a.b as well as a."""
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


def module_file(name):
    """The file of a dotted name of ours, or None where it names something within one."""
    path = Path(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if (ROOT / p).is_file()), None)


def rooms_of(path):
    names = (name.split(".") for name in imports(path))
    return {parts[1] for parts in names if parts[0] == "rlhf_bench" and len(parts) > 1 and parts[1] in MAY_IMPORT}


def test_every_folder_is_a_room_of_the_table():
    folders = {path.parent.name for path in (ROOT / "rlhf_bench").glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT)
    assert {path.name for path in (ROOT / "rlhf_bench").glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("path", files(*(f"rlhf_bench/{room}" for room in MAY_IMPORT)), ids=str)
def test_a_room_imports_only_what_the_table_allows(path):
    room = path.parts[1]
    assert rooms_of(path) <= {room, *MAY_IMPORT[room]}
    if room != "cli":
        assert "actors" not in packages(path)


def test_the_command_line_imports_actors_only_inside_a_command():
    importing = [path for path in files("rlhf_bench/cli") if "actors" in packages(path)]
    assert importing
    for path in importing:
        assert not any(name.split(".")[0] == "actors" for name in imports(path, top_level_only=True))


def test_rooms_import_downwards_only():
    list(TopologicalSorter(MAY_IMPORT).static_order())


def test_no_circle_between_files():
    graph = {}
    for path in files("rlhf_bench", "actors"):
        graph[path] = {f for f in map(module_file, imports(path)) if f is not None and f != path}
        # `from room.file import name` runs the room's own __init__ too; that one may list what it holds.
        graph[path] = {f for f in graph[path] if f.name != "__init__.py" or f.parent not in path.parents}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("circle: " + " -> ".join(map(str, error.args[1])))


@pytest.mark.parametrize("library", ENGINES)
def test_each_engine_is_known_to_its_own_files_only(library):
    importing = {p.as_posix() for p in files("rlhf_bench", "actors", "cluster") if library in packages(p)}
    assert importing
    assert all(path.startswith(tuple(ENGINES[library])) for path in importing), importing


@pytest.mark.parametrize("room", LIBRARIES)
def test_rooms_of_pure_functions_need_few_libraries(room):
    for path in files(f"rlhf_bench/{room}"):
        assert packages(path) - {"rlhf_bench"} <= LIBRARIES[room] | set(sys.stdlib_module_names), path


def test_no_method_knows_another():
    shared = {"base", "pairs", "samples", "schedules", "supervised"}
    for path in files("rlhf_bench/methods"):
        if path.name != "__init__.py":
            known = {name.split(".")[2] for name in imports(path) if name.startswith("rlhf_bench.methods.")}
            assert known <= shared, path


@pytest.mark.parametrize("path", files("rlhf_bench/training", "rlhf_bench/experiment"), ids=str)
def test_what_runs_methods_knows_none_of_their_names(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not re.findall(r"(?i)\b\w*(?:\bppo|(?<!threa)(?<!en)dpo|flex)\w*", text)


def test_a_run_begins_without_what_only_the_report_needs():
    """matplotlib and scipy take seconds to import: the driver does that while the engines work."""
    code = "import actors.driver, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"matplotlib", "scipy", "mlflow", "vllm", "deepspeed"} & set(loaded)
