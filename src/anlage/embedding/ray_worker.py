"""What a worker on some machine does: opens the encoder and slides itself, and writes their bags.

No pixel and no embedding leaves it but into a bag. Nothing here knows of Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from anlage.embedding.bag_target import BagTarget
from anlage.embedding.claims import claims_on
from anlage.embedding.embed_pass import EmbedPass
from anlage.embedding.encoder_facts import EncoderFacts
from anlage.embedding.settings import EmbedSettings
from anlage.embedding.slide_plan import Plan, grid_of
from anlage.encoders.open_encoder import open_encoder
from anlage.encoders.precision import Precision
from anlage.errors import DistributedError
from anlage.provenance import versions
from anlage.slides.catalogue import Catalogue
from anlage.slides.indexing.found_slide import Refused

MUST_EQUAL = ("anlage", "torch")  # of the versions
SHARED = "All nodes must see catalogue, slides, encoder and output under the same path, or as URLs"


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteWork:
    """What all workers of a run are told.

    Attributes:
        encoder: What ``open_encoder`` takes.
        catalogue: The catalogue's file, absolute.
        catalogue_fingerprint: What it holds.
        output: Folder or URL of the bags.
        settings: How slides are embedded.
        device: Where the encoder runs, among what the worker was given.
        precision: Its arithmetic.
        trust_remote_code: Whether its repository may run code of its own.
        versions: Those of whoever gives out the slides.
        must_see: Files that are there for whoever gives out the slides.
    """

    encoder: str
    catalogue: str
    catalogue_fingerprint: str
    output: str
    settings: EmbedSettings
    device: str = "auto"
    precision: Precision = "auto"
    trust_remote_code: bool = False
    versions: dict[str, str] = field(default_factory=versions)
    must_see: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupReport:
    """What became of a group of slides; see ``BagTarget`` and ``EmbedPass``."""

    done: list[str]
    skipped: list[str]
    empty: list[str]
    elsewhere: list[str]
    refused: list[Refused]
    n_tiles: int
    wait_s: float
    forward_s: float


class SlideWorker:
    """One encoder on one machine, and the slides that it is given.

    Args:
        work: What to do.
    """

    def __init__(self, work: RemoteWork) -> None:
        self._work = work
        self._target: BagTarget | None = None

    def ready(self) -> EncoderFacts:
        """Open all there is to open.

        Raises:
            DistributedError: If this machine does not see a file, or has other versions.
            AnlageError: If the catalogue or the encoder cannot be opened.
        """
        work = self._work
        self._refuse_other_versions()
        for path in (work.catalogue, *work.must_see):
            if not Path(path).exists():
                raise DistributedError(path, f"a worker's node does not see it. {SHARED}.")
        self._catalogue = Catalogue.open(work.catalogue)
        if self._catalogue.fingerprint != work.catalogue_fingerprint:
            raise DistributedError(work.catalogue, f"a worker's node sees another one. {SHARED}.")
        encoder = open_encoder(
            work.encoder,
            device=work.device,
            precision=work.precision,
            trust_remote_code=work.trust_remote_code,
        )
        self._target = BagTarget(
            name="",
            replicas=[encoder],
            output=work.output,
            grid=grid_of(work.settings, encoder.config),
            with_tokens=work.settings.patch_tokens,
            claims=claims_on(work.output),
        )
        return EncoderFacts.of(encoder)

    def embed(self, slide_ids: Sequence[str]) -> GroupReport:
        """Embed slides, in this order.

        Raises:
            BagError: If another run has put a bag of another kind there meanwhile.
            OSError: If the disk is full; the finished bags stand.
        """
        assert self._target is not None, "ready() comes before"
        plan = Plan(todo=dict.fromkeys(slide_ids))
        target = replace(self._target, plan=plan, done=[], empty=[], elsewhere=[], refused=[])
        settings = self._work.settings
        run = EmbedPass(
            self._catalogue, [target], batch_size=settings.batch_size, threads=settings.threads
        )
        run.run()
        return GroupReport(
            done=target.done,
            skipped=target.plan.skipped,
            empty=[*target.plan.empty, *target.empty],
            elsewhere=target.elsewhere,
            refused=target.refused,
            n_tiles=target.n_tiles,
            wait_s=run.wait_s,
            forward_s=run.forward_s,
        )

    def _refuse_other_versions(self) -> None:
        here = versions()
        for name in MUST_EQUAL:
            if here[name] != self._work.versions[name]:
                msg = (
                    f"is {here[name]} on a worker's node and {self._work.versions[name]} where the "
                    "run was started. Install the same version on all nodes."
                )
                raise DistributedError(name, msg)
