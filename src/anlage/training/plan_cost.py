"""What a run asks of many machines: storage, loaders, network and memory of each GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from anlage.errors import RecipeError
from anlage.models.vit import VisionTransformer
from anlage.models.without_weights import without_weights
from anlage.training.cluster import OPTION, Cluster
from anlage.training.engine_config import Recompute
from anlage.training.parallel import parameters_of_linears
from anlage.training.plan import FLOAT16, FLOAT32, Plan, StagePlan, kept_of_a_tile
from anlage.training.reading_cost import ReadingCost, reading_cost
from anlage.training.tile_config import TilePretrainConfig

GATHERED_BLOCKS = 2  # the one at work, and the next one


class NetworkCost(NamedTuple):
    """Bytes that leave each machine in a step; what its own ranks tell each other is left out.

    Attributes:
        gathered: Weights, gathered before they are used.
        reduced: Gradients.
    """

    gathered: float
    reduced: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.gathered + self.reduced


class GpuMemory(NamedTuple):
    """Bytes on one of many GPUs, as far as they follow from shapes; see ``plan.Memory``.

    Attributes:
        networks: This rank's shards, two-byte copies, and what is gathered at a time.
        views: Views of this rank's tiles.
        activations: What is kept for the backward pass of one part.
        scores: The budget of prototype scores.
    """

    networks: float
    views: float
    activations: float
    scores: float

    @property
    def total(self) -> float:
        """All of them together."""
        return sum(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """What one stage asks for.

    Attributes:
        tiles: Tiles of the stage.
        tiles_per_s: Tiles a second that all GPUs take at the planned MFU.
        reading: What a tile takes to read.
        network: What leaves a machine in a step, by ``engine.kind``.
        memory: Bytes on a GPU, by ``engine.kind``; with the recipe's ``engine.recompute``.
        recomputed: The same with ``engine.recompute=full``.
    """

    tiles: int
    tiles_per_s: float
    reading: ReadingCost
    network: dict[str, NetworkCost]
    memory: dict[str, GpuMemory]
    recomputed: dict[str, GpuMemory]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCost:
    """What a run asks of many machines. Computed; what was measured is named where it is told.

    Attributes:
        plan: The run.
        cluster: Where it is planned for.
        parts: Parts that each rank takes its tiles in (``accumulate``), of at most as many tiles as
            the recipe takes at a time.
        part_size: Tiles of a part.
        stages: The run, and its last stage where it has one.
    """

    plan: Plan
    cluster: Cluster
    parts: int
    part_size: int
    stages: tuple[StageCost, ...]

    @property
    def hours(self) -> float:
        """Hours by the clock."""
        return self.plan.gpu_hours / self.cluster.gpus

    @property
    def bytes_read(self) -> float:
        """Bytes read from storage over the whole run, each slide's index once."""
        opened = self.stages[0].reading.opening_bytes * (self.cluster.n_slides or 0)
        return opened + sum(stage.tiles * stage.reading.n_bytes for stage in self.stages)


def cost_of(plan: Plan, config: TilePretrainConfig, cluster: Cluster) -> RunCost:
    """What a run asks of many machines, from shapes and from figures of docs/benchmarks.md.

    A frozen teacher is counted as if it were as large as the student when it is gathered.

    Args:
        plan: From ``plan_of``.
        config: The recipe it was made from.
        cluster: The machines and slides.

    Returns:
        The cost.

    Raises:
        RecipeError: If the GPUs do not divide the batch, or fill no whole machines.
    """
    _refuse_uneven(plan, cluster)
    share = plan.batch_size // cluster.gpus
    parts = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= plan.part_size)
    configs = (config, config.of_last_stage)[-len(plan.stages) :]
    return RunCost(
        plan=plan,
        cluster=cluster,
        parts=parts,
        part_size=share // parts,
        stages=tuple(
            _stage(stage, of_stage, plan, cluster, parts=parts)
            for stage, of_stage in zip(plan.stages, configs, strict=True)
        ),
    )


class _Sizes(NamedTuple):
    """Parameters: of all blocks' linear layers, of all else, of one block's linear layers."""

    blocks: int
    rest: int
    block: int


def _refuse_uneven(plan: Plan, cluster: Cluster) -> None:
    gpus, machine = cluster.gpus, cluster.gpus_per_machine
    if gpus > machine and gpus % machine:
        whole = cluster.machines * machine
        told = f"needs whole machines of {machine} GPUs; got {gpus} GPUs. Take gpus={whole}."
        raise RecipeError(OPTION, told)
    if plan.batch_size % gpus:
        told = (
            f"needs a number of GPUs that divides batch_size={plan.batch_size}; got {gpus}. Change "
            "one of them."
        )
        raise RecipeError(OPTION, told)


