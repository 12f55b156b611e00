"""The mean of turns is what rows turned at every position would be on average."""

import torch

from pagoda.formats.rotation import PairRotation


def test_a_mean_turn_is_the_mean_of_turned_rows():
    """Of pairs of neighbours either way, one that stays, and a last channel that belongs to none."""
    rotation = PairRotation(torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.tensor([1.0, -0.1, 0.0]).double())
    row, positions = torch.randn(7), torch.arange(90, 110)
    turned = rotation.turned(row.expand(20, 1, 7), positions)[:, 0]
    torch.testing.assert_close(row @ rotation.mean_turn(positions, 7), turned.mean(dim=0))
    assert torch.equal(turned[:, 4:], row[4:].expand(20, 3))
