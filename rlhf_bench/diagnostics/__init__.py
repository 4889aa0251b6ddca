"""What a run's numbers say: pure functions on arrays, with no knowledge of who recorded them."""
