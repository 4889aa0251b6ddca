"""What a reader of MLflow sees: its pages in headless Chromium, on the store of a real comparison, from a real server.

`make test` installs Chromium where it is missing. Without it these tests are skipped, and in CI they fail.
"""

import json
import re
import socket
from urllib.parse import quote

import pytest

from tests.support.mlflow_server import Server

WAIT = 60_000  # milliseconds; a busy machine is slow to draw
ARMS = ("ppo", "dpo-offline", "dpo-mixed", "adaptive-online", "ppo-ahead")


@pytest.fixture(scope="module")
def server(chromium, compared, tmp_path_factory):
    """`mlflow server` on the comparison's store; its address."""
    server = Server(tmp_path_factory.mktemp("server"), store=compared.directory.parent / "mlflow.db")
    yield server.address
    server.kill()


@pytest.fixture(scope="module")
def runs(compared):
    """The comparison's runs by name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{compared.directory.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    found = client.search_runs([experiment], f"tags.run_key = '{compared.summary['run_key']}'")
    return {run.info.run_name: run for run in found}


@pytest.fixture
def page(chromium):
    opened = chromium.new_page(viewport={"width": 1440, "height": 900})
    opened.set_default_timeout(WAIT)
    yield opened
    opened.close()


def run_page(address, run, rest=""):
    return f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{rest}"


def compare_page(address, runs):
    arms = [runs[f"{arm} · seed 1"] for arm in ARMS]
    chosen = quote(json.dumps([run.info.run_id for run in arms]))
    return f"{address}/#/compare-runs?runs={chosen}&experiments={quote(json.dumps([arms[0].info.experiment_id]))}"


def test_the_comparisons_page_has_verdict_table_arms_data_and_a_link_to_the_recipe(server, runs, page):
    page.goto(run_page(server, runs["comparison"]))
    page.get_by_text("At equal compute").first.wait_for()
    table = page.locator("table", has_text="Against base").first.inner_text()
    assert all(f"\n{arm}\t" in table for arm in ARMS)
    page.get_by_role("link", name="dpo-offline · seed 1").first.wait_for()  # a child
    page.get_by_text(re.compile("^(demonstrations|train_prompts|off_policy_pairs|held_out_)")).first.wait_for()
    address = page.get_by_role("link", name="The recipe", exact=True).get_attribute("href")
    page.goto(f"{server}/{address}")
    page.get_by_text("weaker_policy_steps").first.wait_for()  # a key of the recipe, as the artifact shows it


def test_the_report_opens_inside_mlflow(server, runs, page):
    page.goto(run_page(server, runs["comparison"], "/artifacts/report.html"))
    report = page.frame_locator("iframe").last
    report.get_by_text("tiny: which method does best with the same compute?").wait_for()
    shown = report.locator("body").inner_text()
    assert all(arm in shown for arm in ARMS)
    assert report.locator("svg, img").count() > 3  # its plots


@pytest.mark.parametrize("metric", ["by_budget_permille/score/in_distribution", "by_tokens/score/in_distribution"])
def test_from_the_compare_page_to_the_arms_curves_against_compute_and_tokens(metric, server, runs, page):
    page.goto(compare_page(server, runs))
    page.get_by_text(f"Comparing {len(ARMS)} Runs").wait_for()
    names = page.inner_text("body")
    assert all(f"{arm} · seed 1" in names for arm in ARMS)
    page.get_by_role("link", name=metric, exact=True).first.click()
    page.wait_for_function(
        "count => [...document.querySelectorAll('path.js-line')].filter(p => p.getAttribute('d')?.includes('L') || "
        "p.getAttribute('d')?.includes('C')).length >= count",
        arg=len(ARMS),
    )
    shown = page.inner_text("body")
    assert all(f"{arm} · seed 1" in shown for arm in ARMS) and metric in shown


def test_the_nodes_load_is_drawn_among_the_system_metrics(server, runs, page):
    load = f"system/{socket.gethostname()}/cpu_utilization_percentage"
    assert load in runs["comparison"].data.metrics
    page.goto(run_page(server, runs["comparison"], "/system-metrics"))
    page.get_by_text("cpu_utilization_percentage").first.wait_for()
    page.locator("path.js-line, .scatterlayer .point").first.wait_for(state="attached")


def test_the_registry_shows_a_version_of_every_arm_with_its_alias(server, page):
    page.goto(f"{server}/#/models/tiny-policies")
    page.get_by_text("ppo-ahead-seed1").first.wait_for()
    shown = page.inner_text("body")
    assert all(f"{arm}-seed1" in shown for arm in ARMS) and "best" in shown and f"Version {len(ARMS)}" in shown
