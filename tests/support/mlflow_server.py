"""An `mlflow server` on loopback that can be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path


class Server:
    """`folder` gets its log, its artifacts and, unless another store is named, its store. With `options` and `variables` it is
    started."""

    def __init__(
        self,
        folder: Path,
        store: Path | None = None,
        options: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ):
        self.folder, self.store = folder, store or folder / "mlflow.db"
        self.options, self.variables = options, variables or {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Returns once it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.store}"),
            *("--artifacts-destination", str(self.folder / "files"), *self.options),
        ]
        with open(self.folder / "log", "w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"} | self.variables,
            )  # fmt: skip
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=2).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        """No effect where it is down."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # its worker too
            self.process.wait(timeout=20)

    def copy_store(self, copy: Path) -> None:
        """The store as it is now, a whole one."""
        with closing(sqlite3.connect(self.store)) as store, closing(sqlite3.connect(copy)) as other:
            store.backup(other)

    def set_back(self, copy: Path) -> None:
        """To an older copy of its store. It is down for a moment."""
        self.kill()
        shutil.copyfile(copy, self.store)
        self.start()
