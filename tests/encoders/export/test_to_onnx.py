"""onnxruntime gives the same embedding, from uint8 pixels, at any size of batch."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from small_encoder import make_pixels
from weighty_encoder import weighty_encoder

from anlage.encoders.export import to_onnx
from anlage.encoders.export.export_encoder import export_encoder
from anlage.errors import EncoderError

EVERYTHING = {
    **{"feed_forward": "swiglu", "dual_patch_norm": True, "qk_norm": True},
    **{"norm_eps": 0.01, "antialias": False},
}

pytestmark = pytest.mark.slow  # one export takes seconds


@pytest.mark.parametrize(
    ("pooling", "tile_px", "architecture"),
    [("cls", 32, {}), ("cls+mean", 24, EVERYTHING)],
)
def test_onnxruntime_gives_the_same_embedding(tmp_path, pooling, tile_px, architecture) -> None:
    encoder = weighty_encoder(pooling=pooling, tile_px=tile_px, **architecture)
    written = export_encoder(encoder, tmp_path / "out", to="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for n_tiles in (1, 2, 5):
        pixels = make_pixels(n_tiles, size_px=tile_px)
        (found,) = session.run(["embedding"], {"pixels": pixels.numpy()})
        np.testing.assert_allclose(found, encoder.embed(pixels).numpy(), atol=1e-5, rtol=1e-5)
    assert "Opened with onnxruntime" in written.checked
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["mpp"]) == 0.5
    assert json.loads(told["tile_px"]) == tile_px
    assert told["pooling"] == pooling
    assert told["encoder_fingerprint"] == encoder.fingerprint
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "model.onnx"}


def test_large_weights_lie_beside_the_graph(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(to_onnx, "LARGEST_ONE_FILE", 0)
    export_encoder(weighty_encoder(), tmp_path / "out", to="onnx")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "model.onnx", "model.onnx.data"}
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))


def test_a_graph_that_disagrees_is_not_kept(tmp_path, monkeypatch) -> None:
    """The check sees a wrong transform, the commonest fault of all."""

    def forward(self, pixels_B3HW):
        tokens = self.model.embed(pixels_B3HW.float() / 255)
        return tokens.cls_BD

    monkeypatch.setattr(to_onnx.PooledEncoder, "forward", forward)
    with pytest.raises(EncoderError, match="embeddings that differ by .* Nothing was written"):
        export_encoder(weighty_encoder(), tmp_path / "out", to="onnx")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(to_onnx, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(EncoderError, match=r"needs onnxscript, .*anlage\[onnx\]"):
        export_encoder(weighty_encoder(), tmp_path / "out", to="onnx")
