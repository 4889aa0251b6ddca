"""What all rooms share."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test without an engine reads or fills the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
