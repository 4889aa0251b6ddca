"""The rollout pool: vLLM engines, and how prompts are handed to them."""
