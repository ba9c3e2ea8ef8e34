"""What differs between backends and is not covered by `keras.ops`."""

from bert4keras_rwkv.keras_loader import keras


def name():
    """'jax', 'tensorflow', 'torch' or 'numpy': the backend Keras runs on."""
    return keras.backend.backend()


def has_accelerator():
    """Whether arrays live on a GPU or TPU by default."""
    if name() == "jax":
        import jax

        return jax.default_backend() != "cpu"
    if name() == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"))
    if name() == "torch":
        import torch

        return torch.cuda.is_available() or torch.backends.mps.is_available()
    return False


def accumulation_dtype(dtype):
    """The dtype of the recurrence for a compute dtype: float64 stays, everything else is float32."""
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"