def _sizes(plan: Plan, config: TilePretrainConfig) -> _Sizes:
    with without_weights():
        blocks = VisionTransformer(**config.model.model_dump()).blocks
    in_blocks = sum(parameter.numel() for parameter in parameters_of_linears(blocks))
    everything = plan.encoder_parameters + plan.head_parameters
    return _Sizes(in_blocks, everything - in_blocks, in_blocks // len(blocks))


def _sharing(config: TilePretrainConfig, cluster: Cluster) -> dict[str, int]:
    """Ranks that hold one copy of the networks together, by ``engine.kind``."""
    group = min(config.engine.shard_over or cluster.gpus_per_machine, cluster.gpus)
    return {"ddp": 1, "fsdp2": cluster.gpus, "hsdp": group}


def _stage(
    stage: StagePlan, config: TilePretrainConfig, plan: Plan, cluster: Cluster, *, parts: int
) -> StageCost:
    sizes, sharing = _sizes(plan, config), _sharing(config, cluster)
    share = plan.batch_size // cluster.gpus
    per_tile = stage.flops.total + stage.anchor_flops * stage.anchored_steps / stage.steps
    block_bytes, copy_bytes = (FLOAT32, 0) if config.precision == "fp32" else (FLOAT16, FLOAT16)
    copies = copy_bytes * (sizes.blocks + sizes.rest)

    def memory(recompute: Recompute) -> dict[str, GpuMemory]:
        kept = kept_of_a_tile(config, n_local=stage.n_local, recompute=recompute)
        at_once = FLOAT32 * (2 * sizes.rest + sizes.block)  # with gradients
        at_once += block_bytes * GATHERED_BLOCKS * sizes.block + copy_bytes * sizes.rest
        return {
            kind: GpuMemory(
                networks=(stage.memory.networks - copies) / sharers
                + (at_once if sharers > 1 else copies),
                views=stage.memory.views / cluster.gpus,
                activations=share // parts * kept,
                scores=stage.memory.scores,
            )
            for kind, sharers in sharing.items()
        }

    return StageCost(
        tiles=stage.steps * plan.batch_size,
        tiles_per_s=cluster.gpus * plan.mfu * plan.peak_tflops * 1e12 / per_tile,
        reading=reading_cost(
            config.tiles,
            size_px=config.views.source_px,
            slide_mpp=cluster.slide_mpp,
            loader_rate=cluster.loader_rate,
        ),
        network={
            kind: network_cost(
                blocks=sizes.blocks,
                rest=sizes.rest,
                block_bytes=block_bytes,
                parts=parts,
                looks=2 if stage.second_pass and parts > 1 else 1,
                ranks=cluster.gpus,
                sharers=sharers,
                per_machine=cluster.gpus_per_machine,
            )
            for kind, sharers in sharing.items()
        },
        memory=memory(config.engine.recompute),
        recomputed=memory("full"),
    )


def network_cost(
    *,
    blocks: int,
    rest: int,
    block_bytes: int,
    parts: int,
    looks: int,
    ranks: int,
    sharers: int,
    per_machine: int,
) -> NetworkCost:
    """Bytes that leave each machine in a step, by rings; gradients are summed in float32.

    A ring of R ranks that gathers M bytes, or scatters their sum, sends (R - 1) / R M over each of
    its links; one that sums them for all sends twice that. DDP sums gradients once a step. FSDP2
    and HSDP scatter their sum among the S ranks that share a copy, and HSDP sums the shards of the
    W / S copies, for each part. The student gathers its blocks forward and backward and the rest
    once, all of it once more for a second look; the teacher gathers its blocks for each part, and
    the rest once.

    Args:
        blocks: Parameters of the linear layers in the transformer's blocks.
        rest: Parameters of all else: embeddings, norms, LayerScale, heads; gathered in float32.
        block_bytes: Bytes of each of ``blocks`` when it is gathered.
        parts: Parts of a step.
        looks: Forward passes of the student for each part, 1 or 2.
        ranks: All of them, W.
        sharers: Ranks that share one copy of the networks, S; 1 for DDP.
        per_machine: Ranks of one machine, next to each other.

    Source: Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054, section 7 (volumes of each stage).
    """
    everything = FLOAT32 * (blocks + rest)
    copies = ranks // sharers
    summed = 2 * (1 - 1 / copies) * everything if ranks > per_machine else 0.0
    if sharers == 1:
        return NetworkCost(0.0, summed)
    crossing = 1 - 1 / sharers if sharers > per_machine else 0.0
    of_blocks = block_bytes * blocks * parts * (2 + looks)  # student and teacher
    of_rest = FLOAT32 * rest * (parts * looks + 1)
    scattered = crossing * everything
    summed *= min(1.0, per_machine / sharers)
    return NetworkCost(crossing * (of_blocks + of_rest), parts * (scattered + summed))
