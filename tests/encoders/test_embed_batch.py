import pytest
import torch
from small_encoder import make_encoder, make_pixels

from anlage.encoders.embed_batch import embed_batches


class Recorder:
    """Stands in for an encoder: remembers the shapes and embeds a tile as its first pixel."""

    device = torch.device("cpu")

    def __init__(self):
        self.shapes = []

    def embed(self, pixels):
        self.shapes.append(tuple(pixels.shape))
        return pixels[:, :1, 0, 0].float()


def test_short_batches_are_padded_and_cut_again():
    encoder, pixels = Recorder(), make_pixels(10)
    found = list(embed_batches(encoder, pixels.split(4), batch_size=4))
    assert encoder.shapes == [(4, 3, 32, 32)] * 3
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert torch.equal(torch.cat(found), pixels[:, :1, 0, 0].float())


def test_padding_is_white():
    class KeepsPixels(Recorder):
        def embed(self, pixels):
            self.last = pixels
            return super().embed(pixels)

    encoder = KeepsPixels()
    list(embed_batches(encoder, [make_pixels(1)], batch_size=3))
    assert (encoder.last[1:] == 255).all()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_embeddings_do_not_depend_on_the_batch_size(batch_size):
    encoder, pixels = make_encoder(), make_pixels(20)
    expected = encoder.embed(pixels)
    found = torch.cat(list(embed_batches(encoder, pixels.split(batch_size), batch_size=batch_size)))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_no_batches_no_embeddings():
    assert list(embed_batches(make_encoder(), [], batch_size=4)) == []


@pytest.mark.parametrize("n_tiles", [0, 5])
def test_a_batch_of_the_wrong_length_is_refused(n_tiles):
    with pytest.raises(ValueError, match=f"needs 1 to 4 tiles a batch; got {n_tiles}"):
        list(embed_batches(make_encoder(), [make_pixels(n_tiles)], batch_size=4))


def test_an_error_of_the_reader_comes_through():
    def batches():
        yield make_pixels(2)
        raise KeyError

    with pytest.raises(KeyError):
        list(embed_batches(make_encoder(), batches(), batch_size=2))


@pytest.mark.gpu
def test_cuda_batches_arrive_in_order_and_whole():
    encoder = make_encoder()
    on_cuda = type(encoder)(encoder.config, encoder.model, device="cuda", precision="fp32")
    pixels = make_pixels(50)
    expected = on_cuda.embed(pixels).cpu()
    found = torch.cat(list(embed_batches(on_cuda, pixels.split(8), batch_size=8)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
