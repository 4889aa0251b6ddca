"""Records with hostile text in every place that can hold any: in the report and in a docs page it is text, and nothing else."""

import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.text import in_codes
from rlhf_bench.report import write_report
from rlhf_bench.report.docs_page import write_page
from rlhf_bench.report.series import series_labels
from tests.support.hostile import ACTING, HOSTILE, MARKUP, command
from tests.unit.report.test_report import record

HARMLESS = "plain text"


@pytest.mark.parametrize("label", ["../../elsewhere", "/elsewhere", "a=/../../elsewhere", ""])
def test_a_series_reads_and_writes_within_its_folder_only(label, tmp_path):
    (tmp_path / "series.json").write_text(json.dumps({"labels": [label]}))
    with pytest.raises(BadInput, match="is no comparison of a series"):
        series_labels(tmp_path)


def records(directory, text):
    """A recorded comparison that holds `text` wherever a record can hold any."""
    record(directory)
    samples = pd.read_parquet(directory / "samples.parquet")
    for column in ("prompt", "reference", "response"):
        samples[column] = text + samples[column]
    samples["prompt_id"] = text + samples["prompt_id"]
    samples.to_parquet(directory / "samples.parquet")
    metrics = pd.read_parquet(directory / "metrics.parquet").rename(columns={"part/answer": f"part/{text}"})
    metrics.to_parquet(directory / "metrics.parquet")
    recipe = yaml.safe_load((directory / "recipe.yaml").read_text()) | {
        "name": text, "description": text, "baseline": "dpo",
        "claims": [{"statement": text, "more": "ppo", "less": "dpo", "metric": text}, {"statement": text, "more": "ppo", "less": "dpo"}],
    }  # fmt: skip
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True, width=10**6))
    base = json.loads((directory / "base.json").read_text())
    (directory / "base.json").write_text(json.dumps(base | {"setup": {"notes": [text], text: text}}))
    results = json.loads((directory / "results.json").read_text())
    told = {"machine": text, "commit": text, "run_key": text, "versions": {text: text}, "threads": {text: text}}
    (directory / "results.json").write_text(json.dumps(results | told))
    return directory


class Structure(HTMLParser):
    """Every tag with the names of its attributes and all addresses, the comments, and the text between."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.comments = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        addresses = [value for name, value in attrs if name in ("href", "src", "xlink:href", "action", "style")]
        self.tags.append((tag, [name for name, _ in attrs], [a for a in addresses if tag != "path"]))

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        self.comments.append(data)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    directory = records(tmp_path_factory.mktemp("hostile"), HOSTILE)
    write_report(directory)
    return directory


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    directory = records(tmp_path_factory.mktemp("harmless"), HARMLESS)
    write_report(directory)
    return directory


HTML = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "nav", "ul", "li", "a", "div", "table", "thead",
    "tbody", "tr", "th", "td", "span", "small", "figure", "figcaption", "details", "summary", "article", "section", "header", "strong",
    "pre", "dl", "dt", "dd", "script", "img", "iframe", "object", "embed", "link", "base", "form", "input", "button", "video",
}  # fmt: skip
SVG = {"svg", "g", "path", "text", "tspan", "use", "defs", "clippath", "rect", "image", "style", "metadata"}


def without_drawings(tags):
    """The tags outside SVG: a longer label moves the marks of a plot, and the ids that hang on them."""
    return [(tag, names, addresses) for tag, names, addresses in tags if tag in HTML]


def test_hostile_text_adds_nothing_to_the_page_but_text(hostile, harmless):
    page = (hostile / "report.html").read_text()
    found, expected = Structure(page), Structure((harmless / "report.html").read_text())
    assert without_drawings(found.tags) == without_drawings(expected.tags)
    assert {tag for tag, _, _ in found.tags} <= (HTML | SVG) - {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "link",
        "base",
        "form",
    }
    assert not [name for _, names, _ in found.tags for name in names if name.startswith("on")]
    assert found.comments == [c for c in found.comments if "[a](" not in c]
    text = "".join(found.text)
    assert in_codes(MARKUP).split("{{")[0] in text and "{{7*191}}" in text and "1337" not in text
    assert not ACTING.search(page)


def test_the_page_loads_nothing_and_forbids_it_too(hostile):
    page = (hostile / "report.html").read_text()
    found = Structure(page)
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    assert policy and policy[1].startswith("default-src 'none'; ") and "script-src" not in policy[1]
    assert page.index(policy[0]) < page.index("<title>") < page.index("<style>")
    addresses = [a for _, names, found_there in found.tags for a in found_there if "style" not in names]
    assert addresses and all(a.startswith(("#", "data:image/png;base64,")) for a in addresses)
    assert not re.search(r"url\((?!#)|@import", re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL))


def test_hostile_text_adds_nothing_to_a_docs_page_but_text(hostile, harmless, tmp_path):
    def kinds(directory, name):
        write_page(directory, tmp_path / name)
        text = (tmp_path / name).read_text()
        blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
        inline = [child for block in blocks for child in block.children or ()]
        return text, [
            (t.type, t.tag, t.attrGet("href")) for t in [*blocks, *inline] if t.type not in ("text", "text_special")
        ]

    text, found = kinds(hostile, "page.md")
    assert found == kinds(harmless, "page.md")[1]
    assert not [kind for kind, _, _ in found if kind.startswith("html")] and not ACTING.search(text)


def test_an_arm_that_no_recipe_could_name_is_refused(tmp_path):
    directory = records(tmp_path, HARMLESS)
    results = json.loads((directory / "results.json").read_text())
    results["arms"][HOSTILE] = results["arms"].pop("single")
    (directory / "results.json").write_text(json.dumps(results))
    with pytest.raises(BadInput, match="is no name of an arm"):
        write_report(directory)


def test_a_report_prints_no_control_characters_of_its_records(hostile, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "report", hostile)
    assert code == 0 and "⟨U+001B⟩[2J" in out and not ACTING.search(out + err)
