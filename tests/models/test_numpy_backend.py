"""Keras' NumPy backend reads and writes too: the same text as JAX for the same seed."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.backend_free

PROGRAM = """
from tests.models.small import small_model
model = small_model()
print(model.forward([[1, 2, 3, 4]])[0].shape)
print(model.generate([1, 2, 3], 10, seed=1, stop_token_ids=None))
print([1, 2, 3] + list(model.stream([1, 2, 3], 10, seed=1, stop_token_ids=None)))
"""


def test_the_same_text_on_numpy_and_jax():
    def run(backend):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    shape, text, streamed = run("numpy")
    assert shape == "(1, 4, 40)"
    assert text == streamed == run("jax")[1]
