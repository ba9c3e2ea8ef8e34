"""An array becomes a tensor as it is."""

import keras
import ml_dtypes
import numpy as np
import pytest

from bert4keras_rwkv.ops.backend import adopt
from bert4keras_rwkv.weights.copying import aligned


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (33, 5)])
def test_value_shape_and_dtype(shape, dtype, rng):
    array = aligned(shape, np.dtype(dtype))
    array[...] = rng.normal(size=shape)
    tensor = adopt(array)
    assert keras.backend.standardize_dtype(tensor.dtype) == str(array.dtype)
    assert tuple(tensor.shape) == shape
    found = keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))
    np.testing.assert_array_equal(found, array.astype("float32"))


@pytest.mark.skipif(keras.backend.backend() not in ("jax", "torch"), reason="others do not tell where a tensor lies")
@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16])
def test_it_lies_where_the_array_lies(dtype):
    array = aligned((64, 64), np.dtype(dtype), np.zeros)
    tensor = adopt(array)
    where = tensor.unsafe_buffer_pointer() if keras.backend.backend() == "jax" else tensor.data_ptr()
    assert where == array.ctypes.data
