"""`rlhf-bench judge`, as a user calls it, against a server on loopback: what it leaves in DIR, prints, refuses and never shows."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from rlhf_bench.cli import main as cli
from rlhf_bench.report.archive import archive
from rlhf_bench.report.docs_page import write_page
from rlhf_bench.results.summary_json import summary_schema
from tests.support.judge_server import always, judge_server, longer_wins, said
from tests.support.recorded import record, record_responses

ROOT = Path(__file__).parents[3]
KEY = "sk-very-secret-0123456789"
PROMPTS, SEEDS = 8, (1, 2, 3)


@pytest.fixture
def directory(tmp_path):
    """An arm whose responses are longer than the base policy's, and one whose responses are sometimes longer."""
    place = tmp_path / "run"
    place.mkdir()
    scores = np.full((len(SEEDS), PROMPTS), 0.5)
    record(place, {"wordy": (scores, scores), "even": (scores, scores)}, (scores[0], scores[0]), {}, baseline="even")
    base = [f"base {i}" for i in range(PROMPTS)]
    record_responses(place, {
        "wordy": {seed: (base, [f"{text} and more of {seed}" for text in base]) for seed in SEEDS},
        "even": {seed: (base, [text + "!" if i % 2 else text[:-1] for i, text in enumerate(base)]) for seed in SEEDS},
    })  # fmt: skip
    return place


@pytest.fixture
def command(monkeypatch, tmp_path, capfd):
    """Runs `rlhf-bench judge` in this process, with a cache and a key of its own: exit code, and what was printed."""
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rlhf-bench", "judge", "--model", "a-judge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capfd.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


def summary(directory):
    found = json.loads((directory / "summary.json").read_text())
    jsonschema.validate(found, summary_schema())
    return found["judgings"]


