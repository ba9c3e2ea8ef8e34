"""Kernels of a GPU, run by an emulator: they are the loop, write what they should, and wait for each other."""

import keras
import pytest

from bert4keras_rwkv.ops.kernels import library
from bert4keras_rwkv.ops.kernels.check import check_kernels
from tests.ops.kernels.stand_in import StandIn, leave

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() not in ("jax", "torch"), reason="pure ops run there"),
    pytest.mark.skipif(not library.SOURCES.is_dir(), reason="no sources"),
]
NAMES = ["wkv4", "wkv6", "wkv7"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("emulated")


@pytest.fixture
def gpu(folder, monkeypatch):
    stand_in = StandIn(folder)
    stand_in.install(monkeypatch)
    yield stand_in
    leave()


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_is_the_loop(name, gpu):
    """Through JAX and PyTorch: outputs, all gradients, masks and document starts. 2e-5: as `check_kernels` says."""
    before = gpu.launches()
    findings = list(check_kernels(names=[name], shapes=[(2, 1, 1, 16), (2, 37, 2, 16), (1, 32, 2, 5)]))
    assert {finding.level for finding in findings} == {"sm_90"}
    assert gpu.launches() > before
    assert not [finding for finding in findings if not finding.right], findings
