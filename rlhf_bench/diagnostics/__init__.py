"""Numbers about one policy, and statistics over seeds: pure functions."""
