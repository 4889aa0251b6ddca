"""What docs/security.md promises: hostile models, records, recipes and texts do nothing but stand there as text."""

import ast
import io
import json
import os
import pickle
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from markdown_it import MarkdownIt

from cluster.local_job import print_where_to_look
from rlhf_bench.cli import main as cli
from rlhf_bench.cli.run import guard_local_cluster
from rlhf_bench.core.errors import BadInput, RunFailed
from rlhf_bench.core.text import in_codes, one_line, printable, without_passwords
from rlhf_bench.core.types import Row
from rlhf_bench.core.yaml import read_yaml
from rlhf_bench.experiment.progress import ProgressDisplay
from rlhf_bench.models.loading import load_model
from rlhf_bench.models.tokenizer import TokenizerSettings, build_tokenizer
from rlhf_bench.models.validation import pretrained_model
from rlhf_bench.recipe import load_series, parse_recipe
from rlhf_bench.report import write_report
from rlhf_bench.report.docs_page import write_page
from rlhf_bench.report.series import series_labels
from rlhf_bench.tasks.loading.data_source import Place, rows_at
from rlhf_bench.training.cache import Cache
from rlhf_bench.training.reference import reference_logprobs
from tests.support.scripted import Learner
from tests.unit.report.test_report import record

ROOT = Path(__file__).parents[3]
SHIPPED = [
    path
    for folder in ("rlhf_bench", "actors", "cluster", "requirements", "docs")
    for path in (ROOT / folder).rglob("*.py")
]

ACTING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
)
"""Characters that a terminal obeys, or that hide or reorder others; written down apart from the code that is tested."""
CONTROLS = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b31m\x90q\x9c\u202egnp.\u2066x\u2069\u200b\ufeff\u2028\rover\x08\x7f\x85"
MARKUP = (
    "<script>steal()</script>\"><img src=x onerror=steal()>'><svg/onload=steal()> {{7*191}}{% raw %} ${7*191} </pre></td>"
    "<!-- [a](javascript:steal()) ![b](http://evil.example/b.png) <http://evil.example> `c` | # *d* --- \\"
)
HOSTILE = MARKUP + CONTROLS
HARMLESS = "plain text"


def main(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["rlhf-bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    return ended.value.code or 0, shown.out, shown.err


# Models


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "unpickled")


def llama(folder, **more):
    """A folder with the configuration of a tiny Llama, and no weights."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 8,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 8,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | more))
    return folder


@pytest.mark.parametrize(("file", "config"), [
    ("pytorch_model.bin", {}), ("adapter_model.bin", {"transformers_weights": "adapter_model.bin"}),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["causal", "scalar"])
def test_pickled_weights_are_not_loaded(kind, file, config, tmp_path):
    """Not those either that torch would unpickle with care, and that would otherwise be a model."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = llama(tmp_path / "model", **config)
    torch.save(AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(folder)).state_dict(), folder / file)
    with pytest.raises(OSError, match="model.safetensors"):
        load_model(str(folder), kind, "float32", 0)
    (folder / file).write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    with pytest.raises(OSError, match="model.safetensors"):
        load_model(str(folder), kind, "float32", 0)
    assert not (tmp_path / "marker").exists()


def test_an_adapter_beside_a_model_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = llama(tmp_path / "model")
    AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(folder)).save_pretrained(folder)
    assert pretrained_model(str(folder), 8, False)[1].layers == 1
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}')
    with pytest.raises(BadInput, match="adapter_config.json"):
        pretrained_model(str(folder), 8, False)


@pytest.mark.parametrize("answer", ["y\n" * 20, ""], ids=["yes", "nobody"])
def test_a_models_own_code_is_not_run_nor_asked_about(answer, tmp_path, monkeypatch):
    code = f"from pathlib import Path\nPath({str(tmp_path / 'marker')!r}).write_text('run')\n"
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    folder = llama(tmp_path / "model", model_type="own", auto_map=own)
    (folder / "own.py").write_text(code + "class Own: pass\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": own}))
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))  # transformers would ask, and take a yes
    with pytest.raises(BadInput, match="model.name_or_path"):
        pretrained_model(str(folder), 8, False)
    with pytest.raises(ValueError):
        load_model(str(folder), "causal", "float32", 0)
    with pytest.raises(BadInput, match="tokenizer.name_or_path"):
        build_tokenizer(TokenizerSettings(kind="pretrained", name_or_path=str(folder)), [])
    assert not (tmp_path / "marker").exists() and sys.stdin.read() == answer


