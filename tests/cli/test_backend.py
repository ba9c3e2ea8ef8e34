"""What a command loads Keras without, and that it can be loaded afterwards."""

import gc
import importlib
import sys

import pytest

from bert4keras_rwkv.cli.backend import without
from bert4keras_rwkv.keras_loader import all_kept

pytestmark = pytest.mark.backend_free


def test_what_is_not_used_can_be_imported_afterwards(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    loaded = sys.modules["gc"]
    with pytest.raises(ModuleNotFoundError), without(("colorsys", "gc")):
        assert sys.modules["gc"] is loaded
        importlib.import_module("colorsys")
    assert importlib.import_module("colorsys").rgb_to_hsv and sys.modules["gc"] is loaded


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_looked_for_as_before(enabled):
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(RuntimeError), all_kept():
            assert not gc.isenabled()
            raise RuntimeError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
