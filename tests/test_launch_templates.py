"""The templates that start a run on many GPUs, run as their schedulers would run them.

SLURM's ``srun`` and ``scontrol`` are not here: two small programs in ``PATH`` take their places.
One starts a task for each machine, and hands a signal on to every process of them, as SLURM does;
the other tells names of machines, and writes down that a job was requeued. Everything else is real:
bash, torchrun, its rendezvous, two ranks, signals.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import two_ranks
import yaml

from anlage import samples
from anlage.slides.indexing.index import index_slides
from micro_recipe import MICRO

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "examples" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
N_STEPS = 40
PATIENCE_S = 180

SRUN = """#!{python}
import os, signal, subprocess, sys, psutil
with open(os.environ["CALLS"], "a") as calls:
    calls.write("srun " + " ".join(sys.argv[1:]) + "\\n")
command = sys.argv[1:]
while command[0].startswith("-"):
    del command[0]
tasks = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_NODEID": str(node)}})
    for node in range(int(os.environ["SLURM_JOB_NUM_NODES"]))
]
def hand_on(number, _):
    for task in tasks:
        for process in [*psutil.Process(task.pid).children(recursive=True), task]:
            process.send_signal(number)
signal.signal(signal.SIGUSR1, hand_on)
sys.exit(max(task.wait() for task in tasks))
"""

SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$CALLS"
[ "$1 $2" != "show hostnames" ] || echo localhost
"""


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of two real slides."""
    catalogue = tmp_path_factory.mktemp("slides") / "slides.parquet"
    names = [samples.slides_folder() / f"{n}__HE.tiff" for n in ("hodgkin", "erosion")]
    assert index_slides(names, catalogue).catalogue is not None
    return catalogue


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """What a batch script finds around it under SLURM."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    return around(programs) | {
        "CALLS": str(tmp_path / "calls"),
        "HERE": str(LAUNCH),
        "SLURM_JOB_ID": str(two_ranks.free_port() - 20000),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "1",
    }


def around(*folders: Path) -> dict[str, str]:
    """The environment with programs of these folders, and those of this Python, found first."""
    path = os.pathsep.join(map(str, (*folders, Path(sys.executable).parent)))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return {**kept, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def options(*more: str) -> list[str]:
    settings = (*MICRO, f"steps={N_STEPS}", "tiles.split=null", "checkpoint_every=1000", *more)
    return ["--device", "cpu", *(word for each in settings for word in ("--set", each))]


def steps_of(run: Path) -> list[int]:
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line)["step"] for line in lines]


