"""From slides to a report in five calls, the same as the five commands.

    uv run python examples/five_calls.py OUT

What each call does on the command line stands beside it. Every call reads what the one before
wrote, so any of them can be replaced by your own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from anlage import samples
from anlage.embedding.embed_tiles import embed_tiles
from anlage.evaluation.evaluate import evaluate_encoder
from anlage.recipe import load_recipe
from anlage.report.write import write_report
from anlage.slides.indexing.index import index_slides
from anlage.training.tile_config import TilePretrainConfig
from anlage.training.tile_pretrain import pretrain_tiles


def main(out: Path, *, overrides: tuple[str, ...] = ()) -> Path:
    """Run the chain on the bundled slides and return the path of the report."""
    # anlage index SLIDES --labels slides.csv -o OUT/slides.parquet
    index = index_slides(
        [samples.slides_folder()], out / "slides.parquet", labels=samples.slides_labels()
    )
    for refused in index.refused:
        print(f"refused: {refused.uri}: {refused.reason}")

    # anlage pretrain tile --recipe tiny --slides OUT/slides.parquet --run OUT/run
    recipe = load_recipe("tiny", TilePretrainConfig, overrides=overrides)
    run = pretrain_tiles(recipe, out / "slides.parquet", out / "run")

    # anlage embed tiles --encoder OUT/run/encoder --slides OUT/slides.parquet -o OUT/bags
    embed_tiles(run.encoder, out / "slides.parquet", out / "bags")

    # anlage evaluate --encoder OUT/run/encoder --data organ5.csv -o OUT/scores
    scores = evaluate_encoder(run.encoder, samples.organ_tiles(), out / "scores")
    print("\n".join(scores.summary()))

    # anlage report OUT
    return write_report(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for everything")
    parser.add_argument("--set", action="append", default=[], help="recipe override key=value")
    arguments = parser.parse_args()
    print(main(arguments.out, overrides=tuple(arguments.set)))
