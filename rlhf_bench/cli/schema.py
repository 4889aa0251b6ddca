"""`rlhf-bench schema`."""

from __future__ import annotations

import json

from rlhf_bench.cli.options import write_line


def schema() -> None:
    """Print the JSON Schema of recipes, with which an editor completes and checks keys.

    Example: rlhf-bench schema > recipe.schema.json
    """
    from rlhf_bench.recipe.json_schema import json_schema

    write_line(json.dumps(json_schema(), indent=1))
