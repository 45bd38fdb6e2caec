from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from synthetic_slides import ArraySlide

from anlage.errors import TissueError
from anlage.slides.tissue import find_slide_tissue, find_tissue, tissue_method, tissue_methods

GUIDE = Path(__file__).parents[3] / "docs" / "how_to" / "add_a_tissue_method.md"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a module and its entry point where an installed package's would lie."""
    before = set(sys.modules)

    def write(name: str, entry: str, source: str) -> None:
        module = entry.partition(":")[0]
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[anlage.tissue_methods]\n{name} = {entry}\n")

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for module in set(sys.modules) - before:
        if getattr(sys.modules[module], "__file__", "").startswith(str(tmp_path)):
            del sys.modules[module]


def test_our_own_methods_come_first() -> None:
    assert tissue_methods()[:4] == ("otsu", "hsv", "luminance", "clam")
    assert [tissue_method(name).name for name in tissue_methods()[:4]] == list(tissue_methods()[:4])


def test_otsu_is_what_it_always_was(generator: np.random.Generator) -> None:
    pixels = np.full((200, 300, 3), 243, np.uint8)
    pixels[50:150, 50:200] = generator.normal((200, 120, 170), 5, (100, 150, 3)).astype(np.uint8)
    assert np.array_equal(tissue_method("otsu")(pixels, 8.0), find_tissue(pixels, mpp=8.0))


@pytest.mark.parametrize("name", ["otsu", "hsv", "luminance", "clam"])
def test_other_than_rgb_bytes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs \(H, W, 3\) uint8; got float64"):
        tissue_method(name)(np.zeros((4, 4, 3)), 8.0)


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(TissueError, match="ostu: is no tissue method") as caught:
        tissue_method("ostu")
    assert "there are otsu, hsv, luminance, clam" in str(caught.value)
    assert str(caught.value).endswith("Did you mean 'otsu'?")


def test_weights_must_exist_and_be_wanted(tmp_path: Path) -> None:
    with pytest.raises(TissueError, match="otsu: needs its weights; .* does not exist"):
        tissue_method("otsu", weights=tmp_path / "none")
    (tmp_path / "net").touch()
    with pytest.raises(TissueError, match="otsu: takes no weights; got .*net. Leave them out"):
        tissue_method("otsu", weights=tmp_path / "net")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_package", r"cannot be set up by plug-in broken:make: ModuleNotFoundError"),
        ("made = 1", "AttributeError"),
        ("def make(weights):\n    raise OSError('weights of another net')", "of another net"),
        ("def make(weights):\n    return print", "to give a TissueFinder; got builtin_function"),
        ("def make(weights, more):\n    return None", "TypeError"),
        (
            "from anlage.slides.tissue import TissueFinder\n"
            "def make(weights):\n    return TissueFinder(name='x', find=print, block_px=5)",
            "TissueFinder 'x' needs an mpp, block_px >= 1",
        ),
    ],
)
def test_a_broken_plugin_is_named(install: Install, source: str, said: str) -> None:
    install("broken-net", "broken:make", source)
    assert "broken-net" in tissue_methods()
    with pytest.raises(TissueError, match=f"broken-net: .*{said}"):
        tissue_method("broken-net")


def test_a_plugin_takes_no_name_of_ours(install: Install) -> None:
    install("otsu", "other:make", "raise RuntimeError('loaded')")
    assert tissue_methods().count("otsu") == 1
    assert tissue_method("otsu").find is not None


def guide_blocks(kind: str) -> list[str]:
    """The fenced blocks of the guide, without the indentation of its list."""
    blocks = re.findall(
        rf"^   ```{kind}\n(.*?)^   ```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE
    )
    return [re.sub(r"^   ", "", block, flags=re.MULTILINE) for block in blocks]


def test_the_guides_network_runs_as_an_installed_plugin(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, weights_script = guide_blocks("python")
    (project,) = guide_blocks("toml")
    entry = re.search(r'tissue_methods"\]\n([\w-]+) = "(.*)"', project)
    assert entry is not None
    install(*entry.groups(), module)
    monkeypatch.chdir(tmp_path)
    exec(compile(weights_script, "guide", "exec"), {})

    finder = tissue_method("tiny-tissue", weights=tmp_path / "tiny.safetensors")
    assert finder.name == "tiny-tissue"
    picture = np.full((3000, 4000, 3), 243, np.uint8)
    picture[800:2400, 1600:3200] = (200, 120, 170)
    found = find_slide_tissue(ArraySlide([picture], mpp=0.5), finder, mask_mpp=8.0)
    expected = np.zeros((188, 250), bool)
    expected[50:150, 100:200] = True
    assert found.tissue.mpp == 8.0
    assert found.warning is None
    assert (found.tissue.mask != expected).mean() < 0.02
    assert found.tissue.mask[52:148, 102:198].all()

    with pytest.raises(TissueError, match="tiny-tissue needs --tissue-weights"):
        tissue_method("tiny-tissue")
    (tmp_path / "cut").write_bytes((tmp_path / "tiny.safetensors").read_bytes()[:100])
    with pytest.raises(TissueError, match=r"tiny-tissue: cannot be set up .* Weights given: .*cut"):
        tissue_method("tiny-tissue", weights=tmp_path / "cut")
