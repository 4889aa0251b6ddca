"""A cache into which somebody has put a pickle: it is not read."""

import numpy as np
import pytest

from rlhf_bench.core.types import Row
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.reference import reference_logprobs
from tests.support.hostile import Bomb, llama
from tests.support.scripted import Learner


def test_arrays_of_the_cache_are_not_unpickled(tmp_path):
    weights = llama(tmp_path / "base")
    (weights / "model.safetensors").write_bytes(b"weights")
    cache, rows = Cache(tmp_path / "cache"), [Row("r", (1,), ((5, 2),))]
    reference_logprobs(Learner(), cache, weights, rows, 1.0, "float32")
    (array,) = (tmp_path / "cache").glob("reference-*/logprobs.npy")
    np.save(array, np.array([Bomb(tmp_path / "marker")], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        reference_logprobs(Learner(), cache, weights, rows, 1.0, "float32")
    assert not (tmp_path / "marker").exists()
