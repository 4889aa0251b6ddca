"""MLflow as cluster/kubernetes/base/platform starts it: with the file and the variables of docs/kubernetes.md, it asks for a
password."""

import re
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
import yaml

from tests.support.mlflow_server import Server

ROOT = Path(__file__).parents[2]
USER, PASSWORD = "rlhf-bench", "of-twelve-or-more"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("passwords")
    documents = list(yaml.safe_load_all((ROOT / "cluster/kubernetes/base/platform/mlflow.yaml").read_text()))
    (deployment,) = (d for d in documents if d["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    command = container["command"]
    (users,) = re.findall(r"```ini\n(.+?)```", (ROOT / "docs/kubernetes.md").read_text("utf-8"), re.DOTALL)
    config = folder / "basic_auth.ini"
    # Users and runs in one database, as there.
    config.write_text(re.sub(r"postgresql://\S+", f"sqlite:///{folder / 'mlflow.db'}", users))
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a long random text",
    }  # fmt: skip
    started = Server(folder, options=command[command.index("--app-name") :], variables=variables)
    yield started
    started.kill()


@pytest.mark.parametrize("sent", [None, f"{USER}:a-guess-of-some-length", f"somebody:{PASSWORD}"])
@pytest.mark.parametrize(
    "path", ["api/2.0/mlflow/experiments/search?max_results=5", "api/2.0/mlflow-artifacts/artifacts"]
)
def test_nobody_reads_without_the_password(server, path, sent):
    headers = {"Authorization": f"Basic {b64encode(sent.encode()).decode()}"} if sent else {}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{server.address}/{path}", headers=headers), timeout=60)
    assert refused.value.code == 401


def test_a_client_with_the_password_in_its_environment_writes_and_reads(server, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    client = MlflowClient(server.address)
    run = client.create_run(client.create_experiment("with-a-password"))
    client.log_metric(run.info.run_id, "score", 0.5)
    assert client.get_run(run.info.run_id).data.metrics == {"score": 0.5}
