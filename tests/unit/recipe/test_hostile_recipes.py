"""Recipes that would fill the memory, run code, leave the output's folder or show a password: refused, in one line."""

import pytest
import yaml

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.text import without_passwords
from rlhf_bench.recipe import load_series, parse_recipe
from tests.support.hostile import SECRET, SERIES, command

LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 24))])
MERGES = "\n".join(["m0: &m0 {k: 1}", *(f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}" for i in range(1, 24))])


@pytest.mark.parametrize(("text", "said"), [
    (f"{LAUGHS}\nvary: {{key: seeds, values: [*a23]}}", "more than 50000 values"),
    (f"{LAUGHS}\narms: {{a: {{method: *a23}}}}", "more than 50000 values"),
    (MERGES, "is nested more than 20 deep"),
    ("task: &t {kind: files, more: *t}", "contains itself by an alias"),
    ("task: " + "[" * 5000, "is nested more than 20 deep"),
    ("task: !!python/object/apply:os.system ['touch marker']", "is not a value that a recipe can have"),
    ("name: 2024-13-45", "is not a value that a recipe can have; quote it"),
], ids=["lists", "arms", "merges", "circle", "depth", "object", "date"])  # fmt: skip
def test_a_hostile_recipe_is_refused_in_one_line_and_at_once(text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text(text)
    code, out, err = command(monkeypatch, capsys, "check", "evil.yaml")
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert "evil.yaml: " in err and said in err
    assert not (tmp_path / "marker").exists()


def test_a_value_that_would_leave_the_output_is_refused(tmp_path):
    path = tmp_path / "series.yaml"
    path.write_text(yaml.safe_dump(SERIES | {"vary": {"key": "description", "values": ["/../../elsewhere"]}}))
    with pytest.raises(BadInput, match="vary: .* cannot name a folder within the output"):
        load_series(path)
    labels = [v.label for v in load_series(path, ["vary.values=[/data/a, b..c]"])]
    assert labels == ["description=/data/a", "description=b..c"]


@pytest.mark.parametrize("uri", [
    f"http://user:{SECRET}@mlflow.example:5000", f"https://{SECRET}@mlflow.example", f"HTTPS://:{SECRET}@mlflow.example",
    f"postgresql+psycopg2://user:{SECRET}@db/mlflow", f"mysql://db/mlflow?user=u&password={SECRET}",
    f"http://user:{SECRET}:@:x@mlflow.example", f"http://mlflow.example/?token={SECRET}", f"https://mlflow.example?api_key={SECRET}",
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
        code, out, err = command(monkeypatch, capsys, *arguments)
        assert code == 2 and SECRET not in out + err


@pytest.mark.parametrize("uri", [
    "http://mlflow.example:5000/a@b:c", "https://mlflow.example", "postgresql://mlflow@db/mlflow?sslmode=require", "sqlite:////data/a@b:c.db",
    "databricks", "mlruns",
])  # fmt: skip
def test_an_address_without_a_secret_is_taken_as_it_is(uri):
    assert parse_recipe(SERIES | {"tracking": {"uri": uri}}).tracking.uri == uri == without_passwords(uri)
