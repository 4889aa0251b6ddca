"""A checkpoint is written in parts, so that a process never holds its state a second time."""

import torch

from actors.learner.training_state import in_shards


def test_parts_are_small_hold_everything_in_order_and_are_copies():
    tensors = {f"t{i}": torch.full((size,), float(i)) for i, size in enumerate((10, 10, 10, 100, 1, 1))}
    parts = list(in_shards(tensors.items(), 4 * 20))
    assert [list(part) for part in parts] == [["t0", "t1"], ["t2"], ["t3"], ["t4", "t5"]]
    for name, tensor in (pair for part in parts for pair in part.items()):
        assert torch.equal(tensor, tensors[name]) and tensor.data_ptr() != tensors[name].data_ptr()


def test_only_one_part_is_held():
    asked = []

    def tensors():
        for i in range(6):
            asked.append(i)
            yield f"t{i}", torch.zeros(10)

    parts = in_shards(tensors(), 4 * 10)
    next(parts)
    assert asked == [0, 1]  # the second one showed that the first part was full


def test_nothing_has_no_parts():
    assert list(in_shards([], 100)) == []
