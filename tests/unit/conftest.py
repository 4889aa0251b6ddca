"""What all rooms share."""

import os

import pytest

# The tensors of these tests are tiny: threads would only wait for each other, most of all where workers share the cores.
# PyTorch reads this as it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test without an engine reads or fills the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
