"""The model class for lm-eval without lm-eval; with it: tests/interop/test_lm_eval.py."""

import importlib
import sys

import pytest

pytestmark = pytest.mark.backend_free


def test_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "bert4keras_rwkv.evaluation.lm_eval_model", raising=False)
    with pytest.raises(ImportError, match=r"bert4keras_rwkv\[eval\]"):
        importlib.import_module("bert4keras_rwkv.evaluation.lm_eval_model")
