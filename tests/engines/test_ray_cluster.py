"""Joining Ray: an address without a cluster is an error at once."""

import socket
from time import perf_counter

import pytest

from actors.ray_cluster import cluster
from rlhf_bench.core.errors import RunFailed


def test_an_address_where_nothing_answers_is_named_within_seconds(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = perf_counter()
    with (
        pytest.raises(RunFailed, match=f"RAY_ADDRESS={address}: no cluster answers there .* unset RAY_ADDRESS"),
        cluster(),
    ):
        pytest.fail("there was no cluster to join")
    assert perf_counter() - began < 30
