"""Log-probabilities under the start policy are measured once for the same data and weights, and never made up."""

import hashlib

import numpy as np
import pytest

from rlhf_bench.core.errors import RunFailed
from rlhf_bench.core.types import Row
from rlhf_bench.models.weights import weights_digest, weights_sha256
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.reference import reference_logprobs
from tests.support.scripted import MEASURING, Learner

ROWS = [Row(f"r{i}", (1, i), ((5, 2), (6, 7, 2))) for i in range(4)]


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


class Counting(Learner):
    """The log-probability of a token is its place among all that were ever measured."""

    def begin_measure(self, name, rows, temperature=1.0):
        found = super().begin_measure(name, rows, temperature)
        count = iter(range(10_000))
        numbers = [tuple(np.array([-float(next(count)) for _ in a]) for a in row.responses) for row in rows]
        found.found = (numbers, MEASURING)
        return found


def test_a_second_arm_measures_nothing_and_reads_the_same_numbers(tmp_path, weights):
    cache, learners = Cache(tmp_path / "cache"), [Counting(), Counting()]
    first, second = (reference_logprobs(one, cache, weights, ROWS, 1.0, "float32") for one in learners)
    assert [name for name, _ in learners[0].measured] == ["reference"] and learners[1].measured == []
    assert learners[1].loaded == []  # nor is the model held
    for rows in (ROWS, ROWS[::-1], ROWS[1:2]):
        for mine, again in zip(first.of(rows), second.of(rows), strict=True):
            assert [a.tolist() for a in mine] == [a.tolist() for a in again]
    assert [a.tolist() for a in first.of(ROWS[1:2])[0]] == [[-5.0, -6.0], [-7.0, -8.0, -9.0]]


def test_other_data_other_weights_or_another_temperature_is_measured_anew(tmp_path, weights):
    cache, learner = Cache(tmp_path / "cache"), Counting()
    reference_logprobs(learner, cache, weights, ROWS, 1.0, "float32")
    reference_logprobs(learner, cache, weights, ROWS[:3], 1.0, "float32")
    reference_logprobs(learner, cache, weights, ROWS, 0.7, "float32")
    reference_logprobs(learner, cache, weights, ROWS, 1.0, "bfloat16")
    (weights / "model.safetensors").write_bytes(b"other weights")
    reference_logprobs(learner, cache, weights, ROWS, 1.0, "float32")
    (weights / "config.json").write_text('{"rope_theta": 7}')
    reference_logprobs(learner, cache, weights, ROWS, 1.0, "float32")
    assert len(learner.measured) == 6


def test_a_row_that_was_not_measured_is_an_error_that_names_it(tmp_path, weights):
    found = reference_logprobs(Counting(), Cache(tmp_path / "cache"), weights, ROWS, 1.0, "float32")
    with pytest.raises(RunFailed, match="row stranger is not among the 4 that were measured"):
        found.of([Row("stranger", (9,), ((9, 2), (8, 2)))])


def test_a_row_counts_by_its_tokens_not_by_its_name(tmp_path, weights):
    found = reference_logprobs(Counting(), Cache(tmp_path / "cache"), weights, ROWS, 1.0, "float32")
    again = Row("another name", ROWS[2].prompt_ids, ROWS[2].responses)
    np.testing.assert_array_equal(found.of([again])[0][1], found.of([ROWS[2]])[0][1])
    changed = Row("r2", ROWS[2].prompt_ids, ((5, 3), *ROWS[2].responses[1:]))
    with pytest.raises(RunFailed, match="row r2"):
        found.of([changed])


def test_weights_that_cannot_be_told_apart_are_refused(tmp_path):
    with pytest.raises(RunFailed, match="save the model as safetensors"):
        weights_digest(tmp_path)


def test_weights_are_known_by_their_files_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    one, whole = weights_sha256(tmp_path), weights_digest(tmp_path)
    assert one == hashlib.sha256(b"weights").hexdigest()  # as `sha256sum` prints it
    (tmp_path / "config.json").write_text('{"written by": "another version"}')
    assert weights_sha256(tmp_path) == one and weights_digest(tmp_path) != whole
    (tmp_path / "model-2.safetensors").write_bytes(b"more")
    assert weights_sha256(tmp_path) not in (one, hashlib.sha256(b"more").hexdigest())
