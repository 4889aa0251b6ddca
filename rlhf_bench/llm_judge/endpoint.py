"""One question to an OpenAI-compatible server, and what may come of it, by name.

The key is sent in the header of requests and is nowhere else: whatever a server says is read without it.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from rlhf_bench.core.errors import BadInput
from rlhf_bench.core.text import one_line
from rlhf_bench.llm_judge.prompt import MARKS, verdict

Failure = Literal[
    "unreachable",
    "slow",
    "busy",
    "server error",
    "denied",
    "not found",
    "rejected",
    "no answer",
    "refused",
    "no verdict",
]
"""unreachable: no connection, or one that broke. slow: no answer in time. busy: 429. server error: 5xx. denied: 401 or 403.
not found: 404. rejected: any other status. no answer: not what the API answers. refused: the model declines to judge.
no verdict: none of the three marks stands in its reply."""

FATAL: tuple[Failure, ...] = ("denied", "not found")
"""No other question would fare better."""
PASSING: tuple[Failure, ...] = ("unreachable", "slow", "busy", "server error", "no answer")
"""Of the server, and not of the question: the same question may be answered later."""
MAX_SAID = 200
"""Characters of a server's own words that are shown."""
MAX_ANSWER_BYTES = 2**20
OVERHEAD_TOKENS = 64
"""More than what chat templates put around one message."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request: the reply, or the failure and what the server said; its tokens (None where the server did not count them);
    and how many seconds the server asks to wait."""

    reply: str | None
    failure: Failure | None = None
    said: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    wait_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A judge: `url` is the API's base, such as http://127.0.0.1:8000/v1. `max_tokens` of a reply. `constrained`: the server
    is told by `response_format` to let the model write nothing but a verdict."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout_seconds: float = 60.0
    max_tokens: int = 64
    constrained: bool = False

    @property
    def on_loopback(self) -> bool:
        return is_loopback(urlsplit(self.url).hostname or "")

    def body(self, message: str) -> dict[str, Any]:
        """The request, which also identifies the question: the same request has the same answer."""
        found: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        return found | ({"response_format": _VERDICT_ONLY} if self.constrained else {})

    def most_tokens(self, message: str) -> tuple[int, int]:
        """Bounds of the tokens of a prompt and of its reply: a token is a byte or more."""
        return len(message.encode()) + OVERHEAD_TOKENS, self.max_tokens

    def client(self, connections: int) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        # A proxy of the environment cannot reach this machine's loopback.
        return httpx.AsyncClient(
            headers=headers, timeout=httpx.Timeout(self.timeout_seconds, pool=None), trust_env=not self.on_loopback,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )  # fmt: skip

    async def ask(self, client: httpx.AsyncClient, message: str) -> Attempt:
        """Send one request. Never raises for what the server or the network does."""
        try:
            async with asyncio.timeout(self.timeout_seconds):
                status, headers, text = await self._post(client, message)
        except (TimeoutError, httpx.TimeoutException):
            return Attempt(None, "slow", f"no answer within {self.timeout_seconds:g} s")
        except (httpx.TransportError, httpx.DecodingError) as error:
            return Attempt(None, "unreachable", self._shown(str(error) or type(error).__name__))
        if status != 200:
            wait = _wait_seconds(headers.get("Retry-After"))
            return Attempt(None, _failure(status), self._shown(f"{status} {text}"), wait_seconds=wait)
        return self._read(text)

    async def _post(self, client: httpx.AsyncClient, message: str) -> tuple[int, httpx.Headers, str]:
        """Status, headers and text; of a text that is far longer than any answer, the beginning."""
        found = bytearray()
        async with client.stream("POST", f"{self.url}/chat/completions", json=self.body(message)) as answer:
            async for part in answer.aiter_bytes():
                found += part
                if len(found) > MAX_ANSWER_BYTES:
                    break
        return answer.status_code, answer.headers, found[:MAX_ANSWER_BYTES].decode("utf-8", errors="replace")

    def _read(self, text: str) -> Attempt:
        try:
            data = json.loads(text)
            choice, usage = data["choices"][0], data.get("usage") or {}
            message = choice["message"]
            reply, refusal = message.get("content"), message.get("refusal")
            tokens = tuple(_count(usage.get(f"{side}_tokens")) for side in ("prompt", "completion"))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Attempt(None, "no answer", self._shown(text))
        if refusal or choice.get("finish_reason") == "content_filter":
            return Attempt(None, "refused", self._shown(str(refusal or "content_filter")), *tokens)
        if not isinstance(reply, str) or verdict(reply) is None:
            return Attempt(None, "no verdict", self._shown(str(reply)), *tokens)
        return Attempt(self._without_key(reply), None, "", *tokens)

    def _shown(self, text: str) -> str:
        return one_line(self._without_key(text))[:MAX_SAID]

    def _without_key(self, text: str) -> str:
        """Some servers repeat a request's headers in their answers."""
        return text.replace(self.key, "…") if self.key else text


_VERDICT_ONLY = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"verdict": {"type": "string", "enum": list(MARKS)}},
            "required": ["verdict"],
            "additionalProperties": False,
        },
    },
}


def check_endpoint(url: str, key_variable: str, key: str) -> str:
    """The URL without a slash at its end. Raises BadInput with all that is wrong with it, or with the key: never with its value."""
    problems = []
    scheme, host, bare = _parts(url)
    shown = f"--endpoint {url}"
    if not bare:
        problems.append(
            "--endpoint: has a user, a password or a query; give the address alone, and the key in the environment "
            f"({key_variable})"
        )
    elif scheme not in ("http", "https") or not host:
        problems.append(f"{shown}: is no address of an API; give its base, such as http://127.0.0.1:8000/v1")
    elif not key and not is_loopback(host):
        problems.append(
            f"{shown}: is another machine, and {key_variable} is not set; set it to the server's key (to any word where the "
            "server asks for none), or name another variable by --key-variable"
        )
    elif key and scheme == "http" and not is_loopback(host):
        problems.append(f"{shown}: would send the key in the clear; give an https:// address, or a tunnel on 127.0.0.1")
    if not re.fullmatch(r"[!-~]*", key):
        problems.append(f"{key_variable}: holds a space, a line end or another character that no key has; set it again")
    if problems:
        raise BadInput(*problems)
    return url.rstrip("/")


def _parts(url: str) -> tuple[str, str, bool]:
    """Scheme and host, empty where it is no address; and whether nothing in it may be a secret."""
    bare = not any(mark in url for mark in "@?#")
    try:
        place = urlsplit(url)
        return (place.scheme, place.hostname or "", bare) if place.port is None or place.port else ("", "", bare)
    except ValueError:
        return "", "", bare


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _failure(status: int) -> Failure:
    named: dict[int, Failure] = {401: "denied", 403: "denied", 404: "not found", 408: "slow", 429: "busy"}
    return named.get(status, "server error" if status >= 500 else "rejected")


def _wait_seconds(text: str | None) -> float | None:
    """Of the header Retry-After: a number of seconds, or a date."""
    if text is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text.strip()):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
