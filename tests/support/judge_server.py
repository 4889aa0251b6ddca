"""A server on loopback that speaks as much of the OpenAI API as a judge needs: an external system, with a script for every kind of
trouble that real ones make."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], str]
"""Status, headers, body."""


class JudgeServer(ThreadingHTTPServer):
    """Answers POST /v1/chat/completions by `script(request, number)`. `requests`: the bodies, in their order; `most_at_once`: of
    those that were in work."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, script: Callable[[dict[str, Any], int], Reply], seconds: float = 0.0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.seconds = script, seconds
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_work = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        if not asked:  # the client has gone
            self.close_connection = True
            return
        request = json.loads(asked)
        with server.lock:
            number = len(server.requests)
            server.requests.append(request)
            server.headers.append(dict(self.headers))
            server.at_work += 1
            server.most_at_once = max(server.most_at_once, server.at_work)
        try:
            time.sleep(server.seconds)
            status, headers, body = server.script(request, number)
            if status == 0:  # a server that dies in the middle
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            data = body.encode()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client has gone
            self.close_connection = True
        finally:
            with server.lock:
                server.at_work -= 1

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def judge_server(script: Callable[[dict[str, Any], int], Reply], seconds: float = 0.0):
    server = JudgeServer(script, seconds)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def said(content: str | None, usage: dict[str, int] | None = None, **message: Any) -> Reply:
    """A reply as the API has it. `usage`: 100 tokens of the prompt and 5 of the reply where nothing else is named; {} is none."""
    counted = {"prompt_tokens": 100, "completion_tokens": 5} if usage is None else usage
    data = {"choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}]}
    return 200, {"Content-Type": "application/json"}, json.dumps(data | ({"usage": counted} if counted else {}))


def shown(request: dict[str, Any]) -> tuple[str, str]:
    """The two responses in a request by the project's own prompt, in the order in which they are shown."""
    text = request["messages"][0]["content"]
    found = re.search(r"\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\n\[Your verdict\]", text, re.DOTALL)
    assert found is not None, text
    return found[1], found[2]


def longer_wins(request: dict[str, Any], number: int = 0) -> Reply:
    """A judge with a simple taste."""
    first, second = map(len, shown(request))
    return said("[[A]]" if first > second else "[[B]]" if second > first else "[[C]]")


def always(text: str) -> Callable[[dict[str, Any], int], Reply]:
    return lambda request, number: said(text)
