"""Converted weights compute what timm computes with the published ones; the rest is refused."""

import pytest
import torch
from published_weights import (
    KINDS,
    architecture,
    assert_same_function,
    hub_named,
    loaded,
    theirs,
    tokens,
)
from small_encoder import ARCHITECTURE, make_encoder
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models.vision_transformer import checkpoint_filter_fn

from anlage.encoders.weights import convert_state_dict, convert_weights
from anlage.errors import EncoderError

DINO = "vit_small_patch16_224.dino"
DINOV2 = "vit_small_patch14_dinov2"
REGISTERS = "vit_large_patch14_reg4_dinov2"
GIANT = "vit_giant_patch14_reg4_dinov2"


@pytest.mark.parametrize("kind", KINDS)
def test_timms_weights_compute_the_same(kind):
    model = theirs(kind)
    ours = loaded(convert_state_dict(model.state_dict(), architecture(kind)), architecture(kind))
    assert_same_function(ours, model, KINDS[kind]["img_size"])


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("kind", [DINOV2, REGISTERS, GIANT, "vit_giant_patch14_dinov2"])
def test_dinov2s_own_names_compute_the_same(kind, chunk):
    published = hub_named(theirs(kind).state_dict(), chunk)
    again = theirs(kind, seed=1)
    again.load_state_dict(checkpoint_filter_fn(hub_named(theirs(kind).state_dict()), again))
    arguments = architecture(kind)
    weights = convert_state_dict(published, arguments)
    assert_same_function(loaded(weights, arguments), again, KINDS[kind]["img_size"])
    assert weights["mask_token"].unique().tolist() == [0.25]


@pytest.mark.parametrize(
    "prefix",
    ["backbone.", "module.", "module.backbone.", "teacher.backbone.", "_orig_mod.",
     "teacher.backbone._fsdp_wrapped_module."],
)  # fmt: skip
def test_prefixes_are_taken_off(prefix):
    plain = hub_named(theirs(REGISTERS).state_dict())
    wanted = convert_state_dict(plain, architecture(REGISTERS))
    got = convert_state_dict(
        {prefix + name: tensor for name, tensor in plain.items()}, architecture(REGISTERS)
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_registers_with_positions_compute_the_same():
    model = theirs(REGISTERS, no_embed_class=False)
    assert model.pos_embed.shape[1] == 1 + 4 + 16
    weights = convert_state_dict(model.state_dict(), architecture(REGISTERS))
    assert_same_function(loaded(weights, architecture(REGISTERS)), model, 56)


def test_queries_without_bias_compute_the_same():
    model = theirs(DINO, qkv_bias=False)
    weights, notes = convert_weights(model.state_dict(), architecture(DINO))
    assert_same_function(loaded(weights, architecture(DINO)), model, 64)
    assert "Added biases of zero for queries, keys and values: the same function." in notes


def test_qk_norm_of_the_source_is_kept():
    model = theirs(DINO, qk_norm=True)
    arguments = architecture(DINO, qk_norm=True)
    weights, notes = convert_weights(model.state_dict(), arguments)
    assert_same_function(loaded(weights, arguments), model, 64)
    assert not any("new" in note for note in notes)


def test_our_own_weights_come_back_bit_by_bit():
    weights, notes = convert_weights(make_encoder().model.state_dict(), ARCHITECTURE)
    torch.testing.assert_close(weights, dict(make_encoder().model.state_dict()), rtol=0, atol=0)
    assert notes == ()


def test_half_precision_becomes_float32_and_the_source_is_left_alone():
    source = {n: t.half() for n, t in theirs(DINO).state_dict().items()}
    before = {n: t.clone() for n, t in source.items()}
    weights = convert_state_dict(source, architecture(DINO))
    assert {t.dtype for t in weights.values()} == {torch.float32}
    weights["norm.bias"].add_(1)
    torch.testing.assert_close(source, before, rtol=0, atol=0)


def test_notes_name_what_was_left_out_folded_and_added():
    source = theirs("vit_base_patch16_224").state_dict()
    notes = convert_weights(source, architecture("vit_base_patch16_224")).notes
    assert notes == (
        "Left out head.weight, head.bias: its classifier.",
        "Folded the position of the class token into it: the same sum.",
        "Added a mask token of zeros.",
    )


def test_heads_of_pretraining_are_left_out_and_named():
    plain = theirs(DINO).state_dict()
    source = {f"module.backbone.{name}": tensor for name, tensor in plain.items()}
    source |= {f"module.head.mlp.{i}.weight": torch.ones(2, 2) for i in (0, 2, 4)}
    source |= {"module.head.last_layer.weight_v": torch.ones(2, 2)}
    notes = convert_weights(source, architecture(DINO)).notes
    assert (
        "Left out module.head.mlp.0.weight, module.head.mlp.2.weight, module.head.mlp.4.weight "
        "and 1 more: the projection heads of its pretraining."
    ) in notes


def test_the_teacher_of_a_training_checkpoint_is_taken():
    student, teacher = (theirs(DINO, seed=seed).state_dict() for seed in (1, 2))
    source = {f"student.backbone.{name}": tensor for name, tensor in student.items()}
    source |= {f"teacher.backbone.{name}": tensor for name, tensor in teacher.items()}
    source |= {"teacher.dino_head.mlp.0.weight": torch.ones(2, 2)}
    source |= {"dino_loss.center": torch.ones(1, 2)}
    weights, notes = convert_weights(source, architecture(DINO))
    torch.testing.assert_close(weights, convert_state_dict(teacher, architecture(DINO)))
    assert any("its student, since its teacher is taken" in note for note in notes)
    assert any("state of its losses" in note for note in notes)


def test_patch_size_and_grid_are_adapted_as_timm_does():
    model = theirs(DINOV2)
    arguments = architecture(DINOV2, patch_px=16, image_px=96)
    weights, notes = convert_weights(model.state_dict(), arguments)
    assert "Adapted the patch projection from 14 to 16 px." in notes
    assert "Adapted the position grid from 4 x 4 to 6 x 6 patches." in notes
    wanted = theirs(DINOV2, seed=3, patch_size=16, img_size=96)
    state = dict(model.state_dict())
    state["patch_embed.proj.weight"] = resample_patch_embed(
        state["patch_embed.proj.weight"], [16, 16]
    )
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [6, 6], num_prefix_tokens=1)
    wanted.load_state_dict(state)
    assert_same_function(loaded(weights, arguments), wanted, 96)


