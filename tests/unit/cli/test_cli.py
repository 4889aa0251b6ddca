"""The command line as scripts see it: exit codes, one line per problem on standard error, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_bench.cli import main as cli
from rlhf_bench.core.errors import BadInput, RunFailed, Stopped

ROOT = Path(__file__).parents[3]


def command(tmp_path, *arguments):
    """`python -m rlhf_bench …` in a process of its own, with an empty cache."""
    environment = os.environ | {"RLHF_BENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "rlhf_bench", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def main(monkeypatch, *arguments):
    """The exit code of the same in this process."""
    monkeypatch.setattr(sys, "argv", ["rlhf-bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_check_prints_the_whole_recipe_and_what_each_arm_costs(tmp_path):
    done = command(tmp_path, "check", "recipes/sums.yaml", "compute.limit=3.0e+12")
    assert done.returncode == 0, done.stderr
    assert "limit: 3000000000000.0" in done.stdout and "gae_lambda: 0.95" in done.stdout
    for arm in ("ppo", "dpo-offline", "dpo-on-policy", "flex-dpo"):
        assert f"  {arm}: " in done.stdout
    assert done.stdout.rstrip().endswith("recipes/sums.yaml: valid")


def test_a_data_set_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = command(tmp_path, "check", "recipes/gsm8k.yaml", "task.folder=openai/gsm8k")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: task.folder: openai/gsm8k cannot be read as a data set (")
    assert "download the data set and give its folder" in done.stderr


SERIES = """
name: series
task: {kind: arithmetic}
compute: {limit: 1.0e+13}
sft: {demonstrations: 8}
arms: {dpo: {method: dpo}}
vary: {key: data.temperature, values: [0.7, 1.0]}
fast: {compute: {limit: 3.0e+12}}
"""


def test_check_prints_every_comparison_of_a_series_at_the_size_asked_for(tmp_path):
    recipe = tmp_path / "series.yaml"
    recipe.write_text(SERIES)
    full, fast = command(tmp_path, "check", recipe), command(tmp_path, "check", recipe, "--fast")
    for done, limit in ((full, "limit: 10000000000000.0"), (fast, "limit: 3000000000000.0")):
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stdout.splitlines() if line.startswith("# ")] == [
            "# data.temperature=0.7",
            "# data.temperature=1.0",
        ]
        assert done.stdout.count(limit) == 2 and done.stdout.rstrip().endswith("series.yaml: valid")
    one = command(tmp_path, "check", recipe, "vary=null", "--fast")
    assert one.returncode == 0 and "# data" not in one.stdout


def test_a_wrong_recipe_ends_with_two_and_one_line_per_problem(tmp_path):
    done = command(tmp_path, "check", "recipes/sums.yaml", "sede=[1]", "compute.limit=-1")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    assert any("sede" in line for line in lines) and any("compute.limit" in line for line in lines)


def test_a_report_on_a_directory_that_is_not_there(monkeypatch, capsys, tmp_path):
    assert main(monkeypatch, "report", str(tmp_path / "nowhere")) == 2
    assert "no such file" in capsys.readouterr().err


def test_help_names_the_commands(monkeypatch, capsys):
    assert main(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("run", "check", "report", "verify"))


@pytest.mark.parametrize("name", ["run", "check", "report", "verify"])
def test_every_command_has_help(name, monkeypatch, capsys):
    assert main(monkeypatch, name, "--help") == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [
    ("check",), ("bake", "recipes/sums.yaml"), ("run", "recipes/quickstart.yaml", "--seed", "one"),
    ("check", "recipes/sums.yaml", "--fast"),
], ids=" ".join)  # fmt: skip
def test_a_wrong_command_line_ends_with_two_and_no_traceback(arguments, monkeypatch, capsys):
    assert main(monkeypatch, *arguments) == 2
    shown = capsys.readouterr().err
    assert shown and "Traceback" not in shown


@pytest.mark.parametrize(("error", "code", "last_line"), [
    (BadInput("a: wrong; mend it", "b: wrong; mend it"), 2, "error: b: wrong; mend it"),
    (RunFailed("an engine died"), 1, "failed: an engine died"),
    (Stopped(2), 130, "stopped by SIGINT: "),
    (Stopped(15), 143, "stopped by SIGTERM: "),
])  # fmt: skip
def test_exit_codes_and_the_line_that_names_the_cause(error, code, last_line, capsys):
    def fails():
        raise error

    assert cli.exit_code(fails) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(last_line)


def compiled(stop):
    """What Ray's compiled code makes of a signal that comes while it builds a tuple."""
    error = SystemError("<built-in method __new__> returned a result with an exception set")
    error.__cause__ = stop
    return error


def test_a_signal_that_compiled_code_hid_in_another_error_is_that_signal(capsys):
    from actors.supervision.failures import failure_reason

    def fails():
        try:
            raise compiled(Stopped(15))
        except Exception as error:  # as every caller of an actor does
            failure_reason(error)

    assert cli.exit_code(fails) == 143
    assert capsys.readouterr().err.startswith("stopped by SIGTERM: ")

    def unhandled():
        raise compiled(Stopped(2))

    assert cli.exit_code(unhandled) == 130
    with pytest.raises(SystemError):
        cli.exit_code(lambda: failure_reason(compiled(None)))


def test_an_error_that_follows_a_signal_is_not_hidden_behind_it():
    def fails():
        try:
            raise Stopped(15)
        finally:
            raise OSError("no space left")  # as a file is closed

    with pytest.raises(OSError, match="no space left"):
        cli.exit_code(fails)


def test_success_is_silent(capsys):
    assert cli.exit_code(lambda: None) == 0
    assert capsys.readouterr() == ("", "")
