"""A wheel for one platform has the kernels inside: they run where there is no compiler."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.ops.kernels import quick

pytestmark = pytest.mark.backend_free
ROOT = Path(__file__).resolve().parents[3]
LOADED = "from bert4keras_rwkv.ops.kernels.library import library; print(library().path, *library().levels())"


@pytest.mark.slow
def test_a_wheel_with_kernels(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "bert4keras_rwkv", source / "bert4keras_rwkv")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(source)]
    build = {"BERT4KERAS_RWKV_PREBUILT": "1", "CXX": str(quick.compiler(tmp_path))}
    done = subprocess.run(command, env={**os.environ, **build}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    environment = quick.environment(tmp_path / "cache", CXX="/nowhere", PYTHONPATH=str(tmp_path / "installed"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", LOADED], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    path, *levels = done.stdout.split()
    assert path.startswith(str(tmp_path / "installed")) and "plain" in levels
