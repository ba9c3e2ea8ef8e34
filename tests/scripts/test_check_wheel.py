"""The comparison of what is built with what git tracks sees every fault. Building it all is `make test-wheel`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

FILE = Path(__file__).resolve().parents[2] / "scripts/check_wheel.py"
SPEC = importlib.util.spec_from_file_location(FILE.stem, FILE)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

TRACKED = ["README.md", "bert4keras_rwkv/__init__.py", "bert4keras_rwkv/formats/pth.py", "bert4keras_rwkv/presets/a.h5"]
WHEEL = [name for name in TRACKED if "/" in name]
WHEEL += [f"bert4keras_rwkv-0.1.0.dist-info/{name}" for name in script.DIST_INFO]


def test_a_whole_wheel_passes():
    assert not list(script.wheel_faults(WHEEL, TRACKED))


@pytest.mark.parametrize("lost", WHEEL)
def test_a_file_that_is_not_in_the_wheel_is_told(lost):
    """A folder without `__init__.py`, a data file that no pattern names, the licence."""
    (fault,) = script.wheel_faults([name for name in WHEEL if name != lost], TRACKED)
    assert lost.partition(".dist-info/")[2] in fault or lost in fault


@pytest.mark.parametrize("extra", ["bert4keras_rwkv/notes.txt", "tests/__init__.py", "a-1.dist-info/AUTHORS"])
def test_a_file_that_git_does_not_track_is_told(extra):
    (fault,) = script.wheel_faults([*WHEEL, extra], TRACKED)
    assert extra.partition(".dist-info/")[2] in fault


def test_a_source_distribution_holds_all_that_is_tracked_and_what_setuptools_adds():
    made = ["PKG-INFO", "setup.cfg", "bert4keras_rwkv.egg-info/SOURCES.txt"]
    assert not list(script.sdist_faults([*TRACKED, *made], TRACKED))
    assert len(list(script.sdist_faults([*TRACKED[1:], "junk"], TRACKED))) == 2


def test_a_folder_without_init_is_told(tmp_path):
    """The fault itself, in a small project that is built with the settings of this one."""
    files = {name: (script.ROOT / name).read_text("utf-8") for name in ("pyproject.toml", "LICENSE", "README.md")}
    files |= dict.fromkeys(TRACKED[1:], "") | {"bert4keras_rwkv/__init__.py": '__version__ = "0.1.0"\n'}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    build = "from setuptools import build_meta\nbuild_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    (wheel,) = (tmp_path / "dist").iterdir()
    faults = list(script.wheel_faults(script.in_wheel(wheel), files))
    assert faults == ["the wheel lacks bert4keras_rwkv/formats/pth.py, which git tracks"]


@pytest.mark.parametrize("readme", script.READMES)
def test_the_first_program_of_a_readme_loads_the_checkpoint(readme):
    """What is run after the installation is the program that names a file and streams a text."""
    program = script.first_program((script.ROOT / readme).read_text("utf-8"))
    assert f'"{script.CHECKPOINT}"' in program and ".stream(" in program
