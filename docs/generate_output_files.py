"""Write docs/output_files.md from the schema of a comparison's directory, so that it cannot drift from what is written.

Usage, from the repository root: .venv/bin/python -m docs.generate_output_files
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_bench.results.judged_schema import JUDGED_JSON, JUDGED_TABLE
from rlhf_bench.results.metrics import GROUPS, METRICS, Metric, Phase, mlflow_name
from rlhf_bench.results.schema import FILES, JSON_FILES, SUMMARY, TABLES, Column
from rlhf_bench.results.summary_json import summary_schema

PAGE = Path(__file__).with_name("output_files.md")
NAMES = {
    "boolean": "true or false",
    "string": "text",
    "integer": "integer",
    "number": "number",
    "object": "mapping",
    "null": "null",
}
WORDS = {
    "arms": "ARM",
    "scores": "SPLIT",
    "spent": "COLUMN",
    "seeds": "SEED",
    "before_arms": "ACTIVITY",
    "versions": "PACKAGE",
    "threads": "ROLE",
    "failures": "FAILURE",
}
"""What stands for any key of a mapping, by the mapping's own key."""
HEAD = """# Output files

<!-- Written by docs/generate_output_files.py -->

A comparison is one directory, DIR: what `--output` names, `outputs/NAME` by default. A series (`vary` in the recipe) has
one such directory for each of its comparisons. Words in capitals stand for a name or a number of the run. In JSON, a
number that is not finite is null, but for `tuning.json`. Every file but the log and the outbox is replaced in one step, once
it is on the disk, and only where it changes: a reader never meets half of one, nor does one after a loss of power."""
SUMMARY_ABOUT = f"""`rlhf_bench.results.summary_json.summary_schema()` gives its JSON Schema (draft 2020-12), to which a test holds it. The
schema is closed: no other key stands in `{SUMMARY}`. A number that is absent or not finite is null. Intervals are pairs of
low and high end."""
METRICS_ABOUT = """Further columns of `metrics.parquet`. An arm has those that its method produces. A row of another split than
in_distribution has only `score`, `response_length` and `part/NAME`. In MLflow a metric has the same name behind the name
of its group; metrics marked * stand there twice more, by budget and by tokens."""


def page() -> str:
    """The whole page."""
    tables = [
        f"## {table.file}\n\n{table.meaning}\n\n{columns(table.columns)}" for table in (*TABLES.values(), JUDGED_TABLE)
    ]
    texts = [f"## {file.name}\n\n{file.meaning}\n\n{columns(file.keys, 'key')}" for file in (*JSON_FILES, JUDGED_JSON)]
    metrics = [
        f"### Of {name}\n\n{rows_of(phase)}" for phase, name in (("train", "updates"), ("evaluation", "evaluations"))
    ]
    schema = summary_schema()
    summary = f"## {SUMMARY}\n\n{SUMMARY_ABOUT}\n\n{table(('key', 'type', 'meaning'), keys(schema, schema['$defs']))}"
    groups = table(("group", "step", "holds"), ((f"`{group}/`", *told) for group, told in GROUPS.items()))
    parts = [
        HEAD,
        "## Files",
        files(),
        tables[0],
        f"## Metrics\n\n{METRICS_ABOUT}",
        *metrics,
        *tables[1:],
        summary,
        *texts,
    ]
    return "\n\n".join([*parts, "## Groups in MLflow", groups]) + "\n"


def files() -> str:
    """Every file with its meaning; those with a section of their own lead there."""
    own = [(f"[`{t.file}`](#{anchor(t.file)})", t.meaning) for t in (*TABLES.values(), JUDGED_TABLE)]
    own += [(f"[`{f.name}`](#{anchor(f.name)})", f.meaning) for f in (*JSON_FILES, JUDGED_JSON)]
    rest = [(f"[`{f.path}`](#{anchor(f.path)})" if f.path == SUMMARY else f"`{f.path}`", f.meaning) for f in FILES]
    return table(("file", "holds"), [*rest[:3], *own, *rest[3:]])


def columns(found: Sequence[Column], heading: str = "column") -> str:
    return table((heading, "type", "unit", "meaning"), ((f"`{c.name}`", c.type, c.unit, c.meaning) for c in found))


def rows_of(phase: Phase) -> str:
    return table(("column", "unit", "in MLflow", "meaning"), (metric_row(m, phase) for m in METRICS[phase]))


def metric_row(metric: Metric, phase: Phase) -> tuple[str, ...]:
    name = mlflow_name(metric.name, phase, "SPLIT")
    tracked = f"`{name}`{' *' if metric.compared else ''}" if metric.tracked else "–"
    return f"`{metric.name}`", metric.unit, tracked, metric.meaning


def keys(schema: dict[str, Any], known: dict[str, Any], at: str = "") -> Iterator[tuple[str, ...]]:
    """The keys of a JSON Schema's object by their paths, with those of the objects within it; `known`: its `$defs`."""
    for name, value in schema["properties"].items():
        options = [option for option in value.get("anyOf", [value]) if option.get("type") != "null"]
        nullable = " or null" if "anyOf" in value else ""
        path, (inner,) = at + name, options
        if "items" in inner and "prefixItems" not in inner:
            path, inner = f"{path}[]", inner["items"]
        elif isinstance(inner.get("additionalProperties"), dict):
            path, inner = f"{path}.{WORDS[name]}", inner["additionalProperties"]
        if "$ref" in inner:
            yield from keys(known[inner["$ref"].rpartition("/")[2]], known, f"{path}.")
        else:
            yield f"`{path}`", type_of(inner) + nullable, value.get("description", "")


def type_of(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:  # of the values of a mapping
        return " or ".join(map(type_of, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    return "two numbers" if "prefixItems" in schema else NAMES[schema["type"]]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('<', '&lt;') for cell in line)} |" for line in lines)


def anchor(name: str) -> str:
    """Of a heading, as GitHub and the site make it."""
    return name.lower().replace(".", "").replace("/", "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
