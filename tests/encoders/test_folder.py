import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_encoder import ARCHITECTURE, make_config, make_encoder, make_pixels

from anlage.encoders.folder import EncoderConfig, load_encoder, save_encoder
from anlage.errors import EncoderError
from anlage.models.vit import VisionTransformer


@pytest.fixture
def folder(tmp_path):
    encoder = make_encoder(provenance={"run": "a", "step": 3})
    save_encoder(tmp_path / "encoder", encoder.model, encoder.config)
    return tmp_path / "encoder"


def change_config(folder, **changes):
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | changes))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_loading_gives_back_the_encoder(folder):
    before, after = make_encoder(), load_encoder(folder)
    assert torch.equal(after.embed(make_pixels(4)), before.embed(make_pixels(4)))
    assert after.fingerprint == before.fingerprint
    assert after.config.provenance == {"run": "a", "step": 3}
    assert not after.model.training
    assert {p.device.type for p in after.model.parameters()} == {"cpu"}


def test_folder_holds_two_documented_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    stored = json.loads((folder / "config.json").read_text())
    assert stored["format"] == "encoder/1"
    assert stored["architecture"] == ARCHITECTURE
    assert stored["mean"] == [0.7, 0.5, 0.6]
    weights = load_file(folder / "model.safetensors")
    assert weights["blocks.1.attn.qkv.weight"].shape == (72, 24)


def test_loading_draws_no_random_number(folder):
    before = torch.random.get_rng_state()
    load_encoder(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_loaded_weights_outlive_the_file(folder):
    encoder = load_encoder(folder)
    expected = encoder.embed(make_pixels(2))
    (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    assert torch.equal(encoder.embed(make_pixels(2)), expected)


def test_half_precision_weights_load_as_float32(tmp_path):
    encoder = make_encoder()
    save_encoder(tmp_path / "e", encoder.model.to(torch.bfloat16), encoder.config)
    loaded = load_encoder(tmp_path / "e")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_weights_stored_in_half_precision_are_those_rounded_to_it(tmp_path):
    encoder = make_encoder()
    rounded = {name: t.numpy().astype("float16") for name, t in encoder.model.state_dict().items()}
    save_encoder(tmp_path / "e", encoder.model, encoder.config, dtype=torch.float16)
    stored = load_file(tmp_path / "e" / "model.safetensors")
    loaded = load_encoder(tmp_path / "e").model.state_dict()
    for name, expected in rounded.items():
        assert stored[name].dtype == torch.float16
        assert loaded[name].dtype == torch.float32
        assert (stored[name].numpy() == expected).all()
        assert (loaded[name].numpy() == expected).all()
    assert {t.dtype for t in encoder.model.state_dict().values()} == {torch.float32}


def test_a_weight_too_large_for_the_type_it_is_stored_in_is_refused(folder):
    other = make_encoder(seed=1)
    with torch.no_grad():
        other.model.mask_token[0] = -70000.0
    with pytest.raises(ValueError, match="dtype that holds 70000, of tensor 'mask_token'; got"):
        save_encoder(folder, other.model, other.config, dtype=torch.float16)
    assert load_encoder(folder).fingerprint == make_encoder().fingerprint
    save_encoder(folder, other.model, other.config, dtype=torch.bfloat16)


def test_saving_again_replaces_whole(folder):
    other = make_encoder(seed=1)
    save_encoder(folder, other.model, other.config)
    assert load_encoder(folder).fingerprint == other.fingerprint
    assert [path.name for path in folder.parent.iterdir()] == ["encoder"]


def test_saving_into_an_empty_folder(tmp_path):
    save_encoder(tmp_path, make_encoder().model, make_config())
    assert load_encoder(tmp_path).width == 24


def test_weights_replaced_between_two_openings_are_read_again(folder, monkeypatch):
    """Safetensors opens the file, then torch opens it by name once more: it may be gone by then."""
    other = make_encoder(seed=1)
    open_again = torch.UntypedStorage.from_file
    replaced = []

    def replace_first(path, *arguments, **settings):
        if replaced:
            return open_again(path, *arguments, **settings)
        replaced.append(path)
        Path(path).unlink()
        try:
            return open_again(path, *arguments, **settings)
        finally:
            save_encoder(folder, other.model, other.config)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", replace_first)
    assert load_encoder(folder).fingerprint == other.fingerprint
    assert len(replaced) == 1


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(EncoderError, match=missing):
        load_encoder(folder)


def test_a_run_in_place_of_its_encoder_is_told_where_that_is(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run" / "encoder")
    with pytest.raises(EncoderError, match=r"run: is a run.*Name .*run/encoder"):
        load_encoder(tmp_path / "run")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(EncoderError, match="nowhere: no such encoder folder"):
        load_encoder(tmp_path / "nowhere")


@pytest.mark.parametrize("n_bytes", [0, 4, 100, 3000, 20_000])
def test_truncated_weights_are_named(folder, n_bytes):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(EncoderError, match=r"model\.safetensors: is not a whole safetensors"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("blocks.0.norm1.weight"), "no tensor 'blocks.0.norm1.weight'"),
        (lambda w: w.update(head=torch.ones(1)), "an unknown tensor 'head'"),
        (lambda w: w.update({"norm.bias": torch.ones(23)}), r"'norm.bias' of shape \(23,\) for"),
        (lambda w: w["norm.bias"].__setitem__(2, torch.nan), "'norm.bias' holds NaN"),
        (lambda w: w["norm.bias"].__setitem__(2, torch.inf), "'norm.bias' holds NaN or an inf"),
        (lambda w: w["norm.bias"].__setitem__(2, 0.25), "damaged or mixed up"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, change, says):
    change_weights(folder, change)
    with pytest.raises(EncoderError, match=says):
        load_encoder(folder)


def test_many_faults_are_counted(folder):
    change_weights(folder, lambda w: [w.pop(name) for name in list(w)[:9]])
    with pytest.raises(EncoderError, match="and 6 more"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "encoder/2"}, "needs format 'encoder/1'; got 'encoder/2'"),
        ({"sigma": 1}, "key 'sigma'"),
        ({"std": [0.1, -1, 0.1]}, r"key 'std\.1'"),
        ({"pooling": "max"}, "key 'pooling'"),
        ({"pooling": "own"}, "is of a network that is not anlage's"),
        ({"architecture": ARCHITECTURE | {"color": 1}}, "color"),
        ({"architecture": ARCHITECTURE | {"image_px": 33}}, "multiple of patch_px"),
        ({"architecture": ARCHITECTURE | {"depth": 3}}, "no tensor 'blocks.2"),
        ({"weights_sha256": None}, "damaged or mixed up"),
    ],
)
def test_a_configuration_that_is_not_ours_is_refused(folder, changes, says):
    change_config(folder, **changes)
    with pytest.raises(EncoderError, match=says) as refusal:
        load_encoder(folder)
    assert str(folder) in refusal.value.path


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"'])
def test_a_broken_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(EncoderError, match=r"config\.json"):
        load_encoder(folder)


