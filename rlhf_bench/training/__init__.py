"""One arm: inputs, rollouts, judging, pairs, experience, objective, update, loop, checkpoints."""
