"""What a paper takes: plots as SVG with their numbers as CSV, which are the summary's, and tables as LaTeX."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest

from rlhf_bench.core.errors import BadInput
from rlhf_bench.report import write_report
from rlhf_bench.report.archive import archive
from rlhf_bench.report.export import write_export
from rlhf_bench.report.latex import escaped, latex_table

RECORDED = Path(__file__).parents[3] / "docs" / "results" / "data" / "rejected_strength_arithmetic"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of the export, summary.json) of a comparison with a sweep, claims and a baseline, made of its recorded data."""
    directory, output = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("paper") / "figures"
    archive(RECORDED, directory / "kept")
    write_report(directory / "kept")
    write_export(RECORDED, output)
    return output, json.loads((directory / "kept" / "summary.json").read_text())


def test_every_plot_is_a_drawing_of_its_own_with_its_numbers_beside_it(exported):
    output, _ = exported
    index = pd.read_csv(output / "plots.csv")
    assert {path.stem for path in output.glob("*.svg")} == set(index["name"])
    assert {path.stem for path in output.glob("*.csv")} == {*index["name"], "plots"}
    assert index["title"].is_unique and index["title"].str.len().gt(3).all()
    for name in index["name"]:
        svg = (output / f"{name}.svg").read_text()
        assert ElementTree.fromstring(svg).tag.endswith("svg") and "currentColor" not in svg
        numbers = pd.read_csv(output / f"{name}.csv")
        assert len(numbers) and {"series", "x", "y"} <= set(numbers.columns)


def test_the_numbers_are_the_summarys(exported):
    output, summary = exported
    points = pd.read_csv(output / "score-compute.csv")
    base = points[points["series"] == "base"]
    assert set(base["y"]) == {summary["base"]["score"]}
    drawn = set(points["series"]) - {"base"}
    assert drawn == {arm for arm in summary["arms"] if "=" not in arm}  # a sweep's copies are in other plots
    for arm in drawn:
        end = points[(points["series"] == arm) & (points["x"] == 100)]
        mean, score = end[end["seed"].isna()].iloc[0], summary["arms"][arm]["score"]
        assert mean["y"] == pytest.approx(score["mean"], abs=1e-12)
        assert [mean["low"], mean["high"]] == pytest.approx(score["ci95"], abs=1e-12)
        seeds = {seed["seed"]: seed["score"] for seed in summary["arms"][arm]["seeds"]}
        found = end.dropna(subset=["seed"])
        assert dict(zip(found["seed"].astype(int), found["y"], strict=True)) == pytest.approx(seeds)


def test_bars_sweeps_and_fields_have_their_numbers_too(exported):
    output, summary = exported
    spent = pd.read_csv(output / "compute.csv").groupby("x")["y"].sum()
    arm = next(iter(spent.index))
    seeds = summary["arms"][arm]["seeds"]
    share = sum(seed["spent"]["flops"] for seed in seeds) / len(seeds) / summary["budget"]["limit"]
    assert spent[arm] == pytest.approx(100 * share)
    swept = pd.read_csv(output / "sweep-beta-rejected-score.csv")
    for _, row in swept.iterrows():
        name = f"{row['series']}.beta_rejected={row['x']:g}"
        if name in summary["arms"]:
            assert row["y"] == pytest.approx(summary["arms"][name]["score"]["mean"])
    arrows = pd.read_csv(output / "field-0.csv").dropna(subset=["dx"])
    assert len(arrows) == 17 * 17 and ((arrows["dx"] ** 2 + arrows["dy"] ** 2) - 1).abs().max() < 1e-6
    assert set(pd.read_csv(output / "ranking.csv")["x"]) <= {
        "In distribution",
        "Out of distribution",
        "Unseen elements",
    }


def rows_of(text):
    """The cells between the rules, headings first."""
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.DOTALL)[1].replace("\\midrule\n", "")
    return [[cell.strip() for cell in line.removesuffix(" \\\\").split(" & ")] for line in body.splitlines()]


def test_the_latex_tables_have_a_row_for_each_arm_and_each_claim(exported):
    output, summary = exported
    text = (output / "comparison.tex").read_text()
    rows = rows_of(text)
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1]
    assert {len(row) for row in rows} == {len(columns)}
    assert [row[0] for row in rows[1:]] == [escaped(name) for name in [*by_score(summary), "base"]]
    assert any("flex\\_dpo" in row for row in rows) and not re.search(r"(?<!\\)[_%#]", text.partition("\n")[2])
    assert len(rows_of((output / "claims.tex").read_text())) == 1 + len(summary["claims"])
    assert len(rows_of((output / "against_baseline.tex").read_text())) == len(summary["arms"])


def by_score(summary):
    return sorted(summary["arms"], key=lambda arm: summary["arms"][arm]["score"]["mean"], reverse=True)


def test_no_character_of_a_cell_acts_in_latex():
    assert escaped("a_b & 5% #1 {x} $y$ ~^ \\input") == (
        r"a\_b \& 5\% \#1 \{x\} \$y\$ \textasciitilde{}\textasciicircum{} \textbackslash{}input"
    )
    assert escaped("β⁻ -0.5, on-policy 1-2") == r"$\beta$$^{-}$ $-$0.5, on-policy 1-2"
    assert "{[a]} & 1 \\\\" in latex_table([{"Arm": "[a]", "Score": "1"}])


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="--output .*; give a folder that can be written"):
        write_export(RECORDED, tmp_path / "file" / "below")
