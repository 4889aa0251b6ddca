"""Many questions: side by side, each asked once, within bounds and budget, and what is missing is named and made up later."""

import json
import threading
import time

import pytest

from rlhf_bench.core.contests import Contest, Judged
from rlhf_bench.core.errors import BadInput, RunFailed
from rlhf_bench.llm_judge.answers import Costs, opened
from rlhf_bench.llm_judge.asking import GIVE_UP_AFTER, Patience
from rlhf_bench.llm_judge.budget import Prices
from rlhf_bench.llm_judge.endpoint import Endpoint
from rlhf_bench.llm_judge.prompt import read_prompt
from rlhf_bench.llm_judge.session import Judge, Limits
from tests.support.judge_server import always, judge_server, longer_wins, said

KEY = "sk-very-secret-0123456789"
QUICK = Patience(first_pause=0.01, longest_pause=0.5)
CONTESTS = [Contest(f"prompt {n}", "long" * (n + 2), "short" + "·" * n) for n in range(20)]


class Session:
    """A judge on `server` with a cache in `folder`; `ask` gives the outcome of one command, `judged` what is known then."""

    def __init__(self, server, folder, **settings):
        self.server, self.folder = server, folder
        self.endpoint = Endpoint(server.url, "a-judge", KEY, **settings)

    def ask(self, contests=CONTESTS, limits=Limits(), patience=QUICK):  # noqa: B008
        with opened(self.folder, self.endpoint) as book:
            judge = Judge(self.endpoint, read_prompt(None), book)
            outcome = judge.ask(contests, limits, lambda line: None, patience)
            self.judged = [judge.judged(contest) for contest in contests]
            self.costs = judge.costs(contests)
        return outcome


def failing(times, reply):
    """A script that gives `reply` to the first `times` requests, and judges the others."""
    return lambda request, number: reply if number < times else longer_wins(request)


def test_both_orders_of_every_pair_are_asked_and_read(tmp_path):
    with judge_server(longer_wins) as server:
        session = Session(server, tmp_path)
        outcome = session.ask()
    assert outcome.answered == 40 and not outcome.failures and len(server.requests) == 40
    assert session.judged == [
        Judged("first", "second") if c.extra_length > 0 else Judged("second", "first") for c in CONTESTS
    ]
    assert session.costs == Costs(40, 40, 4000, 200)


def test_sixteen_requests_are_in_flight_at_least(tmp_path):
    with judge_server(longer_wins, seconds=0.05) as server:
        began = time.monotonic()
        Session(server, tmp_path).ask(CONTESTS * 4 + [Contest(f"other {n}", "ab", "c") for n in range(60)])
    assert 16 <= server.most_at_once <= 32
    assert time.monotonic() - began < 160 * 0.05 / 2


def test_no_question_is_asked_twice(tmp_path):
    with judge_server(longer_wins) as server:
        Session(server, tmp_path).ask(CONTESTS[:5])
        session = Session(server, tmp_path)
        session.ask([*CONTESTS[:6], *CONTESTS[:6]])
    assert len(server.requests) == 12 and session.costs.queries == 12  # the others' costs are of these pairs too
    assert all(one.own_first for one in session.judged)


@pytest.mark.parametrize("changed", [{"max_tokens": 65}, {"constrained": True}])
def test_another_request_is_another_question(tmp_path, changed):
    with judge_server(longer_wins) as server:
        Session(server, tmp_path).ask(CONTESTS[:2])
        Session(server, tmp_path, **changed).ask(CONTESTS[:2])
    assert len(server.requests) == 8


def test_two_equal_responses_tie_and_nobody_is_asked(tmp_path):
    with judge_server(longer_wins) as server:
        session = Session(server, tmp_path)
        session.ask([Contest("p", "same", "same")])
    assert session.judged == [Judged("tie", "tie")] and not server.requests


@pytest.mark.parametrize("trouble", [
    (500, {}, "oh"), (429, {"Retry-After": "0.05"}, ""), (0, {}, ""), (200, {}, "<html>"), said("Hm."), said(None, refusal="No."),
])  # fmt: skip
def test_what_passes_is_asked_again_and_counted(tmp_path, trouble):
    with judge_server(failing(1, trouble)) as server:
        session = Session(server, tmp_path)
        outcome = session.ask(CONTESTS[:3], Limits(concurrent=1))
    assert outcome.answered == 6 and not outcome.failures
    assert len(server.requests) == 7 == session.costs.queries and session.costs.answers == 6


def test_a_server_that_asks_for_a_pause_gets_it(tmp_path):
    with judge_server(failing(1, (429, {"Retry-After": "0.4"}, ""))) as server:
        began = time.monotonic()
        Session(server, tmp_path).ask(CONTESTS[:1], Limits(concurrent=1))
    assert time.monotonic() - began >= 0.4


def test_a_server_that_asks_for_too_long_a_pause_is_not_waited_for(tmp_path):
    with judge_server(lambda request, number: (429, {"Retry-After": "3600"}, "")) as server:
        outcome = Session(server, tmp_path).ask(CONTESTS[:2])
    assert outcome.failures == {"busy": 4} and len(server.requests) == 4


def test_nonsense_is_asked_again_once_and_then_missing(tmp_path):
    with judge_server(always("Both are nice.")) as server:
        session = Session(server, tmp_path)
        outcome = session.ask(CONTESTS[:2])
    assert outcome.failures == {"no verdict": 4} and outcome.said == {"no verdict": "Both are nice."}
    assert len(server.requests) == 8 and session.judged == [Judged(None, None)] * 2
    assert session.costs == Costs(8, 0, 800, 40)  # nonsense is paid for


