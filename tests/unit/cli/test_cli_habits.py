"""Habits of the command line: a recipe to begin with, a schema for editors, machine-readable ends, quiet, no colours."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator
from transformers import PreTrainedTokenizerFast

import rlhf_bench
from rlhf_bench.cli import main as cli
from rlhf_bench.core.yaml import read_yaml
from rlhf_bench.experiment.progress import ProgressDisplay
from rlhf_bench.methods import METHODS
from rlhf_bench.recipe import parse_recipe
from rlhf_bench.recipe.json_schema import json_schema
from rlhf_bench.recipe.template import commented_recipe
from rlhf_bench.tasks import build_task

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")


def main(monkeypatch, *arguments):
    """The exit code of `rlhf-bench …` in this process."""
    monkeypatch.setattr(sys, "argv", ["rlhf-bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_the_version_is_the_packages(monkeypatch, capsys):
    assert main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"rlhf-bench {rlhf_bench.__version__}\n"


@pytest.mark.parametrize("command", sorted(typer.main.get_command(cli.app).commands))
def test_help_shows_all_that_a_command_says_of_itself(command, monkeypatch, capsys):
    """Words in brackets are no style of the text's: `.[benchmarks]` was shown as `.`."""

    def without_layout(text):
        return re.sub(r"[^\w.\[\]]", "", text)

    found = typer.main.get_command(cli.app).commands[command]
    assert main(monkeypatch, command, "--help") == 0
    shown = without_layout(capsys.readouterr().out)
    of_options = re.findall(r"\S*\[\S+", " ".join(option.help or "" for option in found.params))
    for said in (found.help, *of_options):
        assert without_layout(said.replace("\\[", "[")) in shown


# init


def test_init_writes_a_recipe_that_check_accepts_and_never_over_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "mine.yaml"
    assert main(monkeypatch, "init", path) == 0
    assert f"next: rlhf-bench check {path}" in capsys.readouterr().out
    assert main(monkeypatch, "check", path, "--quiet") == 0
    assert capsys.readouterr().out == f"{path}: valid\n"
    path.write_text("mine")
    assert main(monkeypatch, "init", path) == 2
    assert "exists already; give the name of a new file" in capsys.readouterr().err and path.read_text() == "mine"
    assert main(monkeypatch, "init", tmp_path / "nowhere" / "mine.yaml") == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_what_the_template_shows_as_a_default_is_the_default():
    text = commented_recipe()
    uncommented = re.sub(r"^( *)#(?=[ ]*[a-z_]+:)(?! yaml)", r"\1", text, flags=re.MULTILINE)
    assert len(read_yaml(uncommented)) > len(read_yaml(text))
    assert parse_recipe(read_yaml(uncommented)) == parse_recipe(read_yaml(text))


def test_the_template_names_every_key_of_a_recipe_and_of_its_arms():
    uncommented = re.sub(r"^( *)#(?=[ ]*[a-z_]+:)(?! yaml)", r"\1", commented_recipe(), flags=re.MULTILINE)

    def keys(data):
        return {key: keys(value) if isinstance(value, dict) else None for key, value in data.items()}

    assert keys(read_yaml(uncommented)) == keys(parse_recipe(read_yaml(uncommented)).resolved())


# schema


def problems(recipe):
    return [error.message for error in Draft202012Validator(json_schema()).iter_errors(recipe)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_recipe_fits_the_schema(path):
    assert problems(yaml.safe_load(path.read_text())) == []


def test_what_init_writes_fits_the_schema():
    assert problems(read_yaml(commented_recipe())) == []


SMALL = {"name": "a", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e12}, "arms": {"dpo": {"method": "dpo"}}}


@pytest.mark.parametrize(("wrong", "told"), [
    ({"sede": [1]}, "sede"),
    ({"compute": {"limit": -1}}, "-1"),
    ({"task": {"kind": "sums"}}, "sums"),
    ({"arms": {"dpo": {"method": "dpo", "beta_chosen": 0.1}}}, "beta_chosen"),
    ({"arms": {"dpo": {"method": "dpq"}}}, "dpq"),
    ({"arms": {"dpo": {"beta": 0.1}}}, "method"),
    ({"arms": {"a b": {"method": "dpo"}}}, "a b"),
    ({"arms": {"base": {"method": "dpo"}}}, "base"),
    ({"arms": {181 * "x": {"method": "dpo"}}}, "too long"),
    ({"name": None}, "None"),
])  # fmt: skip
def test_the_schema_refuses_what_the_recipe_refuses(wrong, told):
    assert problems(SMALL) == []
    assert any(told in message for message in problems(SMALL | wrong))


def test_a_recipe_needs_its_keys_or_another_that_it_extends():
    assert problems({"name": "a"}) and not problems({"extends": "b.yaml"})


def test_an_arm_is_offered_the_settings_of_its_method_and_no_others():
    definitions = json_schema()["$defs"]
    for name, method in METHODS.items():
        own = definitions[method.settings.__name__]
        assert own["properties"].keys() == method.settings.model_fields.keys() and not own["additionalProperties"]
        assert own["properties"]["method"] == {"const": name}


