"""No command prints or logs a control character of its input, or a password."""

import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from cluster.local_job import print_where_to_look
from rlhf_bench.cli import main as cli
from rlhf_bench.core.errors import RunFailed
from rlhf_bench.experiment.progress import ProgressDisplay
from tests.support.hostile import ACTING, CONTROLS, HOSTILE, SECRET, SERIES, command

ROOT = Path(__file__).parents[3]


def files_recipe(folder, rows, **task):
    """A recipe on a file of the user's own: its path."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text)
    (folder / "held.jsonl").write_text('{"prompt": "held?", "reference": "h"}\n')
    recipe = SERIES | {"task": {"kind": "files", "prompts": "./train.jsonl", "held_out": "./held.jsonl", **task}}
    (folder / "own.yaml").write_text(yaml.safe_dump(recipe | {"description": HOSTILE}))
    return folder / "own.yaml"


ROW = {"prompt": "a?", "reference": "b", "response": "c", "id": HOSTILE}


@pytest.mark.parametrize(("rows", "task"), [
    ([ROW, ROW | {"prompt": "again?"}], {"id_column": "id"}),
    ([{HOSTILE: 1}], {}),
    ([ROW], {"prompts": f"./{CONTROLS}.jsonl"}),
    ([ROW], {"judge": CONTROLS}),
    ([ROW], {HOSTILE: 1}),
    ([ROW | {"reference": CONTROLS}], {"judge": "number"}),
], ids=["id", "column", "path", "value", "key", "reference"])  # fmt: skip
def test_an_error_about_the_users_data_prints_none_of_its_control_characters(rows, task, tmp_path, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "check", files_recipe(tmp_path, rows, **task))
    assert code == 2 and out == "" and "owned" in err and not ACTING.search(err)
    assert all(line.startswith("error: ") for line in err.splitlines())


def test_check_prints_a_recipe_without_its_control_characters(tmp_path, monkeypatch, capsys):
    path = tmp_path / "own.yaml"
    sums = str(ROOT / "recipes" / "sums.yaml")
    path.write_text(yaml.safe_dump({"extends": sums, "name": "own", "description": HOSTILE}))
    code, out, err = command(monkeypatch, capsys, "check", path)
    assert code == 0, err
    assert "⟨U+202E⟩" in out and not ACTING.search(out + err)


def test_failures_and_tracebacks_print_no_control_characters(capsys):
    def fails():
        raise RunFailed(f"an engine failed: {HOSTILE}")

    assert cli.exit_code(fails) == 1
    try:
        raise KeyError(HOSTILE) from OSError(HOSTILE)
    except KeyError:
        cli.show_traceback(*sys.exc_info())
    err = capsys.readouterr().err
    assert err.startswith("failed: an engine failed: ") and "Traceback" in err and not ACTING.search(err)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_and_its_log_hold_no_control_characters_of_data(stream, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = stream()
    display = ProgressDisplay(tmp_path, shown)
    display.begin("arm", 1, 0, 1)
    display.say(f"{HOSTILE}\n2024-01-01T00:00:00 a line of its own; train.jsonl:100: [bold]a[/bold]")
    display.update("arm", 1, 1, {"loss": 0.5}, 0.1)
    display.close()
    log = (tmp_path / "events.log").read_text()
    assert not ACTING.search(log) and not re.search(r"^2024", log, re.MULTILINE)
    own = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", shown.getvalue().replace("\x1b[2J", "!!").replace("\x1b[31m", "!!"))
    assert "!!" not in own and not ACTING.search(own)  # rich's own sequences aside, of which it needs neither
    for text in (log, shown.getvalue()):
        assert "⟨U+001B⟩[2J" in text and "train.jsonl:100: [bold]a[/bold]" in text


def test_a_password_in_the_environments_address_is_never_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@mlflow.example:5000")
    (tmp_path / "recipe.yaml").write_text("tracking: {uri: null}")
    print_where_to_look(tmp_path)
    shown = capsys.readouterr().out
    assert "MLflow:  http://…@mlflow.example:5000" in shown and SECRET not in shown
    stream = io.StringIO()
    display = ProgressDisplay(tmp_path, stream)
    display.say(f"MLflow at {os.environ['MLFLOW_TRACKING_URI']} is not to be had; the run goes on")
    display.close()
    assert SECRET not in stream.getvalue() + (tmp_path / "events.log").read_text()
