"""`rlhf-bench check` in this process, and a recipe on files that it accepts."""

import contextlib
import io
import json
import signal

from rlhf_bench.cli import main as cli

ENOUGH = """
name: small
task: {kind: arithmetic}
data: {train_prompts: 6, off_policy_pairs: 3, held_out_pairs: 1, max_response_tokens: 8, candidates_per_prompt: 2}
sft: {demonstrations: 6}
evaluation: {prompts: 2, splits: [in_distribution]}
compute: {limit: 1.0e+14}
arms:
  a: {method: ppo}
  b: {method: dpo}
"""
FILES = "task={kind: files, prompts: ./train.jsonl, held_out: ./test.jsonl, pairs: ./pairs.jsonl}"
FROM_FILES = ENOUGH.replace("{kind: arithmetic}", FILES.removeprefix("task="))
TRAIN = [{"prompt": f"q{n}?", "reference": f"a{n}", "response": f"a{n}", "author": "me"} for n in range(6)]
TEST = [{"prompt": f"h{n}?", "reference": f"a{n}"} for n in range(4)]
PAIRS = [{"prompt": f"q{n}?", "chosen": "yes", "rejected": "no"} for n in range(4)]


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GOOD_FILES = {"train.jsonl": jsonl(*TRAIN), "test.jsonl": jsonl(*TEST), "pairs.jsonl": jsonl(*PAIRS)}


def write_files(folder, **changed):
    for name, content in (GOOD_FILES | changed).items():
        (folder / name).write_bytes(content)
    (folder / "recipe.yaml").write_text(FROM_FILES)
    return folder / "recipe.yaml"


def one(**changes):
    """The training rows, the second one changed; None takes a column away."""
    row = {key: value for key, value in (TRAIN[1] | changes).items() if value is not ...}
    return jsonl(TRAIN[0], row, *TRAIN[2:])


def hangs(number, frame):
    raise TimeoutError("check takes too long")


def check(*arguments):
    """Exit code and standard error of `rlhf-bench check …`, run in this process. TimeoutError after a minute."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.ExitStack() as after:
        after.callback(signal.signal, signal.SIGALRM, before)
        after.callback(signal.alarm, 0)
        code = cli.exit_code(lambda: cli.app(["check", *map(str, arguments)], standalone_mode=False))
        out.flush()
        err.flush()
    return code, err.buffer.getvalue().decode()


def refusals(*arguments):
    """The lines that `check` ends with where it refuses: one for each problem, and nothing else."""
    code, said = check(*arguments)
    assert code == 2, said
    lines = said.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines), said
    return [line.removeprefix("error: ") for line in lines]


def refusal(*arguments):
    """The line of the only problem that `check` finds: no other may follow from it."""
    lines = refusals(*arguments)
    assert len(lines) == 1, "\n".join(lines)
    return lines[0]
