"""`rlhf-bench verify`: a run again, with engines of its own and nothing from the cache."""

import json
import shutil
import subprocess
import sys

from tests.support.running import ROOT


def verify(environment, *arguments):
    command = [sys.executable, "-m", "rlhf_bench", "verify", *map(str, arguments), "--quiet"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_the_same_code_gives_the_same_base_policy_and_arm_and_another_record_is_told_by_its_exit_code(
    compared, prepared, tmp_path
):
    recorded = tmp_path / "recorded"
    shutil.copytree(compared.directory, recorded)
    told = json.loads((recorded / "results.json").read_text())
    told["arms"]["dpo-offline"]["seeds"][0]["score"] += 0.5
    (recorded / "results.json").write_text(json.dumps(told | {"threads": {"learner": "7"}}))
    done = verify(prepared, recorded, "--arm", "dpo-offline", "--output", tmp_path / "kept")
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and "1 of " in done.stderr.splitlines()[-1], done.stderr
    same = [line.partition(": ")[2].partition(":")[0] for line in lines if line.startswith("same: ")]
    assert {"base policy, weights", "base policy, score in_distribution", "dpo-offline · seed 1, weights"} <= set(same)
    differing = [line for line in lines if line.startswith("DIFFERS: ")]
    assert differing[0].startswith("DIFFERS: dpo-offline · seed 1, score: ") and "differs by -0.5" in differing[0]
    assert any(line.startswith("DIFFERS: threads of learner: recorded 7, now ") for line in differing)
    assert (tmp_path / "kept" / "cache").is_dir()  # its own: the user's has what may be wrong
