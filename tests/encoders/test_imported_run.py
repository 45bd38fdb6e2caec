"""Checkpoints as dinov2's training code writes them, read with their heads; or refused by name."""

import pytest
import torch
from dinov2_checkpoints import SMALL, PlainHead, network, training_checkpoint
from published_weights import architecture, assert_same_function, hub_named, loaded, theirs, tokens
from torch.distributed._shard import sharded_tensor

from anlage.encoders.imported_run import read_dinov2_checkpoint
from anlage.errors import EncoderError
from anlage.models.projection_head import ProjectionHead

KINDS = ["vit_small_patch14_dinov2", "vit_large_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"]


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*ShardedTensor:FutureWarning"),
]


def as_fsdp(name: str) -> str:
    """A name as FSDP over each part and each block, with activation checkpointing, leaves it."""
    for part in ("backbone", "dino_head", "ibot_head"):
        name = name.replace(f".{part}.", f".{part}._fsdp_wrapped_module.")
    if ".blocks." in name:
        head, _, tail = name.partition(".blocks.")
        chunk, block, rest = tail.split(".", 2)
        wrapped = "_fsdp_wrapped_module._checkpoint_wrapped_module"
        name = f"{head}.blocks.{chunk}.{wrapped}.{block}.{rest}"
    return name


