"""TransMIL's square and its convolutions."""

import pytest
import torch

from anlage.models.bag_pooling.transmil import PyramidPositions, TransMilPooling


def small(**settings: object) -> TransMilPooling:
    torch.manual_seed(4)
    return TransMilPooling(input_width=5, width=8, n_heads=2, **settings).eval()


def test_one_kernel_equals_three_and_the_tiles_themselves() -> None:
    torch.manual_seed(0)
    positions = PyramidPositions(width=6)
    tokens = torch.randn(17, 6)
    square = tokens[1:].T.reshape(1, 6, 4, 4)
    convs = (positions.conv_7, positions.conv_5, positions.conv_3)
    expected = square + sum(conv(square) for conv in convs)
    found = positions(tokens, edge=4)
    torch.testing.assert_close(found[0], tokens[0], atol=0, rtol=0)
    torch.testing.assert_close(found[1:], expected[0].flatten(1).T)


def test_the_square_is_filled_with_the_first_tiles() -> None:
    pooling = small(n_landmarks=4)
    bag = torch.randn(7, 5)
    filled = torch.cat([bag, bag[:2]])
    short, full = (pooling(tiles, [len(tiles)]).embedding_BW for tiles in (bag, filled))
    torch.testing.assert_close(short, full)


@pytest.mark.parametrize("n_tiles", [1, 2, 3, 5, 17, 300])
@pytest.mark.parametrize("landmark_pad", ["zero", "none"])
def test_bags_of_any_length(n_tiles: int, landmark_pad: str) -> None:
    pooling = small(n_landmarks=16, landmark_pad=landmark_pad)
    embedding = pooling(torch.randn(n_tiles, 5), [n_tiles]).embedding_BW
    assert embedding.shape == (1, 8)
    assert torch.isfinite(embedding).all()


def test_the_defaults_are_the_published_sizes() -> None:
    n_parameters = sum(p.numel() for p in TransMilPooling(input_width=1024).parameters())
    head = 2 * 512 + 2
    assert n_parameters + head == 2_672_146  # of the official code with two classes
