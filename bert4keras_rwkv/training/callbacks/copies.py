"""Values of variables kept aside, to go back to."""

import numpy as np

from bert4keras_rwkv.keras_loader import ops


class Copies:
    """The values of variables at one time, in main memory."""

    def __init__(self, variables):
        self.variables = list(variables)
        self.values = [np.array(ops.convert_to_numpy(ops.convert_to_tensor(v))) for v in self.variables]

    def restore(self):
        """Give the variables these values again."""
        for variable, value in zip(self.variables, self.values, strict=True):
            variable.assign(value)


def optimizer_variables(model):
    """All variables of a model's optimizer, those of its slots too."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return model.optimizer.variables
