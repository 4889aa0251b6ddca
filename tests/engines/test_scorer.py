"""The reward model's scores against Hugging Face's own classification head, one sequence at a time."""

import shutil

import numpy as np
import pytest

from rlhf_bench.compute.engine_time import EngineTime
from rlhf_bench.core.types import Row
from rlhf_bench.models.loading import RewardScaling, member_folder

ROWS = [
    Row(f"r{i}", (1, *range(4, 5 + i)), ((7, 9, 2), tuple(3 + (i + k) % 12 for k in range(2 * i + 1))))
    for i in range(6)
]
SCALE, OFFSET = 0.4, 0.75


def close(scores, expected):
    for found, by_hand in zip(scores, expected, strict=True):
        np.testing.assert_allclose(found, by_hand, atol=1e-5)


@pytest.fixture(scope="module")
def model(write_llama, tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("reward"), scalar=True)


@pytest.fixture(scope="module")
def score(start, model):
    """score(rows, actors, tokens per micro-batch, path) -> scores and cost."""
    from actors.reward_scorer import RewardScorer, ScorerActor

    both = [start(ScorerActor, 1, 0) for _ in range(2)]

    def score(rows, actors=1, budget=4096, path=model):
        scorer = RewardScorer(both[:actors], 1, 0, budget, EngineTime())
        scorer.load(path, "float32")
        return scorer.score(rows)

    return score


@pytest.fixture(scope="module")
def expected(model):
    """Pooled logits of unpadded sequences."""
    import torch
    from transformers import AutoModelForSequenceClassification

    own = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        return [[own(input_ids=torch.tensor([[*r.prompt_ids, *a]])).logits.item() for a in r.responses] for r in ROWS]


def test_scores_are_the_classifiers_whatever_the_batch(score, expected):
    assert np.std(expected) > 0.1
    for actors, budget in ((1, 4096), (1, 16), (1, 40), (2, 4096), (2, 16)):
        scores, cost = score(ROWS, actors, budget)
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        assert cost.scored_tokens == sum(r.tokens for r in ROWS)
    alone, _ = score(ROWS[3:4], actors=2)
    np.testing.assert_allclose(alone, expected[3:4], atol=1e-5)


def test_a_prompt_is_paid_for_once_whatever_its_responses(score):
    apart = [Row(r.id, r.prompt_ids, (a,)) for r in ROWS for a in r.responses]
    (together, cost), (single, separate) = score(ROWS), score(apart)
    np.testing.assert_allclose([s for row in together for s in row], [s for row in single for s in row], atol=1e-5)
    assert separate.scored_tokens - cost.scored_tokens == sum(len(r.prompt_ids) for r in ROWS)
    assert cost.flops < separate.flops


def test_scale_and_offset_beside_the_model_are_applied(score, model, expected):
    note = RewardScaling(scale=SCALE, offset=OFFSET).write(model)
    try:
        by_hand = [[SCALE * score - OFFSET for score in scores] for scores in expected]
        close(score(ROWS, path=note)[0], by_hand)
        close(score(ROWS)[0], expected)  # a folder alone may be a stranger's, with a file of that name
    finally:
        note.unlink()


def test_a_score_is_as_exact_as_the_output_that_it_is_made_of(start, model, tmp_path):
    """Output 7 less an offset of 5, in a format with 2⁻⁵ between numbers that differ; of a deviation at least."""
    from actors.reward_scorer import RewardScorer, ScorerActor

    note = RewardScaling(str(model), SCALE, 5.0).write(tmp_path)
    scorer = RewardScorer([start(ScorerActor, 1, 0)], 1, 0, 4096, EngineTime())
    scorer.load(note, "bfloat16")
    assert [scorer.rounding(score) for score in (2.0, -5.0, -9.0)] == [7 / 32, 1 / 32, 4 / 32]
    scorer.load(note, "float32")
    assert scorer.rounding(2.0) == 7 / 2**19


def test_a_given_model_is_read_where_it_is_with_scale_and_offset_from_elsewhere(score, model, expected, tmp_path):
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    note = RewardScaling(str(model), SCALE, OFFSET).write(tmp_path)
    close(score(ROWS, path=note)[0], [[SCALE * s - OFFSET for s in scores] for scores in expected])
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["reward.json"]


@pytest.mark.parametrize(("combine", "by_hand"), [("mean", np.mean), ("min", np.min)])
def test_an_ensemble_scores_by_all_its_members_and_each_is_paid_for(
    combine, by_hand, start, score, model, write_llama, tmp_path
):
    """Three models, of which the last two are the same, each less its own mean."""
    from actors.reward_scorer import RewardScorer, ScorerActor

    other = write_llama(tmp_path / "other", scalar=True, initializer_range=0.3)
    for index, folder in enumerate((other, model, model)):
        shutil.copytree(folder, member_folder(tmp_path, index))
    note = RewardScaling(scale=SCALE, offset=OFFSET, offsets=(0.5, -0.25, 0.0), combine=combine).write(tmp_path)
    alone = [score(ROWS, path=folder) for folder in (other, model)]
    found, cost = score(ROWS, path=note)
    for row, first, second in zip(found, alone[0][0], alone[1][0], strict=True):
        members = np.stack([np.array(first) - 0.5, np.array(second) + 0.25, second])
        np.testing.assert_allclose(row, SCALE * by_hand(members, axis=0) - OFFSET, atol=1e-5)
    assert cost.flops == 3 * alone[0][1].flops and cost.scored_tokens == 3 * alone[0][1].scored_tokens
    scorer = RewardScorer([start(ScorerActor, 1, 0)], 1, 0, 4096, EngineTime())
    scorer.load(note, "bfloat16")
    assert scorer.rounding(7.0) == pytest.approx((7 + OFFSET + SCALE * 0.5) / 32)  # of the member farthest off
