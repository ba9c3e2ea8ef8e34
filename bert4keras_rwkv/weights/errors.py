"""The one error of this part."""

from bert4keras_rwkv.untrusted import told


class WeightsError(ValueError):
    """A weight file that cannot be read, is not what it claims, or does not fit the model. The message says which.

    It holds what files say, so it is kept short, and without control characters.
    """

    def __init__(self, message):
        super().__init__(told(message))