def save(tmp_path, content: dict):
    torch.save(content, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


def assert_same_head(read, seed: int, **options: object) -> None:
    ours, wanted = ProjectionHead(**read.sizes), PlainHead(seed, **options)
    ours.load_state_dict(read.weights, strict=True)
    rows = torch.randn(7, 96, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours(rows), wanted(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_checkpoint_gives_both_networks(tmp_path, kind):
    run = read_dinov2_checkpoint(save(tmp_path, training_checkpoint(kind)), n_heads=3)
    assert run.architecture == architecture(kind, qk_norm=False, dual_patch_norm=False) | {
        "n_registers": 4 if "reg4" in kind else 0,
        "mlp_ratio": 4.0,
        "feed_forward": "swiglu" if "giant" in kind else "mlp",
    }
    for read, seed in ((run.student, 1), (run.teacher, 2)):
        assert_same_function(loaded(read.encoder, run.architecture), theirs(kind, seed), 56)
        assert_same_head(read.dino_head, seed)
        assert_same_head(read.ibot_head, seed + 100)
    assert run.teacher.dino_head.sizes == {
        "width": 96, "n_prototypes": 50, "hidden": 40, "bottleneck": 24, "n_layers": 3,
    }  # fmt: skip
    assert run.iteration == 1249
    assert not run.is_tied
    assert run.centers["dino"].tolist() == [0.5] * 50
    assert run.centers["ibot"].tolist() == [0.25] * 50
    assert "Left out 'optimizer': state of the code that wrote it." in run.notes
    assert len(run.provenance["sha256"]) == 64


def test_a_teacher_checkpoint_gives_the_teacher_alone(tmp_path):
    run = read_dinov2_checkpoint(save(tmp_path, {"teacher": network(SMALL, 2)}), n_heads=3)
    assert run.student is None
    assert run.iteration is None
    assert run.centers == {}
    assert_same_head(run.teacher.dino_head, 2)
    assert_same_function(loaded(run.teacher.encoder, run.architecture), theirs(SMALL, 2), 56)


def test_the_mask_token_and_masked_patches_are_kept(tmp_path):
    run = read_dinov2_checkpoint(save(tmp_path, {"teacher": network(SMALL, 2)}), n_heads=3)
    assert run.teacher.encoder["mask_token"].unique().tolist() == [0.25]


@pytest.mark.parametrize(
    "options",
    [{"named": "new"}, {"n_layers": 1}, {"n_layers": 2}, {"bias": False}, {"n_layers": 4}],
    ids=str,
)
def test_every_shape_of_head(tmp_path, options):
    run = read_dinov2_checkpoint(save(tmp_path, training_checkpoint(**options)), n_heads=3)
    assert_same_head(run.student.dino_head, 1, **options)
    assert_same_head(run.teacher.ibot_head, 102, **options)


def test_tied_heads(tmp_path):
    run = read_dinov2_checkpoint(save(tmp_path, training_checkpoint(tied=True)), n_heads=3)
    assert run.is_tied
    assert run.teacher.ibot_head is None
    assert_same_head(run.teacher.dino_head, 2)


def test_prefixes_of_wrappers_change_nothing(tmp_path):
    plain = training_checkpoint()
    wrapped = plain | {"model": {as_fsdp(name): t for name, t in plain["model"].items()}}
    assert any("_checkpoint_wrapped_module.2.attn" in name for name in wrapped["model"])
    want = read_dinov2_checkpoint(save(tmp_path, plain), n_heads=3)
    got = read_dinov2_checkpoint(save(tmp_path, wrapped), n_heads=3)
    for network_name in ("student", "teacher"):
        a, b = getattr(got, network_name), getattr(want, network_name)
        torch.testing.assert_close(a.encoder, b.encoder, rtol=0, atol=0)
        torch.testing.assert_close(a.ibot_head.weights, b.ibot_head.weights, rtol=0, atol=0)


def test_the_function_of_encoder_and_head_together(tmp_path):
    run = read_dinov2_checkpoint(save(tmp_path, training_checkpoint()), n_heads=3)
    image = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    head = ProjectionHead(**run.teacher.dino_head.sizes)
    head.load_state_dict(run.teacher.dino_head.weights)
    got = head(tokens(loaded(run.teacher.encoder, run.architecture), image)[:, 0])
    wanted = PlainHead(2)(theirs(SMALL, 2).forward_features(image)[:, 0])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.pop("teacher.dino_head.mlp.2.bias"), "teacher.dino_head: tensor 'mlp.2.bias'"),
        (lambda m: m.pop("student.dino_head.last_layer.weight_g"), "'last_layer.weight_g': needs"),
        (lambda m: m.pop("student.dino_head.last_layer.weight_v"), "weight-normalised prototypes"),
        (
            lambda m: m.update({"teacher.ibot_head.mlp.1.running_mean": torch.ones(40)}),
            "'mlp.1.running_mean': needs shape None; got .40,.. Heads with batch norm",
        ),
        (lambda m: m.pop("teacher.backbone.blocks.0.0.ls1.gamma"), "has no LayerScale"),
        (lambda m: m.pop("student.backbone.blocks.1.2.norm1.bias"), "student: .* no tensor 'bl"),
        (lambda m: m.update({"gram_teacher.x": torch.ones(1)}), "a tensor 'gram_teacher.x'"),
        (lambda m: m["teacher.dino_head.mlp.0.bias"].fill_(torch.nan), "'mlp.0.bias' holds NaN"),
        (lambda m: m["student.backbone.norm.bias"].fill_(torch.inf), "'norm.bias' holds NaN"),
        (lambda m: m["dino_loss.center"].fill_(torch.nan), "'dino_loss.center' holds NaN"),
        (
            lambda m: m.update({"ibot_patch_loss.center": torch.ones(1, 1, 7)}),
            "centre of ibot of 7 values for 50 prototypes",
        ),
        (lambda m: m.update({7: torch.ones(1)}), "needs tensors by name; got 7"),
        (
            lambda m: m.update({"teacher.dino_head.last_layer.weight_v": torch.ones(())}),
            "weight-normalised prototypes",
        ),
        (
            lambda m: m.update({"teacher.dino_head.last_layer.weight_v": torch.ones(0, 24)}),
            "weight-normalised prototypes",
        ),
        (
            lambda m: m.update(
                {"student.backbone.patch_embed.proj.weight": torch.ones(96, 3, 0, 0)}
            ),
            "'patch_embed.proj.weight' of 4 axes, none empty",
        ),
        (
            lambda m: [m.pop(n) for n in list(m) if n.startswith("student.ibot_head")],
            "has unlike heads in student",
        ),
        (
            lambda m: [m.pop(n) for n in list(m) if ".dino_head" in n],
            "is no dinov2 checkpoint with heads: no dino_head under",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, change, says):
    stored = training_checkpoint()
    change(stored["model"])
    with pytest.raises(EncoderError, match=says) as refusal:
        read_dinov2_checkpoint(save(tmp_path, stored), n_heads=3)
    assert "checkpoint.pth" in refusal.value.path


def test_a_head_for_other_tokens_is_refused(tmp_path):
    stored = {"teacher": network(SMALL, 2, tied=True)}
    stored["teacher"]["dino_head.mlp.0.weight"] = torch.ones(40, 80)
    with pytest.raises(EncoderError, match="dino_head takes tokens 80 wide; the encoder's are 96"):
        read_dinov2_checkpoint(save(tmp_path, stored), n_heads=3)


@pytest.mark.parametrize(
    "stored",
    [hub_named(theirs(SMALL).state_dict()), {"model": {"x": torch.ones(1)}}, {}, {"a": 1}],
    ids=["an encoder alone", "another model", "nothing", "no weights"],
)
def test_a_file_of_something_else_is_refused(tmp_path, stored):
    with pytest.raises(EncoderError, match="is no dinov2 checkpoint with heads"):
        read_dinov2_checkpoint(save(tmp_path, stored))


def test_heads_that_do_not_divide_the_width_ask_for_their_number(tmp_path):
    with pytest.raises(EncoderError, match="Give n_heads"):
        read_dinov2_checkpoint(save(tmp_path, training_checkpoint()))


def test_flat_parameters_of_one_rank_are_refused(tmp_path):
    flat = {"student.backbone._fsdp_wrapped_module._flat_param": torch.ones(9)}
    with pytest.raises(EncoderError, match=r"one rank's part .*_flat_param.*teacher_checkpoint"):
        read_dinov2_checkpoint(save(tmp_path, {"model": flat, "iteration": 1}))


def test_sharded_tensors_of_one_rank_are_refused(tmp_path):
    group = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=group, rank=0, world_size=1)
    try:
        shard = sharded_tensor.Shard.from_tensor_and_offsets(torch.ones(4), [0], 0)
        whole = sharded_tensor.init_from_local_shards([shard], 4)
        path = save(tmp_path, {"model": {"student.backbone._flat_param": whole}, "iteration": 1})
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(EncoderError, match=r"one rank's part .*ShardedTensor.*teacher_checkpoint"):
        read_dinov2_checkpoint(path)


def test_an_iteration_below_zero_is_none(tmp_path):
    run = read_dinov2_checkpoint(
        save(tmp_path, {**training_checkpoint(), "iteration": -5}), n_heads=3
    )
    assert run.iteration is None
