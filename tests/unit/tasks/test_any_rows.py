"""Whatever stands in a file of rows: it is accepted, or refused with lines that say what to do."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.any_input import ANY, ends_well, mutated
from tests.support.checking import GOOD_FILES, write_files


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    write_files(folder)
    return folder


def rows_of(name):
    return [json.loads(line) for line in GOOD_FILES[name].splitlines()]


NAMES = st.sampled_from([*GOOD_FILES])


@ANY
@given(data=NAMES.flatmap(lambda name: st.tuples(st.just(name), mutated(rows_of(name), 4))))
def test_no_mutated_rows_end_in_a_traceback(data, place):
    name, rows = data
    write_files(place, **{name: "".join(json.dumps(row) + "\n" for row in rows).encode()})
    ends_well(place / "recipe.yaml")


@ANY
@given(name=NAMES, at=st.floats(0, 1), cut=st.integers(0, 40), put=st.binary(max_size=20), alone=st.booleans())
def test_no_bytes_as_data_end_in_a_traceback(name, at, cut, put, alone, place):
    """Bytes alone, or in the midst of good rows in place of some of theirs."""
    good = GOOD_FILES[name]
    start = int(at * len(good))
    write_files(place, **{name: put if alone else good[:start] + put + good[start + cut :]})
    ends_well(place / "recipe.yaml")
