"""Vectors of ids, which may be stored in fewer bytes than they are computed with."""

from bert4keras_rwkv.keras_loader import keras
from bert4keras_rwkv.layers.halves import Halvable
from bert4keras_rwkv.layers.projection import Watched


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class Embedding(Halvable, Watched, keras.layers.Embedding):
    """Keras' Embedding, whose vectors may be stored in bfloat16."""

    matrix = "_embeddings"

    def build(self, shape=None):
        if self.scheme is None:
            super().build(shape)
            return
        self.add_halves((self.input_dim, self.output_dim), "embeddings", self.embeddings_initializer)
        self.built = True
