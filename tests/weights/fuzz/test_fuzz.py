"""Random files of every kind that the package reads, in a process with limits. The law: `fuzz/__main__.py`."""

import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the address space of a process"),
]


@pytest.mark.parametrize("samples", [25, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_reader_keeps_the_law(samples):
    """Twenty-five files of each kind, the same in every run; `make fuzz` goes on with others."""
    command = [sys.executable, "-m", "tests.weights.fuzz", "--samples", str(samples)]
    done = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": "numpy"}, capture_output=True, text=True)
    last = done.stdout.replace("\n", "\r").split("\r")[-1]
    assert done.returncode == 0, f"exit {done.returncode} at: python -m tests.weights.fuzz {last}\n{done.stderr}"
