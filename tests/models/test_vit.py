"""What the transformer promises beyond equality with timm: lists, masks, depth, refusals."""

import copy

import pytest
import torch

from anlage.models.layers.packing import SequenceShape
from anlage.models.vit import TokenOutput, VisionTransformer


def tiny(**options: object) -> VisionTransformer:
    torch.manual_seed(11)
    settings = {"image_px": 32, "patch_px": 8, "width": 48, "depth": 3, "n_heads": 3}
    settings |= {"n_registers": 2, "layer_scale": 0.7}
    return VisionTransformer(**(settings | options))


def images(n: int, *size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def assert_same(left: TokenOutput, right: TokenOutput, atol: float = 1e-6) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


def test_shapes_of_what_comes_out() -> None:
    large, small = tiny()([images(2, 32, 32), images(5, 16, 24)])
    assert large.cls_BD.shape == (2, 48)
    assert large.registers_BRD.shape == (2, 2, 48)
    assert large.patches_BND.shape == (2, 16, 48)
    assert small.patches_BND.shape == (5, 6, 48)
    assert tiny(n_registers=0).embed(images(2, 32, 32)).registers_BRD.shape == (2, 0, 48)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "dual_patch_norm": True}])
def test_a_list_of_sizes_equals_each_size_alone(options: dict) -> None:
    model = tiny(**options).eval()
    batch = [images(2, 32, 32), images(5, 16, 16), images(1, 48, 24)]
    mask = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) > 0.5
    masks = [None, mask, None]
    together = model(batch, masks)
    for image, one_mask, output in zip(batch, masks, together, strict=True):
        assert_same(output, model([image], [one_mask])[0])


def test_gradients_of_a_list_equal_the_sum_of_each_size_alone() -> None:
    model = tiny()
    batch = [images(2, 32, 32), images(5, 16, 16)]
    sum(output.cls_BD.square().sum() for output in model(batch)).backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for image in batch:
        model.embed(image).cls_BD.square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in together:
            torch.testing.assert_close(parameter.grad, together[name], atol=1e-4, rtol=1e-4)


def test_an_image_does_not_depend_on_what_it_is_batched_with() -> None:
    model = tiny().eval()
    batch = images(7, 32, 32)
    whole = model.embed(batch)
    for i in range(7):
        alone = model.embed(batch[i : i + 1])
        assert_same(TokenOutput(*(part[i : i + 1] for part in whole)), alone)


def test_the_mask_token_replaces_exactly_the_masked_patches() -> None:
    model = tiny().eval()
    torch.nn.init.normal_(model.mask_token)
    image = images(2, 32, 32)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 5] = True
    changed = image.clone()
    changed[0, :, 8:16, 8:16] = 9.0  # patch 5 of image 0: row 1, column 1
    (plain,), (masked,), (hidden,) = (
        model([image]),
        model([image], [mask]),
        model([changed], [mask]),
    )
    assert_same(masked, hidden)  # what lies under a mask is not seen
    assert (plain.cls_BD[0] - masked.cls_BD[0]).abs().max() > 1e-3
    torch.testing.assert_close(plain.cls_BD[1], masked.cls_BD[1])
    (nothing,) = model([image], [torch.zeros_like(mask)])
    assert_same(plain, nothing)


def test_a_fully_masked_image_is_the_mask_token_and_the_positions() -> None:
    model = tiny().eval()
    mask = torch.ones(1, 16, dtype=torch.bool)
    (one,), (other,) = (model([images(1, 32, 32, seed=s)], [mask]) for s in (1, 2))
    assert_same(one, other)


def test_the_mask_token_learns() -> None:
    model = tiny()
    mask = torch.ones(1, 16, dtype=torch.bool)
    model([images(1, 32, 32)], [mask])[0].cls_BD.square().sum().backward()
    assert model.mask_token.grad.abs().max() > 0


def test_patches_without_position_embedding_are_interchangeable() -> None:
    model = tiny().eval()
    left = images(1, 32, 32)
    right = left.roll(8, dims=-1)
    moved = model.embed(left).cls_BD - model.embed(right).cls_BD
    torch.nn.init.zeros_(model.pos_embed)
    same = model.embed(left).cls_BD - model.embed(right).cls_BD
    assert moved.abs().max() > 1e-4
    assert same.abs().max() < 1e-5


def test_stochastic_depth_is_off_at_rate_zero_and_in_evaluation() -> None:
    plain, deep = tiny(), tiny(stochastic_depth=0.6)
    deep.load_state_dict(plain.state_dict())
    batch = images(6, 32, 32)
    torch.testing.assert_close(
        plain.train().embed(batch), plain.eval().embed(batch), rtol=0, atol=0
    )
    torch.testing.assert_close(deep.eval().embed(batch), plain.embed(batch), rtol=0, atol=0)
    assert (deep.train().embed(batch).cls_BD - plain.embed(batch).cls_BD).abs().max() > 1e-3


