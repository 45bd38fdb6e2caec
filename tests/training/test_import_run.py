"""A dinov2 checkpoint becomes a run folder, from which a recipe goes on with both networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dinov2_checkpoints import SMALL, network, training_checkpoint
from published_weights import assert_same_function, theirs

from anlage.encoders.folder import load_encoder
from anlage.errors import CheckpointError, EncoderError
from anlage.slides.catalogue import Catalogue
from anlage.training.checkpoint import newest_checkpoint
from anlage.training.import_run import import_run
from anlage.training.tile_pretrain import pretrain_tiles
from micro_recipe import micro_config

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
COLOURS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
AS_IMPORTED = (
    *("model.image_px=56", "model.patch_px=14", "model.width=96", "model.depth=3"),
    *("model.n_heads=3", "model.n_registers=0", "model.layer_scale=1e-5"),
    *("mean=[0.5, 0.5, 0.5]", "std=[0.25, 0.25, 0.25]", "model.stochastic_depth=0"),
    *("head.n_prototypes=50", "head.hidden=40", "head.bottleneck=24"),
    "patch_head={n_prototypes: 50, hidden: 40, bottleneck: 24}",
    *("views.source_px=64", "views.global_px=56", "views.local_px=28", "encoder.tile_px=56"),
)


def imported(tmp_path: Path, content: dict) -> Path:
    torch.save(content, tmp_path / "checkpoint.pth")
    run = tmp_path / "imported"
    import_run(tmp_path / "checkpoint.pth", run, mpp=0.5, tile_px=56, n_heads=3, **COLOURS)
    return run


def test_both_networks_and_their_heads_are_taken_over(tmp_path: Path) -> None:
    run = imported(tmp_path, training_checkpoint())
    saved = newest_checkpoint(run / "checkpoints")
    step, state, provenance = saved.step, saved.read_whole(), saved.provenance
    assert step == 1250
    assert provenance["config"]["patch_head"]["n_prototypes"] == 50
    assert state["centers"]["cls"].tolist() == [0.5] * 50
    assert state["centers"]["patch"].tolist() == [0.25] * 50
    for part in ("encoder.cls_token", "head.mlp.0.weight", "patch_head.last_layer.weight_v"):
        assert not torch.equal(state["student"][part], state["teacher"][part])
    encoder = load_encoder(run / "encoder")
    assert_same_function(encoder.model, theirs(SMALL, 2), 56)
    assert encoder.config.mpp == 0.5
    assert encoder.config.std == (0.25, 0.25, 0.25)


def test_a_recipe_goes_on_with_them(tmp_path: Path, catalogue: Catalogue) -> None:
    source = imported(tmp_path, training_checkpoint())
    rates = ("optimizer.warmup=0.5", "optimizer.teacher_momentum={start: 1, end: 1}")
    config = micro_config("steps=2", f"init.run={source}", *AS_IMPORTED, *rates)
    result = pretrain_tiles(config, catalogue, tmp_path / "run", device="cpu")
    assert result.is_finished
    before = newest_checkpoint(source / "checkpoints").read_whole()
    saved = newest_checkpoint(tmp_path / "run" / "checkpoints")
    after, provenance = saved.read_whole(), saved.provenance
    told = {name: provenance["init"][name] for name in ("source", "kind", "step")}
    assert told == {"source": str(source), "kind": "run", "step": 1250}
    for name, tensor in before["teacher"].items():
        assert torch.equal(after["teacher"][name], tensor), name
    moved = [n for n, t in before["student"].items() if not torch.equal(after["student"][n], t)]
    assert len(moved) > 30


def test_a_teacher_alone_teaches_its_own_copy(tmp_path: Path) -> None:
    run = imported(tmp_path, {"teacher": network(SMALL, 2, tied=True)})
    saved = newest_checkpoint(run / "checkpoints")
    step, state, provenance = saved.step, saved.read_whole(), saved.provenance
    assert step == 0
    assert provenance["config"]["patch_head"] is None
    assert state["student"].keys() == state["teacher"].keys()
    assert all(torch.equal(state["student"][n], t) for n, t in state["teacher"].items())
    assert state["centers"]["patch"].tolist() == [0.0] * 50


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    torch.save({"teacher": network(SMALL, 2, n_layers=2)}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match="has heads of 2 layers; ours have 3"):
        import_run(tmp_path / "two.pth", tmp_path / "run", mpp=0.5, n_heads=3, **COLOURS)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "two.pth").read_bytes()[:5000])
    with pytest.raises(EncoderError, match=r"cut\.pth"):
        import_run(tmp_path / "cut.pth", tmp_path / "run", mpp=0.5, n_heads=3, **COLOURS)
    assert not (tmp_path / "run").exists()
    run = imported(tmp_path, training_checkpoint())
    with pytest.raises(CheckpointError, match="holds an imported run"):
        import_run(tmp_path / "checkpoint.pth", run, mpp=0.5, n_heads=3, **COLOURS)


def test_nothing_is_written_where_the_encoder_cannot_be(tmp_path: Path) -> None:
    torch.save(training_checkpoint(), tmp_path / "checkpoint.pth")
    run, sizes = tmp_path / "run", {"mpp": 0.5, "n_heads": 3}
    flat = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.0)}
    with pytest.raises(CheckpointError, match="patches of 14 px, which do not fill tiles of 60"):
        import_run(tmp_path / "checkpoint.pth", run, tile_px=60, **sizes, **COLOURS)
    with pytest.raises(ValueError, match="greater than 0"):
        import_run(tmp_path / "checkpoint.pth", run, tile_px=56, **sizes, **flat)
    assert not run.exists()
    (run / "encoder").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds an encoder already"):
        import_run(tmp_path / "checkpoint.pth", run, tile_px=56, **sizes, **COLOURS)
    assert not (run / "checkpoints").exists()


def test_an_imported_run_is_no_run_to_write_into_and_its_colours_are_kept(
    tmp_path: Path, catalogue: Catalogue
) -> None:
    source = imported(tmp_path, training_checkpoint())
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    config = micro_config("steps=2", f"init.run={source}", *AS_IMPORTED)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="Name another folder, and set init.run to this"):
            pretrain_tiles(config, catalogue, source, device="cpu", resume=resume)
    assert {path: path.read_bytes() for path in before} == before
    other = micro_config("steps=2", f"init.run={source}", *AS_IMPORTED, "std=[0.5, 0.5, 0.5]")
    with pytest.raises(CheckpointError, match=r"std was .0.25, 0.25, 0.25., is now .0.5, 0.5, 0.5"):
        pretrain_tiles(other, catalogue, tmp_path / "run", device="cpu")
