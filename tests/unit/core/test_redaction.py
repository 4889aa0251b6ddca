"""No line shows a secret of an address, whatever characters are in it."""

import pytest

from rlhf_bench.core.text import without_passwords


@pytest.mark.parametrize(("address", "shown"), [
    ("http://me:s3cret@mlflow:5000/x", "http://…@mlflow:5000/x"),
    ("postgresql+psycopg2://me:s3/c@ret@db/mlflow", "postgresql+psycopg2://…@db/mlflow"),
    ("https://s3cret@mlflow", "https://…@mlflow"),
    ("mysql://db/mlflow?user=me&password=s3cret&ssl=1", "mysql://db/mlflow?user=me&password=…&ssl=1"),
    ("http://mlflow:5000/?token=s3cret", "http://mlflow:5000/?token=…"),
    ("https://mlflow/x?a=1&access_token=s3/c+r==&b=2", "https://mlflow/x?a=1&access_token=…&b=2"),
    ("https://mlflow/#api-key=s3cret", "https://mlflow/#api-key=…"),
    ("https://store/x?X-Amz-Signature=s3cret", "https://store/x?X-Amz-Signature=…"),
    ("postgresql://me@db/mlflow?sslkey=/keys/me&sslmode=require", "postgresql://me@db/mlflow?sslkey=/keys/me&sslmode=require"),
    ("sqlite:////home/me@office/mlflow.db", "sqlite:////home/me@office/mlflow.db"),
    ("http://mlflow:5000", "http://mlflow:5000"),
    ("http://mlflow:5000/a@b", "http://mlflow:5000/a@b"),
])  # fmt: skip
def test_no_line_shows_credentials(address, shown):
    assert without_passwords(f"request to {address} failed") == f"request to {shown} failed"
