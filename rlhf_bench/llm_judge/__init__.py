"""A language model behind an OpenAI-compatible server that compares two responses: prompt, server, budget, answers, agreement."""
