"""`rlhf-bench check` on every shipped recipe as it is. Those from the Hub: test_scale_recipes.py, with stand-ins."""

from pathlib import Path

import pytest

from rlhf_bench.cli import main as cli
from tests.support.real_model import PLACE
from tests.unit.recipe.test_scale_recipes import RECIPES, SIZES

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"
LOCAL = [str(path.relative_to(RECIPES)) for path in sorted(RECIPES.rglob("*.yaml"))]
LOCAL = [name for name in LOCAL if name.removesuffix(".yaml") not in SIZES]
CHAT = {"slogan.yaml", "poem.yaml", "instructions.yaml", "reasoning_gym.yaml"}
"""Those with the chat model at hand, which is converted once for all tests."""


@pytest.mark.parametrize("name", LOCAL)
def test_a_shipped_recipe_is_valid_and_said_to_cost_and_take_and_need_something(
    name, capsys, tmp_path, monkeypatch, request
):
    monkeypatch.setenv("RLHF_BENCH_CACHE", str(PLACE if name in CHAT else tmp_path))
    if name in CHAT:
        request.getfixturevalue("smollm2")
        capsys.readouterr()
    if name == "gsm8k.yaml" and not GSM8K.is_dir():
        pytest.skip("needs the folder shared/data/gsm8k beside the checkout")
    assert cli.exit_code(lambda: cli.app(["check", str(RECIPES / name)], standalone_mode=False)) == 0
    said = capsys.readouterr().out
    assert said.endswith(f"{name}: valid\n")
    for part in (
        "data, tokens at quantiles",
        "\nbudget: ",
        "\ntime",
        "\nmemory of each process",
    ):
        assert part in said, part
