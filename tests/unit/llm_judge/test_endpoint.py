"""One request: what may come of it, by name, and what is refused before any is sent."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from rlhf_bench.core.errors import BadInput
from rlhf_bench.llm_judge.endpoint import MAX_ANSWER_BYTES, MAX_SAID, Endpoint, check_endpoint
from tests.support.judge_server import always, judge_server, said

KEY = "sk-very-secret-0123456789"


def ask(script, seconds=0.0, timeout=5.0, **settings):
    """The attempt that one request to such a server is, and the server."""
    with judge_server(script, seconds) as server:
        endpoint = Endpoint(server.url, "a-judge", KEY, timeout_seconds=timeout, **settings)

        async def once():
            async with endpoint.client(1) as client:
                return await endpoint.ask(client, "Which?")

        return asyncio.run(once()), server


def with_status(status, body="", headers=None):
    return lambda request, number: (status, headers or {}, body)


def test_a_verdict_comes_with_its_tokens():
    attempt, server = ask(always("[[B]]"))
    assert (attempt.reply, attempt.failure) == ("[[B]]", None)
    assert (attempt.prompt_tokens, attempt.completion_tokens) == (100, 5)
    (request,) = server.requests
    assert request["model"] == "a-judge" and request["temperature"] == 0 and "response_format" not in request
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_constrained_the_server_is_told_what_may_be_written():
    _, server = ask(always('{"verdict": "[[A]]"}'), constrained=True)
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["verdict"]["enum"] == ["[[A]]", "[[B]]", "[[C]]"]


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        (with_status(500), "server error"),
        (with_status(503, "busy"), "server error"),
        (with_status(429), "busy"),
        (with_status(401), "denied"),
        (with_status(403), "denied"),
        (with_status(404), "not found"),
        (with_status(400, "too long"), "rejected"),
        (with_status(302, "", {"Location": "http://127.0.0.1:9/"}), "rejected"),
        (with_status(0), "unreachable"),
        (with_status(200, "<html>"), "no answer"),
        (with_status(200, "[]"), "no answer"),
        (with_status(200, '{"choices": []}'), "no answer"),
        (with_status(200, "[" * 100_000), "no answer"),
        (with_status(200, "x" * (MAX_ANSWER_BYTES + 10)), "no answer"),
        (always("Both answers have their merits."), "no verdict"),
        (lambda request, number: said(None), "no verdict"),
        (lambda request, number: said(None, refusal="I will not compare these."), "refused"),
    ],
)
def test_every_trouble_has_a_name(script, failure):
    attempt, _ = ask(script)
    assert (attempt.reply, attempt.failure) == (None, failure)
    assert len(attempt.said) <= MAX_SAID and "\n" not in attempt.said


def test_a_filtered_reply_is_a_refusal():
    def script(request, number):
        status, headers, body = said("[[A]]")
        return status, headers, json.dumps(json.loads(body) | {"choices": [{"message": {"content": "[[A]]"}, "finish_reason": "content_filter"}]})  # fmt: skip

    assert ask(script)[0].failure == "refused"


def test_a_slow_server_is_not_waited_for():
    attempt, _ = ask(always("[[A]]"), seconds=2.0, timeout=0.2)
    assert attempt.failure == "slow" and "0.2 s" in attempt.said


def test_a_server_that_is_down_is_unreachable():
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", timeout_seconds=2)

    async def once():
        async with endpoint.client(1) as client:
            return await endpoint.ask(client, "Which?")

    assert asyncio.run(once()).failure == "unreachable"


def test_the_server_says_how_long_to_wait():
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    for header, low, high in (("3", 3, 3), ("0.5", 0.5, 0.5), (in_an_hour, 3000, 3600)):
        attempt, _ = ask(with_status(429, "", {"Retry-After": header}))
        assert low <= attempt.wait_seconds <= high, header


@pytest.mark.parametrize("header", ["soon", "", "-1"])
def test_what_is_no_time_is_none(header):
    assert ask(with_status(429, "", {"Retry-After": header}))[0].wait_seconds is None


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": "many"}, {"prompt_tokens": -1, "completion_tokens": True}])
def test_a_server_that_does_not_count_has_counted_nothing(usage):
    attempt, _ = ask(lambda request, number: said("[[A]]", usage))
    assert attempt.reply and (attempt.prompt_tokens, attempt.completion_tokens) == (None, None)


@pytest.mark.parametrize("echoed", [
    lambda key: with_status(401, f"Incorrect API key provided: {key}"),
    lambda key: with_status(500, json.dumps({"headers": {"Authorization": f"Bearer {key}"}})),
    lambda key: always(f"[[A]] {key}"),
    lambda key: always(f"no idea {key}"),
    lambda key: lambda request, number: said(None, refusal=f"not with {key}"),
    lambda key: with_status(200, f"<html>{key}"),
])  # fmt: skip
def test_a_key_that_the_server_repeats_goes_nowhere(echoed):
    attempt, _ = ask(echoed(KEY))
    assert KEY not in repr(attempt) and "…" in repr(attempt)
    assert KEY not in repr(Endpoint("http://127.0.0.1:9/v1", "m", KEY))


@pytest.mark.parametrize(
    ("url", "key", "named"),
    [
        ("127.0.0.1:8000", "", "no address"),
        ("ftp://127.0.0.1/v1", "", "no address"),
        ("http:///v1", "", "no address"),
        ("https://judge.example/v1", "", "THE_KEY is not set"),
        ("http://judge.example/v1", KEY, "in the clear"),
        (f"https://user:{KEY}@judge.example/v1", KEY, "a user"),
        (f"https://judge.example/v1?api_key={KEY}", KEY, "a query"),
        ("http://127.0.0.1:8000/v1", f"{KEY}\nX-Other: 1", "a line end"),
        ("http://127.0.0.1:8000/v1", f"{KEY} ", "a space"),
        ("http://[::1/v1", "", "no address"),
        ("http://127.0.0.1:99999/v1", "", "no address"),
    ],
)
def test_an_address_or_key_that_cannot_be_used_is_refused_without_the_key(url, key, named):
    with pytest.raises(BadInput, match=named) as refused:
        check_endpoint(url, "THE_KEY", key)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(("url", "key"), [
    ("http://127.0.0.1:8000/v1/", ""), ("http://localhost:8000/v1", KEY), ("http://[::1]:8000/v1", ""),
    ("https://judge.example/v1", KEY),
])  # fmt: skip
def test_an_address_that_can_be_used(url, key):
    assert check_endpoint(url, "THE_KEY", key) == url.rstrip("/")


def test_the_bounds_of_a_request_hold_for_text_of_any_script():
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", max_tokens=7)
    prompt, reply = endpoint.most_tokens("日本" * 100)
    assert prompt >= 600 and reply == 7
