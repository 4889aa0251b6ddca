"""What somebody might put into recipes, records, models and texts in order to do harm, and the commands that must bear it."""

import json
import re
import sys
from pathlib import Path

import pytest

from rlhf_bench.cli import main as cli

ACTING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
)
"""Characters that a terminal obeys, or that hide or reorder others; written down apart from the code that is tested."""
CONTROLS = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b31m\x90q\x9c\u202egnp.\u2066x\u2069\u200b\ufeff\u2028\rover\x08\x7f\x85"
MARKUP = (
    "<script>steal()</script>\"><img src=x onerror=steal()>'><svg/onload=steal()> {{7*191}}{% raw %} ${7*191} </pre></td>"
    "<!-- [a](javascript:steal()) ![b](http://evil.example/b.png) <http://evil.example> `c` | # *d* --- \\"
)
HOSTILE = MARKUP + CONTROLS
SECRET = "hunter2"
SERIES = {"name": "s", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e12}, "arms": {"a": {"method": "dpo"}}}


def command(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["rlhf-bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    return ended.value.code or 0, shown.out, shown.err


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "unpickled")


def llama(folder, **more):
    """A folder with the configuration of a tiny Llama, and no weights."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 8,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 8,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | more))
    return folder
