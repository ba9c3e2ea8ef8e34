"""AdamW whose variables have learning rates and weight decays of their own, which Keras' has not."""

from collections import defaultdict

from bert4keras_rwkv.keras_loader import keras

# On PyTorch `AdamW(...)` makes an object of a class of its own, which updates all variables at once; a subclass of
# `AdamW` would update them one by one.
AdamW = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))


@keras.saving.register_keras_serializable("bert4keras_rwkv")
class GroupedAdamW(AdamW):
    """AdamW in which some variables learn faster, and only some decay.

    rates: {path of a variable: by what the learning rate is multiplied for it}, 1 for all others. decayed: the paths of
    those that shrink by `weight_decay` times the learning rate a step, whatever their rate. Other arguments: as for
    `keras.optimizers.AdamW`.

    Raises:
        ValueError: when it is built for variables without one that is named, or without names that tell them apart.
    """

    def __init__(self, learning_rate=0.001, weight_decay=0.004, rates=None, decayed=(), **kwargs):
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        self.rates, self.decayed = dict(rates or {}), tuple(sorted(decayed))

    def build(self, variables):
        if self.built:
            return
        paths = [variable.path for variable in variables]
        self._check(paths)
        decayed = set(self.decayed)
        self._rates = [self.rates.get(path, 1.0) for path in paths]
        self._decays = [path in decayed for path in paths]
        super().build(variables)

    def get_config(self):
        return {**super().get_config(), "rates": dict(self.rates), "decayed": list(self.decayed)}

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        groups = defaultdict(list)
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            groups[self._rates[self._get_variable_index(variable)]].append((gradient, variable))
        for rate, pairs in groups.items():
            of_group, variables = map(list, zip(*pairs, strict=True))
            super()._backend_update_step(of_group, variables, learning_rate if rate == 1 else learning_rate * rate)

    def _apply_weight_decay(self, variables):
        if not self.weight_decay:
            return
        decayed = [variable for variable in variables if self._decays[self._get_variable_index(variable)]]
        if decayed:
            super()._apply_weight_decay(decayed)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        raise ValueError("Which variables decay is said by `decayed`, their paths, when the optimizer is made.")

    def _check(self, paths):
        """The named variables are there, each once."""
        named = {*self.rates, *self.decayed}
        wrong = sorted(path for path in named if paths.count(path) != 1)
        if wrong:
            shown = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
            raise ValueError(
                f"The optimizer was made for variables that this model does not train, or has twice: {shown} "
                f"({len(wrong)} of {len(named)}). Make it anew after `enable_lora` and what else changes what trains."
            )