def test_what_is_missing_is_made_up_by_the_same_command(tmp_path):
    with judge_server(
        lambda request, number: said("Hm.") if "prompt 3" in json.dumps(request) else longer_wins(request)
    ) as server:
        assert Session(server, tmp_path).ask().failures == {"no verdict": 2}
        server.script, before = longer_wins, len(server.requests)
        session = Session(server, tmp_path)
        assert session.ask().answered == 2 and len(server.requests) == before + 2
    assert all(one.own_first for one in session.judged)


def test_a_server_that_goes_down_half_way_is_given_up(tmp_path):
    dead = (0, {}, "")
    with judge_server(lambda request, number: longer_wins(request) if number < 12 else dead) as server:
        session = Session(server, tmp_path)
        many = [*CONTESTS, *(Contest(f"other {n}", "ab", "c") for n in range(200))]
        outcome = session.ask(many, Limits(concurrent=4))
        assert "unreachable" in outcome.stopped and outcome.answered >= 8
        assert outcome.answered + outcome.failures.total() == 440
        assert len(server.requests) <= 12 + (GIVE_UP_AFTER + 4) * 4
        server.script = longer_wins
        assert session.ask(many).answered == 440 - outcome.answered
    assert all(one.own_first and one.own_second for one in session.judged)


@pytest.mark.parametrize(("status", "failure"), [(401, "denied"), (404, "not found")])
def test_what_no_question_can_pass_ends_it_at_once(tmp_path, status, failure):
    with judge_server(lambda request, number: (status, {}, f"no: {KEY}")) as server:
        outcome = Session(server, tmp_path).ask(limits=Limits(concurrent=1))
    assert len(server.requests) == 1 and outcome.stopped.startswith(failure)
    assert outcome.failures == {failure: 1, "not asked": 39} and KEY not in repr(outcome)


def test_a_slow_judge_is_named(tmp_path):
    with judge_server(longer_wins, seconds=1.0) as server:
        outcome = Session(server, tmp_path, timeout_seconds=0.1).ask(CONTESTS[:2], patience=Patience(2, 2, 0.01))
    assert outcome.failures == {"slow": 4}


def test_no_more_queries_are_sent_than_were_allowed_in_all(tmp_path):
    with judge_server(longer_wins) as server:
        session = Session(server, tmp_path)
        outcome = session.ask(limits=Limits(queries=13))
        assert len(server.requests) == 13 and outcome.answered == 13
        assert outcome.stopped == "the budget is spent" and outcome.failures == {"not asked": 27}
        session.ask(limits=Limits(queries=13))
        assert len(server.requests) == 13  # in all: by this command and earlier ones
        session.ask(limits=Limits(queries=40))
    assert len(server.requests) == 40 and all(one.own_first for one in session.judged)


def test_retries_count_as_queries(tmp_path):
    with judge_server(lambda request, number: (500, {}, "")) as server:
        Session(server, tmp_path).ask(CONTESTS[:4], Limits(queries=5))
    assert len(server.requests) == 5


@pytest.mark.parametrize("usage", [None, {}])
def test_no_more_money_is_spent_than_was_allowed(tmp_path, usage):
    """Also where requests are in flight, and where the server does not say how long they were."""
    prices = Prices(prompt=10.0, completion=1000.0)
    with judge_server(lambda request, number: said("[[A]]", usage), seconds=0.01) as server:
        session = Session(server, tmp_path)
        outcome = session.ask(limits=Limits(money=0.2, prices=prices))
    assert outcome.stopped == "the budget is spent" and 0 < outcome.answered < 40
    spent = prices.total(session.costs)
    assert spent <= 0.2 < spent + prices.of(*session.endpoint.most_tokens("x" * 3000))


def test_money_counts_prompts_and_replies_apart():
    assert Prices(2.0, 10.0).total(Costs(3, 3, 1_000_000, 500_000)) == 7.0


def test_a_line_that_was_cut_short_is_asked_again_and_no_other(tmp_path):
    with judge_server(longer_wins) as server:
        Session(server, tmp_path).ask(CONTESTS[:3])
        (book,) = tmp_path.glob("judge-*/answers.jsonl")
        book.write_bytes(book.read_bytes()[:-20])
        session = Session(server, tmp_path)
        session.ask(CONTESTS[:4])
        assert len(server.requests) == 6 + 1 + 2
        session.ask(CONTESTS[:4])
    assert len(server.requests) == 9


def test_the_key_is_in_no_file(tmp_path):
    with judge_server(lambda request, number: said(f"[[A]] {KEY}") if number % 2 else (500, {}, KEY)) as server:
        Session(server, tmp_path).ask()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files and not any(KEY.encode() in file.read_bytes() for file in files)


def test_two_commands_do_not_ask_the_same_judge_at_once(tmp_path):
    endpoint = Endpoint("http://127.0.0.1:9/v1", "a-judge")
    with opened(tmp_path, endpoint), pytest.raises(BadInput, match="another command"), opened(tmp_path, endpoint):
        pass
    with opened(tmp_path, endpoint):
        pass


def test_an_answer_that_cannot_be_kept_ends_it(tmp_path):
    with judge_server(longer_wins) as server, opened(tmp_path, Endpoint(server.url, "a-judge")) as book:
        book.file.mkdir()
        with pytest.raises(RunFailed, match="cannot be written"):
            Judge(Endpoint(server.url, "a-judge"), read_prompt(None), book).ask(CONTESTS, Limits(), lambda line: None)
    assert threading.active_count() < 50
