"""The one error of this part."""


class WeightsError(ValueError):
    """A weight file that cannot be read, is not what it claims, or does not fit the model. The message says which."""
