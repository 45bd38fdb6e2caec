"""The templates that embed on a Ray cluster: what a scheduler would be asked, without one.

``ray symmetric-run`` stops every Ray of a machine at its end, so it is not run beside other tests:
small programs in ``PATH`` note what they are called with, and run what follows.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import typer.main
import yaml
from test_launch_templates import LAUNCH, around

from anlage.cli.application import app

NOTES = """#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0") $*" >> "$CALLS"
[ "$(basename "$0")" != scontrol ] || printf 'node1\\nnode2\\n'
while [ $# -gt 0 ] && [ "$1" != ray ] && [ "$1" != anlage ]; do shift; done
exec "${@:-true}"
"""


def options_of(command: str) -> dict[str, Any]:
    """What the command line takes an ``anlage embed tiles`` for; fails where it refuses it."""
    words = shlex.split(command)
    start = words.index("anlage")
    assert words[start : start + 3] == ["anlage", "embed", "tiles"]
    tiles = typer.main.get_command(app).commands["embed"].commands["tiles"]
    return tiles.make_context("tiles", words[start + 3 :]).params


def test_slurm_starts_ray_on_all_machines_and_embeds_once(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("srun", "scontrol", "ray", "anlage"):
        (programs / name).write_text(NOTES, encoding="utf-8")
        (programs / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "40007", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    asked = {"SLURM_CPUS_PER_TASK": "32", "CALLS": str(tmp_path / "calls")}
    given = {"SLIDES": "/data/slides.parquet", "BAGS": "s3://bucket/bags", "ENCODER": "uni"}
    script = ["bash", str(LAUNCH / "ray-slurm.sbatch"), "--batch-size", "256"]
    subprocess.run(script, env=around(programs) | job | asked | given, check=True)
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    srun, started, embeds = (
        next(c for c in calls if c.startswith(p)) for p in ("srun", "ray", "anl")
    )
    assert "--kill-on-bad-exit=0" in srun
    before, _, command = started.partition(" -- ")
    assert before.split()[1:] == [
        *("symmetric-run", "--address", "node1:20007", "--min-nodes", "2", "--num-cpus=32"),
        "--disable-usage-stats",
    ]
    assert command == embeds
    options = options_of(embeds)
    assert (options["engine"], options["ray_address"]) == ("ray", "node1:20007")
    assert (options["encoder"], options["output"]) == (["uni"], "s3://bucket/bags")
    assert (options["threads"], options["batch_size"]) == (8, 256)


@pytest.mark.parametrize("lacking", ["SLIDES", "BAGS", "ENCODER"])
def test_slurm_says_what_it_was_not_given(tmp_path: Path, lacking: str) -> None:
    given = {"SLIDES": "s", "BAGS": "b", "ENCODER": "e"} | {lacking: ""}
    script = ["bash", str(LAUNCH / "ray-slurm.sbatch")]
    ended = subprocess.run(
        script, env=around() | given, capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert f"needs {lacking}" in ended.stderr


def test_a_cluster_in_a_cloud_is_what_ray_up_takes() -> None:
    text = (LAUNCH / "ray-cluster.yaml").read_text(encoding="utf-8")
    cluster = yaml.safe_load(text)
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(cluster, json.loads(schema.read_text(encoding="utf-8")))
    kinds = cluster["available_node_types"]
    assert kinds[cluster["head_node_type"]]["resources"]["CPU"] == 0
    assert "--num-cpus=0" in cluster["head_start_ray_commands"][-1]
    assert kinds["gpu"]["max_workers"] <= cluster["max_workers"]
    command = text.partition("--tmux '")[2].partition("'")[0].replace("#", " ")
    options = options_of(command)
    (folder,) = cluster["file_mounts"]
    assert Path(options["slides"]).parent == Path(folder)
    assert options["workers"] == kinds["gpu"]["max_workers"] * kinds["gpu"]["resources"]["GPU"]
    assert options["threads"] <= kinds["gpu"]["resources"]["CPU"]


def test_the_workers_of_a_kubernetes_job_fit_into_its_pods() -> None:
    job = yaml.safe_load((LAUNCH / "ray-kubernetes.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    options = options_of(job["spec"]["entrypoint"])
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    fit = int(limits["nvidia.com/gpu"] / options["gpus_per_worker"])
    assert fit * options["threads"] <= int(limits["cpu"])
    assert options["workers"] == fit * group["replicas"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    images = set()
    for pod in (cluster["headGroupSpec"]["template"], group["template"]):
        (container,) = pod["spec"]["containers"]
        images.add(container["image"])
        mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert mounted.keys() == {each["name"] for each in pod["spec"]["volumes"]}
        assert mounted["data"] == "/data"
    assert len(images) == 1
    assert options["slides"].startswith("/data/")
    assert options["output"].startswith("/data/")