def test_config_of_another_model_cannot_be_saved_with_it(tmp_path):
    config = make_config(architecture=ARCHITECTURE | {"depth": 1})
    with pytest.raises(ValueError, match="an unknown tensor 'blocks"):
        save_encoder(tmp_path / "e", make_encoder().model, config)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_cannot_be_saved(folder):
    before = load_encoder(folder).fingerprint
    encoder = make_encoder(seed=4)
    with torch.no_grad():
        encoder.model.norm.weight[0] = torch.nan
    with pytest.raises(EncoderError, match=r"'norm\.weight' holds NaN"):
        save_encoder(folder, encoder.model, encoder.config)
    assert load_encoder(folder).fingerprint == before


def test_a_folder_with_anything_else_in_it_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("three years")
    with pytest.raises(EncoderError, match=r"it holds 'thesis\.tex'"):
        save_encoder(tmp_path, make_encoder().model, make_config())
    with pytest.raises(EncoderError, match="is a file"):
        save_encoder(tmp_path / "thesis.tex", make_encoder().model, make_config())
    assert (tmp_path / "thesis.tex").read_text() == "three years"


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        make_config().mpp = 1.0
    assert isinstance(make_config(), EncoderConfig)


SAVERS = """
import os, signal, sys, torch
from anlage.encoders.folder import save_encoder
from anlage.models.vit import VisionTransformer
from small_encoder import ARCHITECTURE, make_config

def save_for_ever(folder):
    model, step = VisionTransformer(**ARCHITECTURE), 0
    while True:
        step += 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        save_encoder(folder, model, make_config(provenance={"step": step}))

torch.set_num_threads(1)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        save_for_ever(line.strip())
    print(child, flush=True)
"""


@pytest.fixture
def start_saver():
    """A function that starts a process saving steps 1, 2, ... to a folder; gives its id."""
    search = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": search}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SAVERS], env=environment, **pipes) as parent:

        def start(folder: Path) -> int:
            print(folder, file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            wait_until((folder / "config.json").exists)
            return child

        yield start
        parent.stdin.close()


def wait_until(is_so, limit_s: float = 600.0) -> None:
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < limit_s
        time.sleep(0.002)


def kill(process: int) -> None:
    def is_gone() -> bool:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            return True
        return False

    wait_until(is_gone)


def step_of(folder: Path) -> int:
    """The step in the configuration, after checking that every weight is of that step."""
    encoder = load_encoder(folder)
    step = encoder.config.provenance["step"]
    assert all(bool((p == step).all()) for p in encoder.model.parameters())
    return step


@pytest.mark.slow
def test_saver_killed_at_any_moment_leaves_a_whole_encoder(tmp_path, start_saver):
    for trial in range(20):
        folder = tmp_path / str(trial) / "encoder"
        child = start_saver(folder)
        time.sleep(0.0031 * trial)
        kill(child)
        assert step_of(folder) >= 1
        save_encoder(folder, VisionTransformer(**ARCHITECTURE), make_config())
        assert load_encoder(folder).config.provenance == {}


@pytest.mark.slow
def test_reading_while_it_is_replaced_gives_one_or_the_other(tmp_path, start_saver):
    child = start_saver(tmp_path / "encoder")
    steps = [step_of(tmp_path / "encoder") for _ in range(100)]
    kill(child)
    assert steps == sorted(steps)
    assert len(set(steps)) > 10
