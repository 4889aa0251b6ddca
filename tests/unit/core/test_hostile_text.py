"""Text that a terminal would obey, and YAML that stands for more than it says."""

import pytest
import yaml

from rlhf_bench.core.text import in_codes, one_line, printable
from rlhf_bench.core.yaml import read_yaml
from tests.support.hostile import ACTING, HOSTILE


def test_in_codes_nothing_acts_and_what_shows_stays():
    assert not ACTING.search(in_codes(HOSTILE + "\ud800\ue000"))
    plain = "Zürich, 數學, Ελλάδα, ½ × π → ∞ – “a”\t🙂\nnext"
    assert in_codes(plain) == printable(plain) == plain
    assert in_codes("\x1b[2J\u202e") == "⟨U+001B⟩[2J⟨U+202E⟩"
    assert one_line("one\r\ntwo\u2028three\x1b") == "one two three⟨U+001B⟩"


def test_aliases_that_only_spare_writing_are_read():
    assert read_yaml("a: &a {x: 1, y: [2]}\nb: *a\nc: {<<: *a, x: 3}") == {
        "a": {"x": 1, "y": [2]}, "b": {"x": 1, "y": [2]}, "c": {"x": 3, "y": [2]},
    }  # fmt: skip
    with pytest.raises(yaml.YAMLError, match="undefined alias"):
        read_yaml("a: *b")
