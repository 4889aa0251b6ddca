"""Weights and optimizer state to files and back, whatever shards them."""

from __future__ import annotations

TRAINING_STATE = ("weight", "exp_avg", "exp_avg_sq", "step")
"""What Adam goes on from, per parameter; in a checkpoint `weight/NAME` and so on."""

SHARD_BYTES = 2**30
"""Of a checkpoint's files: rank 0 holds that much at a time."""