def test_stochastic_depth_repeats_with_torchs_state_or_a_generator() -> None:
    model = tiny(stochastic_depth=0.5)
    batch = [images(6, 32, 32), images(4, 16, 16)]
    state = torch.get_rng_state()
    first, again = model(batch), model(batch)
    torch.set_rng_state(state)
    repeated = model(batch)
    assert (first[0].cls_BD - again[0].cls_BD).abs().max() > 1e-3
    torch.testing.assert_close(first, repeated, rtol=0, atol=0)

    state = torch.get_rng_state()
    with_generator = [model(batch, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    torch.testing.assert_close(*with_generator, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)  # the global one is left alone


@torch.no_grad()
def test_stochastic_depth_draws_block_by_block_branch_by_branch_size_by_size() -> None:
    """The draws written out; a change of their order would change every run that is resumed."""
    model = tiny(stochastic_depth=0.5).double()
    batch = [images(5, 32, 32).double(), images(7, 16, 16).double()]
    seen = model(batch, generator=torch.Generator().manual_seed(2))

    draw = torch.Generator().manual_seed(2)
    sizes = [model._tokens(part, None) for part in batch]
    for block in model.blocks:
        for norm, branch, gain in (
            (block.norm1, block.attn, block.ls1),
            (block.norm2, block.mlp, block.ls2),
        ):
            for tokens_BSD in sizes:
                n_images, n_tokens = tokens_BSD.shape[:2]
                n_kept = round(n_images / 2)
                for image in torch.randperm(n_images, generator=draw)[:n_kept].tolist():
                    before = norm(tokens_BSD[image])
                    shape = [[SequenceShape(1, n_tokens)]] if branch is block.attn else []
                    change = branch(before, *shape)
                    tokens_BSD[image] = tokens_BSD[image] + gain(change) * n_images / n_kept
    for tokens_BSD, output in zip(sizes, seen, strict=True):
        torch.testing.assert_close(output.cls_BD, model.norm(tokens_BSD)[:, 0])


@pytest.mark.parametrize("is_global", [False, True])
def test_stochastic_depth_draws_as_it_did(is_global: bool) -> None:
    """First channel of CLS tokens, written down at 76a4c9a, where blocks drew for themselves."""
    torch.manual_seed(0)
    model = VisionTransformer(
        image_px=32, patch_px=8, width=24, depth=3, n_heads=3, n_registers=2,
        stochastic_depth=0.5, layer_scale=0.7,
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    torch.manual_seed(1)
    batch = [torch.randn(5, 3, 32, 32).double(), torch.randn(7, 3, 16, 16).double()]
    generator = None if is_global else torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    seen = model.double()(batch, generator=generator)
    found = [value for part in seen for value in part.cls_BD[:, 0].tolist()]
    wanted = [
        *(0.80309, 1.14059, 1.093813, -0.317109, -0.534298),
        *(-0.032891, 0.523931, 0.501824, 0.879764, -0.938338, 0.794709, 1.04889),
    ]
    assert found == pytest.approx(wanted, abs=2e-6)


def test_weights_start_as_in_dinov2() -> None:
    model = tiny(width=192, depth=2, layer_scale=1e-5, stochastic_depth=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            assert parameter.unique().tolist() == [pytest.approx(1e-5)]
        elif "norm" in name:
            assert parameter.unique().tolist() == [1.0 if name.endswith("weight") else 0.0]
        elif name.endswith("bias") or name == "mask_token":
            assert parameter.abs().max() == 0
        elif name in {"cls_token", "reg_token"}:
            assert 0 < parameter.std() < 2e-6
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name


def test_initialise_repeats_with_a_generator() -> None:
    models = [tiny(), tiny()]
    for model in models:
        model.initialise(torch.Generator().manual_seed(5))
    for left, right in zip(*(m.state_dict().values() for m in models), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_runs_under_autocast_close_to_float32() -> None:
    model = tiny(qk_norm=True, dual_patch_norm=True, feed_forward="swiglu", stochastic_depth=0.2)
    batch = images(4, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.embed(batch).cls_BD.float().square().sum().backward()
        model.eval()
        rough = model.embed(batch).cls_BD.float()
    torch.testing.assert_close(rough, model.embed(batch).cls_BD, atol=0.1, rtol=0.1)


def test_a_deep_copy_shares_nothing() -> None:
    model = tiny()
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(twin.cls_token)
    assert model.cls_token.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"image_px": 33}, "Use image_px=32"),
        ({"image_px": 4}, "Use image_px=8"),
        ({"n_heads": 5}, "divisors of the width"),
        ({"n_heads": 0}, "divisors of the width"),
        ({"depth": 0}, "at least one block"),
        ({"stochastic_depth": 1.0}, "0 switches it off"),
        ({"stochastic_depth": -0.1}, "0 switches it off"),
        ({"feed_forward": "relu"}, "'mlp' or 'swiglu'; got 'relu'"),
    ],
)
def test_refuses_an_architecture_that_does_not_fit(options: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        tiny(**options)


def test_refuses_images_that_do_not_fit() -> None:
    model = tiny()
    with pytest.raises(ValueError, match=r"got 30 x 32 px. Crop or resize to 32 x 32 px"):
        model.embed(images(1, 30, 32))
    with pytest.raises(ValueError, match="channels first"):
        model.embed(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match="channels first"):
        model.embed(torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match="one or more image tensors"):
        model([])
    with pytest.raises(ValueError, match="lists of equal length"):
        model([images(1, 32, 32)], [None, None])


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(2, 15, dtype=torch.bool),
        torch.zeros(1, 16, dtype=torch.bool),
        torch.zeros(2, 16),
    ],
)
def test_refuses_a_mask_that_does_not_fit(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="Flatten the patch grid row by row"):
        tiny()([images(2, 32, 32)], [mask])