def test_arrays_of_the_cache_are_not_unpickled(tmp_path):
    weights = llama(tmp_path / "base")
    (weights / "model.safetensors").write_bytes(b"weights")
    cache, rows = Cache(tmp_path / "cache"), [Row("r", (1,), ((5, 2),))]
    reference_logprobs(Learner(), cache, weights, rows, 1.0, "float32")
    (array,) = (tmp_path / "cache").glob("reference-*/logprobs.npy")
    np.save(array, np.array([Bomb(tmp_path / "marker")], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        reference_logprobs(Learner(), cache, weights, rows, 1.0, "float32")
    assert not (tmp_path / "marker").exists()


FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "torch.load", "pickle.load", "pickle.loads", "cloudpickle.loads", "joblib.load",
    "dill.loads", "marshal.loads", "shelve.open", "pd.read_pickle", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "yaml.safe_load", "tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive", "tempfile.mktemp",
    "load_dataset",
}  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_shipped_runs_or_unpickles_what_it_reads(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name, where = ast.unparse(node.func), f"{path}:{node.lineno}"
        assert name not in FORBIDDEN, where
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        for key in ("shell", "trust_remote_code", "allow_pickle"):
            assert key not in given or ast.unparse(given[key]) == "False", where
        if name == "datasets.load_dataset":  # what it must not run, the next test brings
            assert path == ROOT / "rlhf_bench/tasks/loading/data_source.py" and "streaming" in given, where
        if name.endswith(".from_pretrained") and not name.startswith("Auto"):
            pytest.fail(f"{where}: load models in models/loading.py and tokenizers in models/tokenizer.py")


def a_script(folder, marker):
    (folder / f"{folder.name}.py").write_text(f"open({str(marker)!r}, 'w')\n")


def a_pickle(folder, marker):
    (folder / "train.pkl").write_bytes(pickle.dumps(Bomb(marker)))


def a_pickle_by_its_card(folder, marker):
    a_pickle(folder, marker)
    card = "configs:\n- config_name: default\n  data_files: train.pkl\nbuilder_name: pandas\n"
    (folder / "README.md").write_text(f"---\n{card}---\n")


@pytest.mark.parametrize("put", [a_script, a_pickle, a_pickle_by_its_card])
def test_a_data_sets_own_code_is_not_run_nor_its_pickles_read(put, tmp_path):
    folder, marker = tmp_path / "brings", tmp_path / "marker"
    folder.mkdir()
    put(folder, marker)
    with pytest.raises(BadInput, match="task.prompts: .* cannot be read as a data set"):
        list(rows_at(Place(source=str(folder)), "task.prompts"))
    assert not marker.exists()


# YAML

LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 24))])
MERGES = "\n".join(["m0: &m0 {k: 1}", *(f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}" for i in range(1, 24))])


@pytest.mark.parametrize(("text", "said"), [
    (f"{LAUGHS}\nvary: {{key: seeds, values: [*a23]}}", "more than 50000 values"),
    (f"{LAUGHS}\narms: {{a: {{method: *a23}}}}", "more than 50000 values"),
    (MERGES, "is nested more than 20 deep"),
    ("task: &t {kind: files, more: *t}", "contains itself by an alias"),
    ("task: " + "[" * 5000, "is nested more than 20 deep"),
    ("task: !!python/object/apply:os.system ['touch marker']", "is no value of a recipe"),
    ("name: 2024-13-45", "is no value of a recipe; quote it"),
], ids=["lists", "arms", "merges", "circle", "depth", "object", "date"])  # fmt: skip
def test_a_hostile_recipe_is_refused_in_one_line_and_at_once(text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text(text)
    code, out, err = main(monkeypatch, capsys, "check", "evil.yaml")
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert "evil.yaml: " in err and said in err
    assert not (tmp_path / "marker").exists()


def test_aliases_that_only_spare_writing_are_read():
    assert read_yaml("a: &a {x: 1, y: [2]}\nb: *a\nc: {<<: *a, x: 3}") == {
        "a": {"x": 1, "y": [2]}, "b": {"x": 1, "y": [2]}, "c": {"x": 3, "y": [2]},
    }  # fmt: skip
    with pytest.raises(yaml.YAMLError, match="undefined alias"):
        read_yaml("a: *b")


# Records and paths


SERIES = {"name": "s", "task": {"kind": "arithmetic"}, "compute": {"limit": 1e12}, "arms": {"a": {"method": "dpo"}}}


@pytest.mark.parametrize("label", ["../../elsewhere", "/elsewhere", "a=/../../elsewhere", ""])
def test_a_series_reads_and_writes_within_its_folder_only(label, tmp_path):
    (tmp_path / "series.json").write_text(json.dumps({"labels": [label]}))
    with pytest.raises(BadInput, match="is no comparison of a series"):
        series_labels(tmp_path)


def test_a_value_that_would_leave_the_output_is_refused(tmp_path):
    path = tmp_path / "series.yaml"
    path.write_text(yaml.safe_dump(SERIES | {"vary": {"key": "description", "values": ["/../../elsewhere"]}}))
    with pytest.raises(BadInput, match="vary: .* cannot name a folder within the output"):
        load_series(path)
    labels = [v.label for v in load_series(path, ["vary.values=[/data/a, b..c]"])]
    assert labels == ["description=/data/a", "description=b..c"]


# Text in pages


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
    told = {"machine": text, "commit": text, "run_key": text}
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


def without_drawings(tags):
    """The tags outside SVG: a longer label moves the marks of a plot, and the ids that hang on them."""
    return [(tag, names, addresses) for tag, names, addresses in tags if tag in HTML]


HTML = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "nav", "ul", "li", "a", "div", "table", "thead",
    "tbody", "tr", "th", "td", "span", "small", "figure", "figcaption", "details", "summary", "article", "section", "header", "strong",
    "pre", "dl", "dt", "dd", "script", "img", "iframe", "object", "embed", "link", "base", "form", "input", "button", "video",
}  # fmt: skip
SVG = {"svg", "g", "path", "text", "tspan", "use", "defs", "clippath", "rect", "image", "style", "metadata"}


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


# Text on terminals and in logs


def test_in_codes_nothing_acts_and_what_shows_stays():
    assert not ACTING.search(in_codes(HOSTILE + "\ud800\ue000"))
    plain = "Zürich, 數學, Ελλάδα, ½ × π → ∞ – “a”\t🙂\nnext"
    assert in_codes(plain) == printable(plain) == plain
    assert in_codes("\x1b[2J\u202e") == "⟨U+001B⟩[2J⟨U+202E⟩"
    assert one_line("one\r\ntwo\u2028three\x1b") == "one two three⟨U+001B⟩"


def test_a_report_prints_no_control_characters_of_its_records(hostile, monkeypatch, capsys):
    code, out, err = main(monkeypatch, capsys, "report", hostile)
    assert code == 0 and "⟨U+001B⟩[2J" in out and not ACTING.search(out + err)


def files_recipe(folder, rows, **task):
    """A recipe on a file of the user's own: its path."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text)
    (folder / "held.jsonl").write_text('{"prompt": "held?", "reference": "h"}\n')
    recipe = SERIES | {"task": {"kind": "files", "prompts": "./train.jsonl", "held_out": "./held.jsonl", **task}}
    (folder / "own.yaml").write_text(yaml.safe_dump(recipe | {"description": HOSTILE}))
    return folder / "own.yaml"


ROW = {"prompt": "a?", "reference": "b", "response": "c", "id": HOSTILE}


@pytest.mark.parametrize(("rows", "task"), [
    ([ROW, ROW | {"prompt": "again?"}], {"id_column": "id"}),
    ([{HOSTILE: 1}], {}),
    ([ROW], {"prompts": f"./{CONTROLS}.jsonl"}),
    ([ROW], {"judge": CONTROLS}),
    ([ROW], {HOSTILE: 1}),
    ([ROW | {"reference": CONTROLS}], {"judge": "number"}),
], ids=["id", "column", "path", "value", "key", "reference"])  # fmt: skip
def test_an_error_about_the_users_data_prints_none_of_its_control_characters(rows, task, tmp_path, monkeypatch, capsys):
    code, out, err = main(monkeypatch, capsys, "check", files_recipe(tmp_path, rows, **task))
    assert code == 2 and out == "" and "owned" in err and not ACTING.search(err)
    assert all(line.startswith("error: ") for line in err.splitlines())


def test_check_prints_a_recipe_without_its_control_characters(tmp_path, monkeypatch, capsys):
    path = tmp_path / "own.yaml"
    quickstart = str(ROOT / "recipes" / "quickstart.yaml")
    path.write_text(yaml.safe_dump({"extends": quickstart, "name": "own", "description": HOSTILE}))
    code, out, err = main(monkeypatch, capsys, "check", path)
    assert code == 0, err
    assert "⟨U+202E⟩" in out and not ACTING.search(out + err)


def test_failures_and_tracebacks_print_no_control_characters(capsys):
    def fails():
        raise RunFailed(f"an engine failed: {HOSTILE}")

    assert cli.exit_code(fails) == 1
    try:
        raise KeyError(HOSTILE) from OSError(HOSTILE)
    except KeyError:
        cli.show_traceback(*sys.exc_info())
    err = capsys.readouterr().err
    assert err.startswith("failed: an engine failed: ") and "Traceback" in err and not ACTING.search(err)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_and_its_log_hold_no_control_characters_of_data(stream, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = stream()
    display = ProgressDisplay(tmp_path, shown)
    display.begin("arm", 1, 0, 1)
    display.say(f"{HOSTILE}\n2024-01-01T00:00:00 a line of its own; train.jsonl:100: [bold]a[/bold]")
    display.update("arm", 1, 1, {"loss": 0.5}, 0.1)
    display.close()
    log = (tmp_path / "events.log").read_text()
    assert not ACTING.search(log) and not re.search(r"^2024", log, re.MULTILINE)
    own = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", shown.getvalue().replace("\x1b[2J", "!!").replace("\x1b[31m", "!!"))
    assert "!!" not in own and not ACTING.search(own)  # rich's own sequences aside, of which it needs neither
    for text in (log, shown.getvalue()):
        assert "⟨U+001B⟩[2J" in text and "train.jsonl:100: [bold]a[/bold]" in text


# Secrets

SECRET = "hunter2"


@pytest.mark.parametrize("uri", [
    f"http://user:{SECRET}@mlflow.example:5000", f"https://{SECRET}@mlflow.example", f"HTTPS://:{SECRET}@mlflow.example",
    f"postgresql+psycopg2://user:{SECRET}@db/mlflow", f"mysql://db/mlflow?user=u&password={SECRET}",
    f"http://user:{SECRET}:@:x@mlflow.example",
])  # fmt: skip
def test_a_password_in_a_recipes_tracking_uri_is_refused_and_never_shown(uri, tmp_path, monkeypatch, capsys):
    with pytest.raises(BadInput) as refused:
        parse_recipe(SERIES | {"tracking": {"uri": uri}})
    (line,) = refused.value.problems
    assert (
        line.startswith("tracking.uri: holds a password") and "MLFLOW_TRACKING_PASSWORD" in line and SECRET not in line
    )
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(SERIES | {"tracking": {"uri": uri}}))
    for arguments in (
        ("check", path),
        ("check", path, f"tracking.uri.x={uri}"),
        ("check", path, f"tracking.uri={uri}"),
    ):
        code, out, err = main(monkeypatch, capsys, *arguments)
        assert code == 2 and SECRET not in out + err


@pytest.mark.parametrize("uri", [
    "http://mlflow.example:5000/a@b:c", "https://mlflow.example", "postgresql://mlflow@db/mlflow", "sqlite:////data/a@b:c.db",
    "databricks", "mlruns",
])  # fmt: skip
def test_an_address_without_a_secret_is_taken_as_it_is(uri):
    assert parse_recipe(SERIES | {"tracking": {"uri": uri}}).tracking.uri == uri == without_passwords(uri)


def test_a_password_in_the_environments_address_is_never_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@mlflow.example:5000")
    (tmp_path / "recipe.yaml").write_text("tracking: {uri: null}")
    print_where_to_look(tmp_path)
    shown = capsys.readouterr().out
    assert "MLflow:  http://…@mlflow.example:5000" in shown and SECRET not in shown
    stream = io.StringIO()
    display = ProgressDisplay(tmp_path, stream)
    display.say(f"MLflow at {os.environ['MLFLOW_TRACKING_URI']} is not to be had; the run goes on")
    display.close()
    assert SECRET not in stream.getvalue() + (tmp_path / "events.log").read_text()


READ = {
    "RAY_ADDRESS", "RAY_AUTH_MODE", "RLHF_BENCH_CACHE", "RLHF_BENCH_COMMIT", "MLFLOW_TRACKING_URI", "VLLM_LOGGING_LEVEL",
    "RAY_JOB_CONFIG_JSON_ENV_VAR", "RLHF_BENCH_PROFILE", "PATH",
}  # fmt: skip
"""The variables whose values the program reads. Of these, MLFLOW_TRACKING_URI alone may hold a secret."""


def test_no_other_environment_variable_is_read():
    """What is not read cannot get into parameters, logs, recipes or reports."""
    constants = {"ENABLED": "RLHF_BENCH_PROFILE"}
    found = set()
    for path in SHIPPED:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            name = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Name)) else ""
            assert name not in ("os.getenv", "os.environb", "environ"), f"{path}: read variables by os.environ"
            if name != "os.environ":
                continue
            use = parents[node]
            if isinstance(use, ast.AugAssign) or (isinstance(use, ast.Subscript) and isinstance(use.ctx, ast.Store)):
                continue  # set, not read
            call = parents[use]
            if isinstance(use, ast.Attribute) and use.attr in ("get", "pop", "setdefault", "update"):
                assert isinstance(call, ast.Call)
                if use.attr in ("get", "pop"):
                    found.add(ast.unparse(call.args[0]).strip("'"))
            elif isinstance(use, ast.Subscript):
                found.add(ast.unparse(use.slice).strip("'"))
            else:
                assert isinstance(use, ast.Compare), f"{path}:{node.lineno}: the environment as a whole goes somewhere"
                found.add(ast.unparse(use.left).strip("'"))
    assert {constants.get(name, name) for name in found} == READ


# Ray and servers


@pytest.mark.parametrize("address", [{}, {"RAY_ADDRESS": ""}, {"RAY_ADDRESS": "local"}], ids=str)
def test_a_local_cluster_asks_for_a_token_of_its_own(monkeypatch, address):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    environment = os.environ | address
    monkeypatch.setattr(os, "environ", environment)
    guard_local_cluster()
    assert "RAY_ADDRESS" not in environment
    assert environment["RAY_AUTH_MODE"] == "token" and re.fullmatch("[0-9a-f]{64}", environment["RAY_AUTH_TOKEN"])
    first = environment.pop("RAY_AUTH_TOKEN")
    del environment["RAY_AUTH_MODE"]
    guard_local_cluster()
    assert environment["RAY_AUTH_TOKEN"] != first


@pytest.mark.parametrize("path", [
    path for folder in ("actors", "cluster", "tests/benchmarks", "tests/engines", "tests/end_to_end")
    for path in (ROOT / folder).rglob("*.py")
], ids=lambda path: str(path.relative_to(ROOT)))  # fmt: skip
def test_no_cluster_is_started_with_a_dashboard_for_others_or_without_a_token(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"RAY_AUTH_MODE\W+disabled|dashboard.host\W+0\.0\.0\.0", text)
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "ray.init"
            and "address='local'" in ast.unparse(node)
        ):
            assert "include_dashboard=False" in ast.unparse(node), f"{path}:{node.lineno}"


def test_benchmarks_start_ray_with_a_token(monkeypatch):
    import subprocess

    from tests.benchmarks.__main__ import _in_a_process_of_its_own, rows

    seen = {}

    def run(command, check, env):
        seen.update(env)
        Path(command[-1]).write_bytes(pickle.dumps({}))

    monkeypatch.setattr(subprocess, "run", run)
    assert _in_a_process_of_its_own(next(iter(rows().values()))) == {}
    assert seen["RAY_AUTH_MODE"] == "token" and len(seen["RAY_AUTH_TOKEN"]) == 64


def test_documents_and_makefile_open_nothing_to_the_network():
    pages = [ROOT / "Makefile", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "0.0.0.0" not in text and "RAY_AUTH_MODE=disabled" not in text, page
        for line in text.splitlines():
            if "ray start --head" in line:
                assert "--dashboard-host=127.0.0.1" in line, page
