"""Everything a pretraining run changes as it goes, and where it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anlage.distributed import ALONE, Ranks
from anlage.models.vit import VisionTransformer
from anlage.training.checkpoint import SavedCheckpoint
from anlage.training.checkpoint_index import flat_tensors
from anlage.training.compiled import compile_parts
from anlage.training.distill import Guide, guide_of
from anlage.training.float8 import refuse_without_float8, use_float8
from anlage.training.networks import EncoderWithHeads, Pupil, frozen_copy
from anlage.training.objective_config import Gram
from anlage.training.optimizer import build_optimizer, make_room, optimizer_state
from anlage.training.parallel import Layout, own_shards, whole
from anlage.training.precision import autocast_dtype
from anlage.training.start import start_from
from anlage.training.tile_config import TilePretrainConfig


@dataclass
class Training:
    """Everything a run changes as it goes; what a checkpoint holds.

    Attributes:
        config: The resolved recipe; in the last stage, as it is then.
        run_dir: The run's folder.
        record: What it was made from: ``run.json``, and what it was resumed with if that changed.
        device: Where tensors live.
        layout: Over which ranks the networks lie.
        student: Trained network.
        run_student: Runs it: itself, or DDP around it.
        teacher: Its moving average.
        optimizer: Over the student.
        centers: Centres of the teacher's logits (centering only).
        mean: (3, 1, 1) channel means taken off the pixels, on the device.
        std: (3, 1, 1) channel deviations they are divided by.
        sound: Scalar on the device: 1 until a loss or a gradient is not finite, 0 from then on, so
            that no weight is changed any more before the host has heard of it.
        step: Finished steps.
        gram: Earlier teacher that Gram anchoring holds on to; None before it begins.
        guide: Frozen teacher of a distillation; None where the moving average teaches.
    """

    config: TilePretrainConfig
    run_dir: Path
    record: dict[str, Any]
    device: torch.device
    layout: Layout
    student: EncoderWithHeads | Pupil
    run_student: Any
    teacher: EncoderWithHeads | Pupil
    optimizer: torch.optim.Optimizer
    centers: dict[str, Tensor]
    mean: Tensor
    std: Tensor
    sound: Tensor
    step: int = 0
    gram: VisionTransformer | None = None
    guide: Guide | None = field(default=None, repr=False)

    @property
    def ranks(self) -> Ranks:
        """The processes that share each step."""
        return self.layout.ranks

    @property
    def checkpoint_bytes(self) -> int:
        """What a checkpoint takes on disk, about: both networks, and the student's moments."""
        student, teacher = (
            sum(parameter.nbytes for parameter in network.parameters())
            for network in (self.student, self.teacher)
        )
        return 3 * student + teacher

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the tensors themselves, sharded as they are.

        Every random choice is a function of seed and step instead.
        """
        held = {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": optimizer_state(self.optimizer, self.student),
            "centers": self.centers,
        }
        return held if self.gram is None else {**held, "gram": self.gram.state_dict()}

    def restore(self, saved: SavedCheckpoint) -> None:
        """Read a checkpoint into the tensors that are there, from however many ranks it is.

        Raises:
            CheckpointError: If it is of other networks.
        """
        self._make_room([stored.path for stored in saved.index.tensors])
        saved.load_into(self.state(), ranks=self.ranks)
        self.step = saved.step

    def take_over(self, step: int, state: Mapping[str, Any]) -> None:
        """Copy the state of a step that was saved for replay, on one device.

        Args:
            step: Finished steps.
            state: What ``state`` gave then.
        """
        flat, paths = flat_tensors(state)
        self._make_room(list(paths.values()))
        for name, tensor in flat_tensors(self.state())[0].items():
            tensor.detach().copy_(flat[name])
        self.step = step

    def _make_room(self, paths: Sequence[Sequence[str]]) -> None:
        """Have a tensor for everything that will be read: moments, and the Gram teacher."""
        names: dict[str, set[str]] = {}
        for part, *path in paths:
            if part == "optimizer":
                names.setdefault(path[0], set()).add(path[1])
            elif part == "gram" and self.gram is None:
                self.gram = self._fresh_encoder()
        make_room(self.optimizer, self.student, names)

    def anchor_teacher(self) -> None:
        """Take the teacher of now as the Gram teacher, if this step asks for it."""
        gram = self.config.objective.gram
        if gram is not None and is_anchored_at(gram, self.step, steps=self.config.steps):
            if self.gram is None:
                self.gram = self._fresh_encoder()
            held, now = self.gram.parameters(), self.teacher.encoder.parameters()
            torch._foreach_copy_(own_shards(held), own_shards(now))

    def whole_encoder(self) -> VisionTransformer | None:
        """The teacher's encoder in one piece; a collective where it is sharded.

        Returns:
            It on rank 0, on the CPU where it had to be put together; None on the others.
        """
        encoder = self.teacher.encoder
        if not self.layout.is_sharded:
            return encoder if self.ranks.is_main else None
        weights = {}
        for name, tensor in encoder.state_dict().items():
            gathered = whole(tensor)  # by all; kept by one
            if self.ranks.is_main:
                weights[name] = gathered.cpu()
        if not self.ranks.is_main:
            return None
        built = _undrawn_encoder(self.config)
        built.load_state_dict(weights)
        return built

    def _fresh_encoder(self) -> VisionTransformer:
        """A frozen encoder that lies as the networks do; its values are to be set."""
        encoder = _undrawn_encoder(self.config).to(self.device)
        self.layout.spread(encoder)
        return encoder


def _undrawn_encoder(config: TilePretrainConfig) -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        encoder = VisionTransformer(**config.model.model_dump())
    return encoder.requires_grad_(requires_grad=False).eval()


def is_anchored_at(gram: Gram, step: int, *, steps: int) -> bool:
    """Whether the Gram teacher is taken anew before this step."""
    first = round(gram.start * steps)
    if step < first or gram.refresh_every is None:
        return step == first
    period = max(1, round(gram.refresh_every * steps))
    done, left = divmod(step - first, period)
    return left == 0 and done <= gram.max_refreshes


def fresh_training(
    config: TilePretrainConfig,
    run_dir: Path,
    record: dict[str, Any],
    *,
    device: torch.device,
    ranks: Ranks = ALONE,
    is_restored: bool = False,
) -> Training:
    """Student, teacher and optimiser at step 0, from the seed and what ``init`` names.

    Args:
        config: The resolved recipe.
        run_dir: The run's folder.
        record: ``run.json``; what the weights come from is added to it.
        device: Where to train.
        ranks: The processes that share each step; all begin with the same weights.
        is_restored: A checkpoint is put into it next, so that ``init`` need not be there any more.

    Raises:
        EncoderError: If the weights named cannot be read or do not fit.
        CheckpointError: If the run named has other networks.
        DeviceError: If the device lacks what ``engine`` asks for: CUDA graphs, float8 products.
        DistributedError: If the ranks cannot be laid out as ``engine`` says.
        RecipeError: If float8 is asked for and torchao, bf16 or fitting layers are not there.
    """
    dtype = autocast_dtype(config.precision, device)
    layout = Layout.of(config.engine, ranks, device, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        # before the seed: the student does not depend on its teacher
        guide = guide_of(config, ranks=ranks)
        torch.manual_seed(config.seed)
        student: EncoderWithHeads | Pupil = (
            Pupil(config.model, target_width=guide.width)
            if guide is not None and guide.has_no_heads
            else EncoderWithHeads(config.model, config.head, config.patch_head)
        )
    teacher = frozen_copy(student)
    centers = {
        "cls": torch.zeros(config.head.n_prototypes),
        "patch": torch.zeros((config.patch_head or config.head).n_prototypes),
    }
    if not is_restored:
        both = (student, teacher)
        centers |= start_from(config.init, both, config=config, record=record, ranks=ranks)
    if guide is not None:
        record["distilled_from"] = guide.provenance
        guide = guide.to(device)
    student, teacher = student.to(device), teacher.to(device)
    _lay_out((student, teacher), guide, layout, config)
    return Training(
        config=config,
        run_dir=run_dir,
        record=record,
        device=device,
        layout=layout,
        student=student,
        run_student=layout.runner(student),
        teacher=teacher,
        optimizer=build_optimizer(student, config.optimizer, depth=config.model.depth),
        centers={name: center.to(device) for name, center in centers.items()},
        mean=_channels(config.mean, device),
        std=_channels(config.std, device),
        sound=torch.ones((), device=device),
        guide=guide,
    )


def _lay_out(
    networks: tuple[EncoderWithHeads | Pupil, EncoderWithHeads | Pupil],
    guide: Guide | None,
    layout: Layout,
    config: TilePretrainConfig,
) -> None:
    """Compile networks and then shard them, in place, as the recipe asks for."""
    student, _ = networks
    # a parameter that gets no gradient would keep DDP waiting for it
    if not config.objective.uses_patches or guide is not None:
        student.encoder.mask_token.requires_grad = False
    if config.engine.linears == "float8":  # the teacher's stay plain, as they are in its encoder
        refuse_without_float8(student.encoder.cls_token.device, layout.dtype)
        use_float8(student.encoder)
    if config.engine.compile != "none":
        for network in networks:
            compile_parts(network.parts().values(), replays=config.engine.compile == "graphs")
    for whole_network in (*networks, *([] if guide is None else [guide.network])):
        layout.spread(whole_network)


def _channels(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
