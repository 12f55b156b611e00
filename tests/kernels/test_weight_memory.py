"""Memory for weights: pieces that many share, aligned, and alive as long as what lies there."""

import torch

from pagoda.kernels.weight_memory import ALIGNMENT, WeightMemory


def test_tensors_lie_side_by_side_and_keep_what_is_written():
    memory = WeightMemory(piece_nbytes=4096)
    taken = [memory.take(3, 5), memory.take(100), memory.take(64)]
    for number, each in enumerate(taken, start=1):
        assert each.dtype == torch.uint8
        assert not each.any()
        each.fill_(number)
    starts = [each.data_ptr() for each in taken]
    assert [each % ALIGNMENT for each in starts] == [0, 0, 0]
    assert [start - starts[0] for start in starts] == [0, 64, 192]
    del memory
    assert all((each == number).all() for number, each in enumerate(taken, start=1))


def test_what_has_no_room_in_a_piece_begins_another():
    memory = WeightMemory(piece_nbytes=256)
    first, large, last = memory.take(200), memory.take(1000), memory.take(100)
    for number, each in enumerate((first, large, last), start=1):
        each.fill_(number)
    assert [int(each.sum()) for each in (first, large, last)] == [200, 2000, 300]
