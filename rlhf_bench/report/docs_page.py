"""A docs page from recorded data: NAME.md with its tables and verdicts, and NAME.png beside it.

Nothing in it is written by hand, so it can be generated again at any time. The same records give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from rlhf_bench.core.text import escaped, table
from rlhf_bench.report import tables
from rlhf_bench.report.format import duration, each, quantity
from rlhf_bench.report.notes import notes
from rlhf_bench.report.page import sections
from rlhf_bench.report.plots.overview import overview
from rlhf_bench.report.plots.style import style
from rlhf_bench.report.sections.base import Section
from rlhf_bench.report.sections.properties import properties
from rlhf_bench.report.series import series_cells, series_figure, series_labels, series_rows
from rlhf_bench.report.verdict import verdict
from rlhf_bench.results.reader import RecordedComparison, read_recorded
from rlhf_bench.results.summary import Summary, summarize

DOTS_PER_INCH = 110


def write_page(directory: Path, target: Path) -> None:
    """Write the page of the comparison in `directory`, or of the series of them, to `target` (NAME.md), and NAME.png.

    Raises BadInput where a record is missing or contradicts itself, before anything is written.
    """
    labels = series_labels(directory)
    found = {label: read_recorded(directory / label) for label in labels or [""]}
    summaries = {label: summarize(recorded) for label, recorded in found.items()}
    with style():
        if labels:
            blocks, figure = _series_blocks(found, summaries, target), series_figure(summaries)
        else:
            blocks, figure = _blocks(found[""], summaries[""], target), overview(found[""], summaries[""])
        _save(figure, target.with_suffix(".png"))
    target.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _blocks(recorded: RecordedComparison, summary: Summary, target: Path) -> Iterator[str]:
    yield from _head(recorded, [summary], target)
    yield "## Claims"
    yield from _claims(summary)
    yield "## Result"
    yield escaped(verdict(summary))
    yield table(tables.without_empty(tables.comparison_table(summary)))
    yield _image(f"{summary.name}: score against compute and KL, and likelihoods by arm", target)
    yield _bullets(map(escaped, notes(summary)))
    if summary.comparisons:
        yield f"Every arm against `{summary.baseline}`, in final score, paired by seed:"
        yield table(tables.without_empty(tables.paired_table(summary.comparisons)))
    found = sections(recorded, summary)
    for section in found:
        if section.tables:
            yield f"## {section.title}"
            yield from _section(section)
    bare = [section for section in found if not section.tables and section.anchor != "field"]  # that one is a picture
    if bare:
        yield "## Not recorded"
        yield _bullets(f"{section.title}: {escaped(' '.join(section.seen))}" for section in bare)


def _series_blocks(
    found: Mapping[str, RecordedComparison], summaries: Mapping[str, Summary], target: Path
) -> Iterator[str]:
    labels = list(summaries)
    first = found[labels[0]]
    yield from _head(first, list(summaries.values()), target)
    key = labels[0].partition("=")[0]
    yield f"A series: the same arms once for each value of `{key}`, which all arms of a comparison share."
    yield "## Result"
    yield table([series_cells(row) for label, summary in summaries.items() for row in series_rows(label, summary)])
    yield _image(f"{summaries[labels[0]].name}: score against {key}", target)
    for label, summary in summaries.items():
        yield f"## {escaped(label)}"
        yield escaped(verdict(summary))
        yield from _claims(summary)
        if summary.comparisons:
            yield f"Every arm against `{summary.baseline}`:"
            yield table(tables.without_empty(tables.paired_table(summary.comparisons)))
        for section in properties(found[label], summary):
            if section.tables:
                yield f"### {section.title}"
                yield from _section(section)


def _head(recorded: RecordedComparison, summaries: Sequence[Summary], target: Path) -> Iterator[str]:
    """What was run, on what, and how to run and to render it again."""
    summary = summaries[0]
    yield f"# {escaped(summary.name)}"
    if description := str(recorded.recipe.get("description") or ""):
        yield escaped(description)
    facts = []
    if recipe := _recipe_file(summary.name, target):
        root, path = recipe
        link = os.path.relpath(root / path, target.resolve().parent)
        facts += [f"Recipe: [{path}]({link})", f"Command: `rlhf-bench run {path}`"]
    seeds = sorted({seed.seed for one in summaries for arm in one.arms for seed in arm.seeds})
    facts.append(
        f"Seeds: {', '.join(map(str, seeds)) or 'none'}; budget: {quantity(summary.limit, summary.unit)} per arm and seed"
    )
    wall = [one.timing["wall_seconds"] for one in summaries if one.timing.get("wall_seconds")]
    keys = list(dict.fromkeys(one.run_key for one in summaries if one.run_key))
    commits = list(dict.fromkeys(one.commit for one in summaries if one.commit))
    recorded_as = f"Commit: {', '.join(commits) or 'not recorded'}; run key: {', '.join(keys) or 'not recorded'}"
    facts.append(escaped(recorded_as))
    facts.append(f"Machine: {escaped(summary.machine or 'not recorded')}")
    facts.append(f"Threads of each process: {escaped(each(summary.threads) or 'not recorded')}")
    facts.append(f"Versions: {escaped(each(summary.versions) or 'not recorded')}")
    facts.append(
        f"Wall time: {duration(sum(wall)) if wall else 'not recorded'}, of the last call if the run was resumed"
    )
    if (target.parent / "data" / target.stem).is_dir():
        data = f"data/{target.stem}"
        facts.append(
            f"Recorded data: [{data}]({data}); this page is made of it by `rlhf-bench report DATA --page {target.name}`, and "
            f"`rlhf-bench verify {target.name}` says whether the code of today gives the same numbers"
        )
    yield _bullets(facts)
    for one in [str(note) for note in (recorded.base.get("setup") or {}).get("notes") or []]:
        yield escaped(one)


def _recipe_file(name: str, target: Path) -> tuple[Path, str] | None:
    """(root, path within it) of the recipe that the run was named after, in the project that `target` lies in."""
    for root in target.resolve().parents:
        for path in (f"recipes/experiments/{name}.yaml", f"recipes/{name}.yaml"):
            if (root / path).is_file():
                return root, path
    return None


def _claims(summary: Summary) -> Iterator[str]:
    if not summary.claims:
        yield "The recipe makes no claim."
        return
    yield _bullets(f"{escaped(claim.statement)}: **{claim.verdict}**" for claim in summary.claims)
    yield table(tables.without_empty(tables.claims_table(summary)))


def _section(section: Section) -> Iterator[str]:
    yield _bullets(map(escaped, section.seen))
    for one in section.tables:
        yield escaped(one.caption)
        yield table(one.rows)


def _bullets(lines: Iterable[str]) -> str:
    """A list of lines that are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)


def _image(shows: str, target: Path) -> str:
    """The page's figure. A bracket within its description would end that, and have what follows taken for an address."""
    inside = escaped(shows).replace("]", "\\]")
    return f"![{inside}]({target.stem}.png)"


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
