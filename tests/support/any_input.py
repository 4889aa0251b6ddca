"""Recipes and rows of any kind, as Hypothesis makes them of sound ones."""

import copy

from hypothesis import settings
from hypothesis import strategies as st

from tests.support.checking import check

ANY = settings(max_examples=60, deadline=None, derandomize=True)  # `check` itself ends what takes too long
WHOLE = st.integers(-1, 100) | st.sampled_from([10**7, 2**31, 2**63 - 1, 2**63, 10**40, -(10**40)])
SCALARS = st.none() | st.booleans() | WHOLE | st.floats() | st.floats(0, 2) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS, inner, max_size=4), max_leaves=8
)


def ends_well(*arguments):
    """Whatever the input: done, or refused with lines that say what to do."""
    code, said = check(*arguments)
    assert all(line.startswith("error: ") for line in said.splitlines()), said
    assert (code, bool(said)) in ((0, False), (2, True)), (code, said)


def places(value):
    """Every list or mapping inside, with every key or index of it."""
    for key, part in [*value.items()] if isinstance(value, dict) else [*enumerate(value)]:
        yield value, key
        if isinstance(part, dict | list):
            yield from places(part)


@st.composite
def mutated(draw, sound, most):
    """The sound data, up to `most` of its values replaced or taken away, or new ones put beside them."""
    data = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, most))):
        inside, key = draw(st.sampled_from([*places(data)] or [(data, "name")]))
        match draw(st.sampled_from(["replace", "remove", "insert"])):
            case "remove" if key in inside or isinstance(inside, list):
                del inside[key]
            case "insert" if isinstance(inside, dict):
                inside[draw(st.text(max_size=8))] = draw(VALUES)
            case _:
                inside[key] = draw(VALUES)
    return data
