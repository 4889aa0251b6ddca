"""What is asked, and how a reply is read."""

import pytest

from rlhf_bench.core.contests import Contest
from rlhf_bench.core.errors import BadInput
from rlhf_bench.llm_judge.prompt import MAX_BYTES, read_prompt, verdict

OWN = "{prompt}|{first}|{second}: [[A]] [[B]] [[C]]"


def test_both_orders_show_the_same_texts_the_other_way_round():
    contest = Contest("Greet.", "hello", "grrr")
    one, other = (read_prompt(None).message(contest, own_first) for own_first in (True, False))
    assert one != other and one.replace("hello", "·").replace("grrr", "hello").replace("·", "grrr") == other
    assert one.index("Greet.") < one.index("hello") < one.index("grrr")


def test_a_response_that_looks_like_a_place_stays_as_it_is(tmp_path):
    (tmp_path / "p.txt").write_text(OWN)
    found = read_prompt(tmp_path / "p.txt").message(Contest("{second}", "{prompt}", "{first}"), True)
    assert found == "{second}|{prompt}|{first}: [[A]] [[B]] [[C]]"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("[[A]]", "first"),
        ('{"verdict": "[[B]]"}', "second"),
        ("Both are fine.\n[[C]]", "tie"),
        ("[[A]] would be wrong: it is rude. So [[B]].", "second"),
        ("A", None),
        ("[A]", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_the_last_mark_is_the_verdict(reply, expected):
    assert verdict(reply) == expected


def test_another_prompt_has_another_hash(tmp_path):
    (tmp_path / "p.txt").write_text(OWN)
    assert read_prompt(tmp_path / "p.txt").sha256 != read_prompt(None).sha256


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{prompt} {first} [[A]] [[B]] [[C]]", ["{second}"]),
        (b"{first}", ["{prompt}", "{second}", "[[A]]", "[[B]]", "[[C]]"]),
        (b"\xff\xfe{prompt}", ["UTF-8"]),
        (b"x" * (MAX_BYTES + 1), [str(MAX_BYTES)]),
    ],
)
def test_a_prompt_that_cannot_work_is_refused_with_all_that_is_wrong(tmp_path, content, named):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(BadInput) as refused:
        read_prompt(tmp_path / "p.txt")
    assert len(refused.value.problems) == len(named)
    for problem, word in zip(refused.value.problems, named, strict=True):
        assert problem.startswith(f"--prompt {tmp_path}/p.txt: ") and word in problem