def test_what_we_alone_have_is_new_and_named():
    arguments = architecture(DINO, qk_norm=True, dual_patch_norm=True)
    weights, notes = convert_weights(theirs(DINO).state_dict(), arguments)
    model = loaded(weights, arguments)
    assert torch.isfinite(tokens(model, torch.ones(1, 3, 64, 64))).all()
    assert weights["blocks.2.attn.q_norm.weight"].unique().tolist() == [1.0]
    assert weights["patch_embed.norm_in.bias"].unique().tolist() == [0.0]
    assert weights["mask_token"].unique().tolist() == [0.0]
    assert notes[-2:] == (
        "Added new QK norms, which change what the encoder computes.",
        "Added new dual patch norms, which change what the encoder computes.",
    )


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        (DINO, {"width": 120}, "has width 96, and this architecture 120. Set model.width"),
        (DINO, {"depth": 4}, "has depth 3, and this architecture 4"),
        (DINO, {"n_registers": 4}, "has n_registers 0, and this architecture 4"),
        (REGISTERS, {"n_registers": 8}, "has n_registers 4, and this architecture 8"),
        (
            DINO,
            {"mlp_ratio": 3.0},
            "has hidden 384, and this architecture 288. Set model.mlp_ratio to 4.0",
        ),
        (DINO, {"feed_forward": "swiglu"}, "has feed_forward 'mlp'"),
        (DINO, {"layer_scale": 1e-5}, "Set model.layer_scale to null"),
        (DINOV2, {"layer_scale": None}, r"Set model.layer_scale to 1.0e-5"),
    ],
)
def test_another_architecture_is_refused_with_the_remedy(kind, changes, says):
    with pytest.raises(EncoderError, match=says) as refusal:
        convert_state_dict(theirs(kind).state_dict(), architecture(kind, **changes), path="a.pth")
    assert refusal.value.path == "a.pth"


def test_norms_that_this_architecture_lacks_are_refused():
    with pytest.raises(EncoderError, match=r"has qk_norm.*Set model.qk_norm to true"):
        convert_state_dict(theirs(DINO, qk_norm=True).state_dict(), architecture(DINO))
    ours = make_encoder(architecture=ARCHITECTURE | {"dual_patch_norm": True}).model.state_dict()
    with pytest.raises(EncoderError, match=r"has dual_patch_norm.*to true"):
        convert_state_dict(ours, ARCHITECTURE)
    changes = {"dual_patch_norm": True, "patch_px": 16}
    with pytest.raises(EncoderError, match="pixel by pixel, which cannot be adapted to 16 px"):
        convert_state_dict(ours, ARCHITECTURE | changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("blocks.1.norm1.weight"), "no tensor 'blocks.1.norm1.weight'"),
        (lambda w: w.pop("blocks.1.attn.qkv.bias"), "no tensor 'blocks.1.attn.qkv.bias'"),
        (lambda w: w.pop("norm.bias"), "no tensor 'norm.bias'"),
        (lambda w: w.pop("pos_embed"), "needs a learned pos_embed"),
        (lambda w: w.pop("patch_embed.proj.weight"), "needs a tensor 'patch_embed.proj.weight'"),
        (lambda w: w.update({"norm_pre.weight": torch.ones(96)}), "an unknown tensor 'norm_pre"),
        (lambda w: w.update({"norm.bias": torch.ones(95)}), r"'norm.bias' of shape \(95,\) for"),
        (lambda w: w.update({"norm.bias": torch.ones(96, dtype=torch.int8)}), "floating dtype"),
        (lambda w: w["norm.bias"].__setitem__(1, torch.nan), "'norm.bias' holds NaN"),
        (lambda w: w["cls_token"].__setitem__(0, torch.inf), "'cls_token' holds NaN or an inf"),
        (lambda w: w.update(pos_embed=torch.ones(1, 15, 96)), "square patch grid; got 15"),
        (
            lambda w: w.update({"patch_embed.proj.weight": torch.ones(96, 1, 16, 16)}),
            "patch projection of 3 channels",
        ),
        (
            lambda w: w.update({"blocks.0.mlp.fc2.weight": torch.ones(96, 100)}),
            "got fc1 384 to fc2 100",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, says):
    weights = dict(theirs(DINO).state_dict())
    change(weights)
    with pytest.raises(EncoderError, match=says):
        convert_state_dict(weights, architecture(DINO))


def test_many_misfits_are_counted():
    weights = dict(theirs(DINO).state_dict())
    for name in [name for name in weights if name.startswith("blocks.1.")]:
        del weights[name]
    with pytest.raises(EncoderError, match="and 9 more"):
        convert_state_dict(weights, architecture(DINO))