def wait_for_steps(run: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE_S
    while len(steps_of(run)) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "no step was done"
        time.sleep(0.05)


def start(script: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """No rank or agent outlives its template."""
    yield
    left = [p for p in psutil.Process().children(recursive=True) if "anlage" in p.cmdline()]
    for process in left:
        process.kill()
    assert not left


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_and_lint_clean(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    subprocess.run([shellcheck, "-S", "warning", "-s", "bash", script], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_a_slurm_job_saves_is_requeued_and_goes_on_on_other_machines(
    tmp_path: Path, slides: Path, slurm: dict[str, str]
) -> None:
    """One machine with two ranks, told that its time is over; then two machines with one each."""
    run, calls = tmp_path / "run", tmp_path / "calls"
    given = slurm | {"SLIDES": str(slides), "RUN": str(run), "RANKS": "2"}
    job = start(LAUNCH / "slurm.sbatch", given, *options())
    wait_for_steps(run, job)
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, said
    told = calls.read_text(encoding="utf-8").splitlines()
    assert told[-1] == f"scontrol requeue {slurm['SLURM_JOB_ID']}", said
    assert "stopped by a signal" in said
    done = steps_of(run)
    assert 2 <= len(done) < N_STEPS

    again = given | {"RANKS": "1", "SLURM_JOB_NUM_NODES": "2", "SLURM_RESTART_COUNT": "1"}
    job = start(LAUNCH / "slurm.sbatch", again, *options())
    said, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, said
    assert f"{N_STEPS} of {N_STEPS} steps" in said
    assert steps_of(run) == list(range(N_STEPS))
    assert calls.read_text(encoding="utf-8").count("requeue") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_what_a_pod_runs_saves_when_it_is_evicted(tmp_path: Path, slides: Path) -> None:
    """SIGTERM, which Kubernetes sends to the first process, ends with the code the job ignores."""
    job, run = job_of_kubernetes(), tmp_path / "run"
    train = job["spec"]["template"]["spec"]["containers"][0]
    assert train["command"] == ["bash", "/launch/torchrun.sh"]
    given = {each["name"]: each["value"] for each in train["env"]}
    here = {"SLIDES": str(slides), "RUN": str(run), "RECIPE": "tiny", "RANKS": "1"}
    one = {"MACHINES": "1", "KIND": "auto"}
    pod = start(LAUNCH / "torchrun.sh", around() | given | here | one, *train["args"], *options())
    wait_for_steps(run, pod)
    pod.send_signal(signal.SIGTERM)
    pod.wait(timeout=PATIENCE_S)
    assert list((run / "checkpoints").glob("step-*")), "it ends when they have saved, not before"
    said, _ = pod.communicate(timeout=PATIENCE_S)
    rules = job["spec"]["podFailurePolicy"]["rules"]
    ignored = next(rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule)
    assert [pod.returncode] == ignored, said


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_left")
def test_a_signal_before_the_first_step_is_not_forgotten(tmp_path: Path, slides: Path) -> None:
    """Ranks that still load what they need do not hear of signals; they stop after one step."""
    run = tmp_path / "run"
    given = around() | {"SLIDES": str(slides), "RUN": str(run), "RANKS": "1"}
    job = start(LAUNCH / "torchrun.sh", given, *options())
    until = time.monotonic() + PATIENCE_S
    while not psutil.Process(job.pid).children(recursive=True):
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 130, said
    assert 1 <= len(steps_of(run)) < N_STEPS
    assert list((run / "checkpoints").glob("step-*.json"))


@pytest.mark.parametrize(
    ("ends_with", "in_an_array", "expected", "is_requeued"),
    [
        ("exit 0", False, 0, False),
        ("exit 7", False, 7, False),
        ("exec sleep 60", False, 0, True),
        ("exec sleep 60", True, 0, False),
    ],
)
def test_only_a_job_that_was_told_to_stop_is_requeued(
    tmp_path: Path,
    slurm: dict[str, str],
    ends_with: str,
    in_an_array: bool,
    expected: int,
    is_requeued: bool,
) -> None:
    """srun ends by itself, or by the signal that it is handed on."""
    srun, calls = tmp_path / "bin" / "srun", tmp_path / "calls"
    srun.write_text(f'#!/usr/bin/env bash\necho srun >> "$CALLS"\n{ends_with}\n', encoding="utf-8")
    array = {"SLURM_ARRAY_TASK_ID": "3"} if in_an_array else {}
    job = start(LAUNCH / "slurm.sbatch", slurm | array)
    if "sleep" in ends_with:
        until = time.monotonic() + 30
        while not calls.exists() or "srun" not in calls.read_text(encoding="utf-8"):
            assert time.monotonic() < until
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=30)
    assert job.returncode == expected, said
    assert ("requeue" in calls.read_text(encoding="utf-8")) == is_requeued


def test_slurm_signals_the_script_in_time_and_appends_to_its_log() -> None:
    lines = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8").splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert asked >= {
        *("--requeue", "--signal=B:USR1@300", "--ntasks-per-node=1", "--open-mode=append"),
    }


def documents() -> list[dict[str, Any]]:
    text = (LAUNCH / "kubernetes-job.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


def job_of_kubernetes() -> dict[str, Any]:
    (job,) = [each for each in documents() if each["kind"] == "Job"]
    return job


def test_the_pods_of_a_kubernetes_job_find_each_other_and_save() -> None:
    (service,) = [each for each in documents() if each["kind"] == "Service"]
    job = job_of_kubernetes()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    train = pod["containers"][0]
    given = {each["name"]: each["value"] for each in train["env"]}
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    host, port = given["HEAD"].split(":")
    assert host == f"{name}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert int(port) == service["spec"]["ports"][0]["port"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(given["MACHINES"])
    assert int(given["RANKS"]) == train["resources"]["limits"]["nvidia.com/gpu"]
    assert pod["restartPolicy"] == "Never", "a podFailurePolicy needs it"
    assert pod["terminationGracePeriodSeconds"] >= 300
    mounted = {each["mountPath"]: each["name"] for each in train["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes.keys() == set(mounted.values())
    assert given["RUN"].startswith("/data/")
    assert "persistentVolumeClaim" in volumes[mounted["/data"]]
    assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    ignored = [r.get("onPodConditions", [{}])[0].get("type") for r in policy(spec) if is_ignore(r)]
    assert "DisruptionTarget" in ignored


def policy(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return spec["podFailurePolicy"]["rules"]


def is_ignore(rule: dict[str, Any]) -> bool:
    return rule["action"] == "Ignore"


def test_the_container_is_built_from_files_that_are_there() -> None:
    text = (LAUNCH / "apptainer.def").read_text(encoding="utf-8")
    section = text.partition("%files\n")[2].partition("\n\n")[0]
    sources = [line.split()[0] for line in section.splitlines()]
    assert {"pyproject.toml", "src"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
    for part in ("%post", "%runscript", "%test", "--nv"):
        assert part in text
