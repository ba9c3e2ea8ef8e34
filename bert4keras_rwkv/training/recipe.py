"""How the RWKV authors train from scratch: which weights decay, which learn faster, and the learning rate over time.

The source is `configure_optimizers` and `train_callback` of RWKV-LM: RWKV-v4neo, RWKV-v5 (RWKV-5 and 6), and
RWKV-v7/train_temp. Keras is loaded when a function is called.
"""

import math

from bert4keras_rwkv.versions.table import filled

# By what the learning rate of a weight is multiplied: the base of the decay, and the bonus of RWKV-4 and of the oldest
# RWKV-5. `time_faaaa`, the bonus since, and `r_k` learn as all others do.
RATES = {"time_decay": 2.0, "time_first": 3.0, "w0": 2.0}
BETAS, EPSILON = (0.9, 0.99), 1e-18
LEAST = 1e-30  # a smaller epsilon is 0 in float32 on devices without denormal numbers


def authors_optimizer(rwkv, learning_rate=6e-4, weight_decay=0.1, epsilon=EPSILON, global_clipnorm=1.0, **options):
    """The optimizer that the authors train this model with, for `compile`, on every backend.

    AdamW with betas 0.9 and 0.99. Weight decay on the embedding, the head and the projections only: weights of two
    dimensions that are called `.weight` in official files, so no norms, no mixing vectors, no bonus, no low-rank
    matrices. The base of the decay (`time_decay`, `w0`) learns twice as fast, `time_first` of RWKV-4 thrice.

    rwkv: an `RWKV`; what `enable_lora` or `enable_state_tuning` froze is left out, so call them first. learning_rate: a
    float, or a schedule such as `warm_up_cosine`; the authors take 6e-4 for L12-D768, 4e-4 for L24-D1024, 3e-4 for
    L24-D2048, small models more. weight_decay: 0 for none. epsilon: small as it is, weights with tiny gradients move
    from the start on. global_clipnorm: of all gradients together, None for none. options: as for
    `keras.optimizers.AdamW`, such as `gradient_accumulation_steps` and `use_ema`.

    Returns a `training.adamw.GroupedAdamW`.

    Raises:
        ValueError: float16 weights, in which epsilon is 0.
    """
    from bert4keras_rwkv.training.adamw import GroupedAdamW

    _check(rwkv, epsilon)
    rates, decayed = groups(rwkv)
    beta_1, beta_2 = BETAS
    options = {"beta_1": beta_1, "beta_2": beta_2, **options}
    if not {"clipnorm", "clipvalue"} & set(options):
        options["global_clipnorm"] = global_clipnorm
    return GroupedAdamW(learning_rate, float(weight_decay), rates=rates, decayed=decayed, epsilon=epsilon, **options)


def groups(rwkv):
    """Which of the weights that train are special: ({path: multiplier of the learning rate}, [paths that decay])."""
    trained = {variable.path for variable in rwkv.backbone.trainable_variables}
    rates, decayed = {}, []
    for rule in filled(rwkv.config.rules()):
        variable, official = rwkv.backbone.variable_at(rule.path), rule.names[0]
        if variable.path not in trained:
            continue
        rate = RATES.get(official.rpartition(".")[2])
        if rate is not None:
            rates[variable.path] = rate
        elif official.endswith(".weight") and sum(size > 1 for size in variable.shape) >= 2:
            decayed.append(variable.path)
    return rates, decayed


def warm_up_cosine(peak, steps, warm_up=10, final=None):
    """The authors' learning rate over time, as Keras' `CosineDecay`.

    From a hundredth of `peak` in a straight line up to `peak` in `warm_up` steps, then down a cosine to `final` at step
    `steps`. final: None for a sixtieth of peak, as 1e-5 is of 6e-4. With gradient accumulation steps are batches.
    """
    from bert4keras_rwkv.keras_loader import keras

    if not 0 <= warm_up < steps:
        raise ValueError(f"The warm-up ends before the last step. Received: warm_up={warm_up}, steps={steps}.")
    final = peak / 60 if final is None else final
    up = {"warmup_target": peak, "warmup_steps": warm_up} if warm_up else {}
    return keras.optimizers.schedules.CosineDecay(
        peak * 0.01 if warm_up else peak, steps - warm_up, alpha=final / peak, **up
    )


def _check(rwkv, epsilon):
    if not math.isfinite(epsilon) or epsilon < LEAST:
        raise ValueError(f"`epsilon` keeps Adam from dividing by 0; at least {LEAST}. Received: epsilon={epsilon}.")
    if any(variable.dtype == "float16" for variable in rwkv.backbone.trainable_variables):
        raise ValueError(
            "float16 weights are too coarse to be trained: epsilon and small steps are 0 in it. Build the model with "
            "dtype='mixed_bfloat16', 'mixed_float16' or 'float32'."
        )
