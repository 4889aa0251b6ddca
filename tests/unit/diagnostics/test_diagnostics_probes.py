"""Probe sets: what they are made of, what they must never contain, and that nothing vanishes uncounted."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_bench.core.types import Pair, Prompt
from rlhf_bench.diagnostics.probes import PROBE_SETS, make_probes

EOS, VOCABULARY, LONGEST = 2, 31, 40


def pair(name, prompt, chosen, rejected):
    return Pair(name, Prompt(name, "", "", token_ids=prompt), (*chosen, EOS), (*rejected, EOS))


PAIRS = [
    pair("a", (5, 6), (10, 11, 12), (10, 12)),
    pair("b", (5, 7), (13, 14), (14, 13)),
    pair("c", (5, 8, 9), (15,), (16, 16, 17, 18)),
    pair("d", (9,), (19, 20, 21, 22), (19, 20, 22, 21)),
]
SAMPLES = [
    [PAIRS[0].chosen_ids, PAIRS[0].rejected_ids, (7, EOS), (8, EOS)],
    [(13, 14), (9, EOS)],
    [PAIRS[2].rejected_ids, PAIRS[2].chosen_ids],
    [(EOS,)],
]


def made(pairs=PAIRS, samples=SAMPLES, training=(), longest=LONGEST, seed=0):
    return make_probes(pairs, samples, training, {EOS}, VOCABULARY, longest, seed)


def test_no_probe_is_a_side_of_a_further_held_out_pair():
    """They are on the same prompts, and have no probes of their own."""
    further = [pair("own", (5, 6), (7,), (12, 11, 10)), pair("elsewhere", (5, 7), (7,), (8,))]
    probes = make_probes(PAIRS, SAMPLES, [], {EOS}, VOCABULARY, LONGEST, 0, further)
    assert probes.rows["base_samples"][0].responses == ((8, EOS),) and not probes.notes
    assert {row.id.split("/")[0] for rows in probes.rows.values() for row in rows} <= {p.id for p in PAIRS}
    sides = {(p.prompt.token_ids, side) for p in (*PAIRS, *further) for side in (p.chosen_ids, p.rejected_ids)}
    assert not sides & {(row.prompt_ids, row.responses[0]) for rows in probes.rows.values() for row in rows}


def by_pair(probes, name):
    return {row.id.split("/")[0]: row for row in probes.rows.get(name, ())}


def test_what_each_set_is_made_of():
    probes = made()
    assert tuple(probes.rows) == PROBE_SETS
    # The first sample that is no side; one that never ended is a response as well; all sides: no probe.
    assert {k: r.responses for k, r in by_pair(probes, "base_samples").items()} == {
        "a": ((7, EOS),),
        "b": ((13, 14),),
        "d": ((EOS,),),
    }
    prompts = {p.id: p.prompt.token_ids for p in PAIRS}
    chosen = {p.id: p.chosen_ids for p in PAIRS}
    for name in PROBE_SETS:
        for key, row in by_pair(probes, name).items():
            assert row.prompt_ids == prompts[key] and len(row.responses) == 1
    for key, row in by_pair(probes, "other_prompts").items():
        assert row.responses[0] in [c for k, c in chosen.items() if k != key]
    for key, row in by_pair(probes, "permuted").items():
        (response,) = row.responses
        assert response != chosen[key] and sorted(response) == sorted(chosen[key]) and response[-1] == EOS
    for key, row in by_pair(probes, "format_breaking").items():
        (response,) = row.responses
        assert len(response) == len(chosen[key]) and response.index(EOS) == len(response) - 1
        assert all(0 <= token < VOCABULARY for token in response)


def test_what_has_no_other_order_is_dropped_and_counted():
    # b's only other order is its rejected side, c has one token before its end.
    probes = made()
    assert set(by_pair(probes, "permuted")) == {"a", "d"}
    assert probes.dropped == {"base_samples": 1, "other_prompts": 0, "permuted": 2, "format_breaking": 0}
    assert probes.notes == ()


def test_an_empty_set_is_left_out_with_a_sentence():
    probes = made(PAIRS[1:3], [[PAIRS[1].chosen_ids], [(4, EOS)]])
    assert "permuted" not in probes.rows and probes.dropped["permuted"] == 2
    (note,) = probes.notes
    assert note.startswith("probe set permuted is empty") and "2 held-out prompts" in note


def test_one_pair_has_no_other_prompt():
    probes = made(PAIRS[:1], SAMPLES[:1])
    assert probes.dropped["other_prompts"] == 1 and "other_prompts" not in probes.rows


def test_a_side_of_a_training_pair_of_the_same_prompt_is_no_probe():
    """The same response to another prompt may be: answers are short, and the loss does not push it here."""
    assert by_pair(made(), "base_samples")["a"].responses == ((7, EOS),)
    same = made(training=[replace(PAIRS[0], id="t", rejected_ids=(7, EOS))])
    assert by_pair(same, "base_samples")["a"].responses == ((8, EOS),)
    other = made(training=[pair("t", (30, 30), (7,), (8,))])
    assert by_pair(other, "base_samples")["a"].responses == ((7, EOS),)


def test_a_side_of_another_held_out_pair_of_the_same_prompt_is_no_probe():
    twin = pair("a2", PAIRS[0].prompt.token_ids, (7,), (6,))
    probes = made([*PAIRS, twin], [*SAMPLES, [(7, EOS), (3, EOS)]])
    assert by_pair(probes, "base_samples")["a"].responses == ((8, EOS),)
    assert by_pair(probes, "base_samples")["a2"].responses == ((3, EOS),)
    assert by_pair(probes, "other_prompts")["a"].responses[0] not in (twin.chosen_ids, PAIRS[0].chosen_ids)


def test_held_out_pairs_that_are_trained_on_are_said():
    probes = made(training=[PAIRS[0], pair("t", PAIRS[3].prompt.token_ids, (3,), PAIRS[3].rejected_ids[:-1])])
    (note,) = probes.notes
    assert note.startswith("2 of 4 held-out pairs have a side that is trained on")


def test_what_does_not_fit_the_context_is_not_taken():
    probes = made(longest=5)  # d's chosen response of 5 tokens fits no prompt, c's prompt has room for 2
    for rows in probes.rows.values():
        assert all(row.tokens <= 5 for row in rows)
    assert "d" not in by_pair(probes, "format_breaking")
    assert by_pair(probes, "other_prompts").keys() >= {"d"}


def test_format_breaking_draws_every_token_but_the_end():
    pairs = [pair(str(i), (5, i), (3, 4) * 10, (4,)) for i in range(20)]
    rows = made(pairs, [[]] * 20).rows["format_breaking"]
    assert {token for row in rows for token in row.responses[0][:-1]} == set(range(VOCABULARY)) - {EOS}


def test_the_same_arguments_give_the_same_probes_and_a_seed_others():
    assert made() == made()
    assert made(seed=1).rows["format_breaking"] != made().rows["format_breaking"]


def test_a_pair_more_changes_no_probe_drawn_from_a_pair_alone():
    fewer, more = made(PAIRS[:3], SAMPLES[:3]), made()
    for name in ("permuted", "format_breaking"):
        assert more.rows[name][: len(fewer.rows[name])] == fewer.rows[name]


def test_samples_come_in_one_group_per_pair():
    with pytest.raises(ValueError, match="3 groups of base samples for 4 pairs"):
        made(samples=SAMPLES[:3])


def test_no_pairs_no_probes_and_nothing_to_say():
    probes = made([], [])
    assert probes.rows == {} and probes.notes == () and sum(probes.dropped.values()) == 0


token = st.integers(3, 8)
response = st.lists(token, max_size=4).map(tuple)


@st.composite
def any_pairs(draw):
    n = draw(st.integers(1, 8))
    found = [
        pair(str(i), draw(st.lists(token, min_size=1, max_size=2).map(tuple)), draw(response), draw(response))
        for i in range(n)
    ]
    return found, [[(*r, EOS) for r in draw(st.lists(response, max_size=3))] for _ in found]


@settings(deadline=None)
@given(any_pairs(), any_pairs(), st.integers(0, 5))
def test_probes_are_never_sides_and_every_prompt_is_counted(held_out, training, seed):
    (pairs, samples), (trained, _) = held_out, training
    assume(all(p.chosen_ids != p.rejected_ids for p in pairs))
    probes = make_probes(pairs, samples, trained, {EOS}, 9, 12, seed)
    sides = {(p.prompt.token_ids, side) for p in (*pairs, *trained) for side in (p.chosen_ids, p.rejected_ids)}
    for name in PROBE_SETS:
        rows = probes.rows.get(name, ())
        assert not {(row.prompt_ids, row.responses[0]) for row in rows} & sides
        assert len(rows) + probes.dropped[name] == len(pairs)
        assert len({row.id for row in rows}) == len(rows)
        assert bool(rows) == (not any(f"probe set {name} is empty" in note for note in probes.notes))