def labelled(tmp_path):
    rows = [{"prompt": f"q{n}", "a": "long" * n, "b": "brief", "label": "a" if n > 2 else "b"} for n in range(1, 9)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "pairs.jsonl"


def test_win_rates_stand_in_the_summary_and_in_the_report(directory, command, tmp_path):
    with judge_server(longer_wins) as server:
        code, out, err = command(
            directory, "--endpoint", server.url, "--agreement", labelled(tmp_path), "--price-in", 2, "--price-out", 8
        )
    assert code == 0, err
    (found,) = summary(directory)
    assert found["complete"] and found["pairs"] == 2 * len(SEEDS) * PROMPTS and found["against"] == "base"
    wordy, even = found["arms"]["wordy"], found["arms"]["even"]
    assert (wordy["win_rate"], wordy["order_consistency"], wordy["first_shown"], wordy["settled"]) == (
        1.0,
        1.0,
        0.5,
        True,
    )
    assert (
        even["win_rate"] == 0.5 == pytest.approx(even["length_controlled_win_rate"]) and even["length_coefficient"] > 1
    )
    assert not even["settled"]
    asked = 2 * PROMPTS * (len(SEEDS) + 1)  # `even` writes the same with every seed
    assert found["costs"] == {
        "queries": asked, "answers": asked, "prompt_tokens": 100 * asked, "completion_tokens": 5 * asked,
        "money": pytest.approx((2 * 100 + 8 * 5) * asked / 1e6),
    }  # fmt: skip
    assert len(server.requests) == asked + 16
    assert (found["agreement"]["share"], found["agreement"]["pairs"]) == (
        7 / 8,
        8,
    )  # "longlong" is longer, and is no better
    page = (directory / "report.html").read_text()
    assert "Judged by a language model" in page and "agrees with people on 87.5%" in page
    assert "wordy has a win rate of 100.0% against the base policy" in out and "agrees with people on 87.5%" in out


def test_a_second_call_asks_nothing_and_says_the_same(directory, command):
    with judge_server(longer_wins) as server:
        assert command(directory, "--endpoint", server.url)[0] == 0
        before, first = len(server.requests), summary(directory)
        assert command(directory, "--endpoint", server.url)[0] == 0
        assert len(server.requests) == before and summary(directory) == first
        assert command(directory, "--endpoint", server.url, "--against", "even")[0] == 0
    assert [one["against"] for one in summary(directory)] == ["base", "even"]


def test_what_is_missing_is_marked_incomplete_and_made_up_later(directory, command):
    with judge_server(lambda request, number: longer_wins(request) if number < 30 else (0, {}, "")) as server:
        code, out, err = command(
            directory, "--endpoint", server.url, "--concurrent", 2, "--timeout", 5, "--queries", 40
        )
        assert (
            code == 1
            and err.splitlines()[-1].startswith("failed: judge: ")
            and "the same command asks them again" in err
        )
        (found,) = summary(directory)
        assert not found["complete"] and found["missing"] > 0 and found["costs"]["queries"] == 40
        assert sum(found["failures"].values()) == 64 - 30
        page = (directory / "report.html").read_text()
        assert "INCOMPLETE" in page and "INCOMPLETE" in out and "the budget is spent" in page
        assert found["arms"]["wordy"]["prompts"] > 0
        server.script = longer_wins
        assert command(directory, "--endpoint", server.url)[0] == 0
    (found,) = summary(directory)
    assert found["complete"] and not found["missing"] and not found["failures"] and found["costs"]["queries"] == 40 + 34


def test_a_judge_that_goes_by_the_order_is_named(directory, command):
    with judge_server(always("[[A]]")) as server:
        assert command(directory, "--endpoint", server.url)[0] == 0
    (found,) = summary(directory)
    assert all((arm["win_rate"], arm["ties"], arm["first_shown"]) == (0.5, 1.0, 1.0) for arm in found["arms"].values())
    assert "more about the order than about the responses" in (directory / "report.html").read_text()


def test_agreement_alone_needs_no_run(command, tmp_path):
    with judge_server(longer_wins) as server:
        code, out, _ = command("--endpoint", server.url, "--agreement", labelled(tmp_path))
    assert code == 0 and "agrees with people on 87.5%" in out and "Cohen's kappa 0.60" in out and "16 queries" in out


def test_a_judge_that_tosses_a_coin_is_said_to(command, tmp_path):
    with judge_server(always("[[C]]")) as server:
        code, out, _ = command("--endpoint", server.url, "--agreement", labelled(tmp_path))
    assert code == 0 and "agrees with people on 50.0%" in out and "not told apart from chance" in out


def test_the_prompt_is_a_file_that_may_be_replaced(directory, command, tmp_path):
    (tmp_path / "p.txt").write_text("{prompt} / {first} / {second}: [[A]], [[B]] or [[C]]?")
    with judge_server(always("[[C]]")) as server:
        assert command(directory, "--endpoint", server.url, "--prompt", tmp_path / "p.txt")[0] == 0
    assert server.requests[0]["messages"][0]["content"].startswith("prompt 0 / ")


def test_the_key_is_in_no_file_nor_line(directory, command, tmp_path):
    def echo(request, number):
        return (500, {}, f"Authorization: Bearer {KEY}") if number % 3 == 0 else said(f"[[A]] Bearer {KEY}")

    with judge_server(echo) as server:
        _, out, err = command(directory, "--endpoint", server.url, "--agreement", labelled(tmp_path))
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        server.script = lambda request, number: (401, {}, f"no such key: {KEY}")
        _, more, worse = command(directory, "--endpoint", server.url, "--against", "even")
    assert KEY not in out + err + more + worse and "denied" in worse
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 10 and not [file for file in files if KEY.encode() in file.read_bytes()]


def test_what_the_server_says_cannot_act_in_the_terminal_or_the_page(directory, command):
    with judge_server(lambda request, number: (400, {}, "<script>alert(1)</script>\x1b[2J\nerror: none")) as server:
        code, out, err = command(directory, "--endpoint", server.url)
    assert code == 1 and "\x1b" not in out + err and err.count("\n") == len(err.splitlines())
    assert not [line for line in err.splitlines() if line.startswith("error: none")]
    assert "<script" not in (directory / "report.html").read_text()


def test_a_page_of_the_documents_keeps_what_was_judged(directory, command, tmp_path):
    with judge_server(longer_wins) as server:
        assert command(directory, "--endpoint", server.url)[0] == 0
    archive(directory, tmp_path / "data" / "page")
    write_page(tmp_path / "data" / "page", tmp_path / "page.md")
    assert "## Judged by a language model" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--endpoint", "http://127.0.0.1:9/v1"], ["DIRECTORY: is missing"]),
        (["DIR", "--endpoint", "nowhere", "--against", "nobody", "--money", "1", "--prompt", "/dev/null"],
         ["--endpoint nowhere", "--against nobody", "--money: needs prices", "--prompt /dev/null: has no {prompt}"]),
        (["DIR", "--endpoint", "http://judge.example/v1"], ["in the clear"]),
        (["/nowhere", "--endpoint", "http://127.0.0.1:9/v1", "--agreement", "/nowhere.json"],
         ["/nowhere/results.json", "--agreement /nowhere.json"]),
    ],
)  # fmt: skip
def test_bad_input_is_told_all_at_once_before_anything_is_asked(directory, command, arguments, named):
    code, _, err = command(*(directory if argument == "DIR" else argument for argument in arguments))
    assert code == 2 and all(line.startswith("error: ") for line in err.splitlines())
    assert all(any(word in line for line in err.splitlines()) for word in named)


def test_without_a_key_another_machine_is_not_asked(command, monkeypatch, directory):
    monkeypatch.delenv("OPENAI_API_KEY")
    code, _, err = command(directory, "--endpoint", "https://judge.example/v1", "--key-variable", "MY_KEY")
    assert code == 2 and "MY_KEY is not set" in err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_keeps_its_answers(directory, command, tmp_path, sent):
    with judge_server(longer_wins, seconds=0.3) as server:
        arguments = ["judge", directory, "--endpoint", server.url, "--model", "a-judge", "--concurrent", 4]
        process = subprocess.Popen(
            [sys.executable, "-m", "rlhf_bench", *map(str, arguments)], cwd=ROOT, text=True, stderr=subprocess.PIPE
        )
        while len(server.requests) < 9:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(sent)
        _, err = process.communicate(timeout=120)
        assert (
            process.returncode == 128 + sent
            and "Traceback" not in err
            and err.splitlines()[-1].endswith(": the same command asks what is missing")
        )
        server.seconds = 0.0
        assert command(directory, "--endpoint", server.url)[0] == 0
    (found,) = summary(directory)
    assert found["complete"] and 64 <= found["costs"]["queries"] <= len(server.requests) <= 64 + 4
