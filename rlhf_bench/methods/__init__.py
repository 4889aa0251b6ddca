"""The methods an arm can name. One file each; to add one, write the file, list it here, and ship a recipe."""

from rlhf_bench.methods import dpo, flex_dpo, ppo
from rlhf_bench.methods.base import Method

METHODS: dict[str, Method] = {m.name: m for m in (ppo.METHOD, dpo.METHOD, flex_dpo.METHOD)}