def test_schema_prints_it(monkeypatch, capsys):
    assert main(monkeypatch, "schema") == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


# --json, --quiet


def test_check_ends_with_one_line_of_json(monkeypatch, capsys, tmp_path):
    """Whatever a library prints meanwhile, as DeepSpeed does when it is first imported."""
    written = PreTrainedTokenizerFast.save_pretrained

    def save_and_tell(*arguments, **named):
        print("[WARNING] a library's word")
        return written(*arguments, **named)

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", save_and_tell)
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    assert main(monkeypatch, "check", ROOT / "recipes" / "sums.yaml", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["arms"].keys() == {"ppo", "dpo-offline", "dpo-on-policy", "flex-dpo"}
    assert found["arms"]["ppo"]["update"] > 0 and found["arms"]["dpo-offline"]["updates"] > 1
    assert found["budget"] == {"unit": "flops", "limit": 7e11} and found["recipe"]["seeds"] == [1, 2, 3]


def test_report_ends_with_one_line_of_json_that_is_the_summary(monkeypatch, capsys, tmp_path):
    from rlhf_bench.report.archive import archive

    directory = tmp_path / "run"
    archive(ROOT / "docs" / "results" / "data" / "gsm8k", directory)
    assert main(monkeypatch, "report", directory, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"output": str(directory)} | json.loads((directory / "summary.json").read_text())


def test_quiet_shows_warnings_only_and_the_log_has_everything(tmp_path):
    shown = io.StringIO()
    display = ProgressDisplay(tmp_path, shown, quiet=True)
    display.begin("arm", 1, 0, 1)
    display.say("base policy: 0.5")
    display.warn("learner 0: has died; started again")
    display.close()
    assert [line[9:] for line in shown.getvalue().splitlines()] == ["learner 0: has died; started again"]
    log = (tmp_path / "events.log").read_text()
    assert "base policy: 0.5" in log and "has died" in log and "arm · seed 1: begins" in log


def test_answers_that_the_judge_left_undecided_are_counted_and_the_log_says_so_once(tmp_path):
    shown = io.StringIO()
    display = ProgressDisplay(tmp_path, shown, quiet=True)
    display.begin("arm", 1, 0, 1)
    for update, share in enumerate((0.0, 0.25, 0.5), start=1):
        display.update("arm", 1, update, {"loss": 0.5, "undecided": share}, 0.1)
    display.close()
    assert shown.getvalue().count("cost too much to compare") == 1
    assert "arm · seed 1: update 2: 25.0% of the sampled answers" in shown.getvalue()


# Colours


def on_a_terminal(*arguments, **environment):
    """What `python …` writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    inherited = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    done = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
        env=inherited | {"TERM": "xterm-256color", "COLUMNS": "120"} | environment,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not part:
            break
        written += part
    assert done.wait() == 0, written.decode()
    return written.decode()


SHOWN = """
import sys
from pathlib import Path
from rlhf_bench.experiment.progress import ProgressDisplay
display = ProgressDisplay(Path(sys.argv[1]))
display.begin("arm", 1, 0, 1)
display.update("arm", 1, 1, {"loss": 0.5}, 0.5)
display.say("a line")
display.bar.refresh()
display.close()
"""


@pytest.mark.parametrize("what", ["help", "progress"])
def test_no_color_takes_the_colours_away_and_nothing_else(what, tmp_path):
    arguments = ("-m", "rlhf_bench", "run", "--help") if what == "help" else ("-c", SHOWN, str(tmp_path))
    coloured, plain = on_a_terminal(*arguments), on_a_terminal(*arguments, NO_COLOR="1")
    assert COLOUR.search(coloured) and not COLOUR.search(plain)
    assert ("--profile" if what == "help" else "a line") in re.sub(r"\x1b\[[\d;]*m", "", plain)


def test_the_shell_is_offered_commands_and_options():
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv = ['rlhf-bench']; from rlhf_bench.cli.main import main; main()",
    ]
    for words, cword, offered in (("rlhf-bench ex", "1", ["export"]), ("rlhf-bench run --qu", "2", ["--quiet"])):
        completing = {"_RLHF_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": cword}
        done = subprocess.run(command, env=os.environ | completing, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.split() == offered, done.stderr


TUTORIAL = re.findall(
    r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "tutorial.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("block", TUTORIAL)
def test_what_the_tutorial_adds_to_a_recipe_fits_the_schema(block):
    assert problems(SMALL | read_yaml(block)) == []


def test_the_tutorials_own_data_are_taken(tmp_path):
    page = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    (row,) = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for name in ("train.jsonl", "held_out.jsonl"):
        (tmp_path / name).write_text(row if name == "train.jsonl" else row.replace("France", "Spain"))
    task = read_yaml(TUTORIAL[0])["task"]
    task = {key: str(tmp_path / value) if value.startswith("./") else value for key, value in task.items()}
    recipe = parse_recipe(SMALL | {"task": task, "evaluation": {"splits": ["in_distribution"]}})
    assert build_task(recipe.task).demonstrations(1, 0)[0].response == "Paris"
