"""The methods an arm can name. One file each; to add one, write the file, list it here, and ship a recipe."""

from rlhf_bench.methods import (
    adaptive_flex_dpo,
    cal_dpo,
    cpo,
    dpo,
    dpop,
    flex_dpo,
    grpo,
    ipo,
    kto,
    length_normalised_dpo,
    orpo,
    ppo,
    reinforce_plus_plus,
    rft,
    rloo,
    robust_dpo,
    sft_dpo,
    simpo,
    slic,
)
from rlhf_bench.methods.base import Method

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (ppo, dpo, flex_dpo, adaptive_flex_dpo, ipo, slic, simpo, sft_dpo, dpop, cal_dpo, length_normalised_dpo,
                   robust_dpo, orpo, cpo, kto, grpo, rloo, reinforce_plus_plus, rft)
}  # fmt: skip
