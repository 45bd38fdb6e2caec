"""What a run asks of many machines, beside closed forms by hand and rings that are walked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anlage.cli.dry_run import say_plan
from anlage.errors import RecipeError
from anlage.recipe import load_recipe
from anlage.training.cluster import Cluster, cluster_of
from anlage.training.plan import plan_of
from anlage.training.plan_cost import RunCost, cost_of, network_cost
from anlage.training.plan_cost_lines import cost_lines
from anlage.training.tile_config import TilePretrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "what_a_large_run_costs.md"
LARGE = ("gpus=64", "n_slides=3100000", "slide_gb=1.2")


def recipe(name: str, *overrides: str) -> TilePretrainConfig:
    return load_recipe(name, TilePretrainConfig, overrides=overrides)


def cost(name: str, *overrides: str, mfu: float = 0.35, **cluster: float) -> RunCost:
    config = recipe(name, *overrides)
    return cost_of(plan_of(config, mfu=mfu), config, Cluster.model_validate(cluster))


def leaving(n_bytes: float, ring: list[int], *, rounds: int) -> dict[int, float]:
    """Bytes that leave each machine while chunks go around a ring of ranks, link by link.

    ``ring`` names the machine of each rank; each round passes one chunk over every link.
    """
    left = dict.fromkeys(ring, 0.0)
    for _ in range(rounds):
        for rank, machine in enumerate(ring):
            if ring[(rank + 1) % len(ring)] != machine:
                left[machine] += n_bytes / len(ring)
    return left


@pytest.mark.parametrize(("machines", "per_machine"), [(4, 8), (2, 2), (3, 1)])
def test_ddp_sends_what_a_ring_of_all_ranks_sends(machines: int, per_machine: int) -> None:
    ring = [rank // per_machine for rank in range(machines * per_machine)]
    sent = leaving(4 * 1000, ring, rounds=2 * (len(ring) - 1))
    found = network_cost(
        blocks=900,
        rest=100,
        block_bytes=2,
        parts=5,
        looks=2,
        ranks=len(ring),
        sharers=1,
        per_machine=per_machine,
    )
    assert found.gathered == 0
    assert list(sent.values()) == pytest.approx([found.reduced] * machines)


@pytest.mark.parametrize("sharers", [2, 4, 8, 16])
@pytest.mark.parametrize("block_bytes", [2, 4])
def test_shards_send_what_rings_of_their_groups_send(sharers: int, block_bytes: int) -> None:
    """Sixteen ranks on machines of four: groups within a machine, of one, of two, of all."""
    ranks, per_machine, blocks, rest, parts = 16, 4, 960, 64, 3
    machine_of = [rank // per_machine for rank in range(ranks)]
    gathered, reduced = dict.fromkeys(range(4), 0.0), dict.fromkeys(range(4), 0.0)

    def add(to: dict[int, float], n_bytes: float, ring: list[int], rounds: int) -> None:
        for machine, n_sent in leaving(n_bytes, ring, rounds=rounds).items():
            to[machine] += n_sent

    for first in range(0, ranks, sharers):  # a copy of the networks
        ring = machine_of[first : first + sharers]
        for _ in range(parts):
            add(gathered, block_bytes * blocks, ring, sharers - 1)  # student, forward
            add(gathered, block_bytes * blocks, ring, sharers - 1)  # student, backward
            add(gathered, 4 * rest, ring, sharers - 1)
            add(gathered, block_bytes * blocks, ring, sharers - 1)  # teacher
            add(reduced, 4 * (blocks + rest), ring, sharers - 1)
        add(gathered, 4 * rest, ring, sharers - 1)  # teacher
    for shard in range(sharers):  # its copies sum it
        ring = machine_of[shard::sharers]
        for _ in range(parts):
            add(reduced, 4 * (blocks + rest) / sharers, ring, 2 * (len(ring) - 1))
    found = network_cost(
        blocks=blocks,
        rest=rest,
        block_bytes=block_bytes,
        parts=parts,
        looks=1,
        ranks=ranks,
        sharers=sharers,
        per_machine=per_machine,
    )
    assert list(gathered.values()) == pytest.approx([found.gathered] * 4)
    assert list(reduced.values()) == pytest.approx([found.reduced] * 4)


def test_one_machine_sends_nothing() -> None:
    (stage,) = cost("virchow2", gpus=8).stages
    assert [network.total for network in stage.network.values()] == [0, 0, 0]
    assert sum("nothing leaves a machine" in line for line in cost_lines(cost("virchow2"))) == 3


def test_virchow2_on_64_gpus_equals_closed_forms() -> None:
    found = cost("virchow2", gpus=64, n_slides=3_100_000, mfu=0.4)
    d, depth, k = 1280, 32, 131072
    hidden = 8 * ((int(d * 4 * 2 / 3) + 7) // 8)
    block = 4 * d * d + 3 * d * hidden + 4 * d + 2 * hidden + d  # linear layers
    blocks = depth * block
    norms = depth * (4 * d + 2 * d)  # and LayerScale
    heads = sum(d * 2048 + 2048**2 + 2048 * e + e * k + 2 * 2048 + e + k for e in (384, 256))
    rest = (16**2 + 4 + 2) * d + (3 * 14 * 14 + 1) * d + 2 * d + norms + heads
    n = blocks + rest

    (stage,) = found.stages
    assert (found.parts, found.part_size) == (2, 32)
    ddp, fsdp2, hsdp = (stage.network[kind] for kind in ("ddp", "fsdp2", "hsdp"))
    assert ddp.total == pytest.approx(2 * 63 / 64 * 4 * n)
    assert fsdp2.gathered == pytest.approx(
        63 / 64 * (2 * (2 * 3 + 2) * blocks + 4 * (2 * 2 + 1) * rest)
    )
    assert fsdp2.reduced == pytest.approx(2 * 63 / 64 * 4 * n)
    assert (hsdp.gathered, hsdp.reduced) == (0, pytest.approx(2 * 2 * 7 / 8 * 4 * n))

    at_once = 4 * 2 * rest + 2 * rest + (4 + 2 * 2) * block
    assert stage.memory["ddp"].networks == 4 * 5 * n + 2 * n
    assert stage.memory["fsdp2"].networks == pytest.approx(4 * 5 * n / 64 + at_once)
    assert stage.memory["hsdp"].networks == pytest.approx(4 * 5 * n / 8 + at_once)
    whole = found.plan.stages[0].memory
    for memory in stage.memory.values():
        assert memory.views == whole.views / 64
        assert memory.activations == pytest.approx(whole.activations)  # 32 tiles at a time, too
        assert memory.scores == whole.scores

    rate = 64 * 0.4 * 989e12 / found.plan.stages[0].flops.total
    assert stage.tiles_per_s == pytest.approx(rate)
    assert found.hours == pytest.approx(2e9 / rate / 3600, rel=1e-3)
    fields = {
        392: 0.4,
        784: 0.4 + 0.2,
    }  # px of a level: 0.25 and 1 µm as they are, 0.5 and 2 halved
    native = sum(share * (f / 240 + 1) ** 2 for f, share in fields.items()) / (512 / 240 + 1) ** 2
    assert stage.reading.n_bytes == pytest.approx(93_000 * native)
    total = found.plan.tiles * 93_000 * native + 3_100_000 * 660_000
    assert found.bytes_read == pytest.approx(total)


def test_recomputing_all_keeps_less() -> None:
    (stage,) = cost("virchow2", gpus=64).stages
    for kind, memory in stage.memory.items():
        assert stage.recomputed[kind].activations < 0.5 * memory.activations
        assert stage.recomputed[kind].networks == memory.networks


@pytest.mark.parametrize("stochastic_depth", [0.0, 0.5])
def test_the_block_that_runs_again_is_counted_whole(stochastic_depth: float) -> None:
    """Of one block as much as where nothing runs again; each further one adds its input."""

    def activations(depth: int) -> tuple[float, float]:
        sizes = f"model.depth={depth}", f"model.stochastic_depth={stochastic_depth}"
        found = cost("virchow2", *sizes, gpus=64)
        (stage,) = found.stages
        assert found.part_size == 32
        return stage.memory["ddp"].activations, stage.recomputed["ddp"].activations

    tokens = 32 * (2 * (1 + 4 + 16**2) + 8 * (1 + 4 + 7**2))
    # float32 input; of both branches the 12 bytes of number and weight of each row that is drawn
    an_input = tokens * (4 * 1280 + (2 * 12 * 0.5 if stochastic_depth else 0))
    (plain, one), (_, three) = activations(1), activations(3)
    assert three - one == pytest.approx(2 * an_input)
    assert one - plain == pytest.approx(an_input if stochastic_depth else 0)


def test_parts_are_as_large_as_the_recipe_takes_them_or_smaller() -> None:
    assert (cost("virchow2", gpus=8).parts, cost("virchow2", gpus=8).part_size) == (16, 32)
    uneven = cost("tiny", "batch_size=40", "accumulate=5", gpus=2)  # 8 at a time; 20 for each GPU
    assert (uneven.parts, uneven.part_size) == (4, 5)
    few = cost("virchow2", gpus=512)
    assert (few.parts, few.part_size) == (1, 8)
    (stage,) = few.stages
    n = few.plan.encoder_parameters + few.plan.head_parameters
    assert stage.network["fsdp2"].reduced == pytest.approx(511 / 512 * 4 * n)


def test_a_last_stage_is_counted_in_its_own_size() -> None:
    first, last = cost("uni", gpus=64).stages
    assert (first.tiles, last.tiles) == (112_500 * 3072, 12_500 * 3072)
    assert last.reading.n_bytes / first.reading.n_bytes == pytest.approx((1024 + 240) ** 2 / 752**2)
    assert last.tiles_per_s < first.tiles_per_s / 4


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["gpus=12"], "needs whole machines of 8 GPUs; got 12 GPUs. Take gpus=16"),
        (["gpus=24"], "divides batch_size=4096; got 24"),
        (["gpu=8"], "gpus"),
        (["gpus"], "needs key=value; got 'gpus'"),
        (["network_gbit=0"], "network_gbit"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(settings: list[str], told: str) -> None:
    config = recipe("virchow2")
    with pytest.raises(RecipeError, match=r"^--cluster: .*" + re.escape(told)):
        cost_of(plan_of(config), config, cluster_of(settings))


def test_a_setting_stands_over_the_catalogue() -> None:
    assert cluster_of(["gpus=16"], n_slides=7) == Cluster(gpus=16, n_slides=7)
    assert cluster_of(["n_slides=9"], n_slides=7).n_slides == 9


def test_lines_name_what_was_measured_and_what_was_not() -> None:
    told = "\n".join(cost_lines(cost("virchow2", gpus=64, n_slides=3_100_000)))
    for part in (
        *("64 GPUs in 8 machines", "if 35% MFU is reached (--mfu)", "--set accumulate=2"),
        *("3,100,000 of 1.2 GB; 645 tiles of each", "93 kB and 3.1 of 256 px at 0.5 µm over HTTP"),
        *("carried over from docs/benchmarks.md; give yours", "at 400 Gbit/s"),
    ):
        assert part in told
    assert "slides:" not in "\n".join(cost_lines(cost("tiny", gpus=2)))
    given = "\n".join(cost_lines(cost("virchow2", gpus=64, loader_rate=100)))
    assert (
        "loader: 10 threads, a core each, on every machine; one reads 100 tiles/s (as given)"
        in given
    )


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    say_plan(recipe("virchow2"), "virchow2", None, mfu=0.35, peak_tflops=989.0, cluster=LARGE)
    options = " ".join(f"--cluster {setting}" for setting in LARGE)
    command = f"$ anlage pretrain tile --recipe virchow2 --dry-run {options}\n"
    page = PAGE.read_text(encoding="utf-8")
    assert f"{command}{capsys.readouterr().out}```" in page


ROW = re.compile(r"^\| `(\S+)` \|(.*)\|$", re.MULTILINE)


def table_row(name: str) -> str:
    """A row of the page's table, from what the command computes."""
    found = cost(name, gpus=64, n_slides=3_100_000)
    stage = found.stages[0]
    fsdp2, ddp = stage.network["fsdp2"], stage.network["ddp"]
    cells = (
        f"{found.plan.encoder_parameters / 1e6:,.0f} M",
        f"{found.plan.tiles / 1e6:,.0f} M",
        f"{found.plan.gpu_hours:,.0f}",
        f"{found.hours:,.0f}",
        f"{stage.tiles_per_s:,.0f}",
        f"{stage.tiles_per_s * stage.reading.n_bytes / 1e6:,.0f}",
        f"{found.bytes_read / 1e12:,.0f}",
        f"{ddp.total / 1e9:.1f}, {fsdp2.total / 1e9:.1f}",
        f"{stage.memory['ddp'].total / 1e9:.0f}, {stage.memory['fsdp2'].total / 1e9:.0f}",
    )
    return f"| `{name}` | {' | '.join(cells)} |"


def test_the_table_is_what_the_command_computes() -> None:
    page = PAGE.read_text(encoding="utf-8").partition("## By size")[2]
    names = [match.group(1) for match in ROW.finditer(page)]
    assert len(names) >= 5
    for name in names:
        assert table_row(name) in page
