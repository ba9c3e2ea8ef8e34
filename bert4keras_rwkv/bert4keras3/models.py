"""`build_transformer_model` with bert4keras3's arguments, in its order and with its defaults."""

import os

from bert4keras_rwkv import models
from bert4keras_rwkv.bert4keras3.Models.RWKV import RWKV6
from bert4keras_rwkv.versions import versions

__all__ = ["RWKV6", "build_transformer_model"]

APPLICATIONS = ("encoder", "lm")  # an RWKV looks back only, in either
# Keywords with an effect there that nothing here has, and what to do.
REFUSED = {
    "layers": "Weights are shared by calling one model twice",
    "additional_input_layers": "Give the Keras model's outputs to a layer of your own",
}


def build_transformer_model(
    config_path=None,
    checkpoint_path=None,
    model="bert",
    application="encoder",
    return_keras_model=True,
    keras_weights_path=None,
    initial=True,
    with_lm=True,
    prefix=None,
    **kwargs,
):
    """A Keras model, or the `RWKV` around it with return_keras_model=False.

    model: 'rwkv4' to 'rwkv7' in any case, or the class `RWKV6`; 'rwkv' is the version that the files say.
    application: 'encoder' or 'lm', which are the same. checkpoint_path, keras_weights_path: a weight file of any known
    format; weights that do not fit are an error. initial: without meaning, a model needs no first run. with_lm: True or
    'softmax' for probabilities, 'linear' for logits, False or None for hidden states. With ENABLE_LORA=1 in the
    environment every projection of the blocks gets a LoRA of rank `attention_head_size`, and nothing else trains.
    kwargs: as for `bert4keras_rwkv.models.build_transformer_model`, or keywords of bert4keras3.

    Raises ValueError for models and applications that are not RWKV's, and for keywords whose effect is not there.
    """
    if str(application).lower() not in APPLICATIONS:
        raise ValueError(f"An RWKV looks back only: `application` is 'encoder' or 'lm'. Received: {application!r}.")
    for keyword, way_out in REFUSED.items():
        if kwargs.pop(keyword, None):
            raise ValueError(f"`{keyword}` is not taken. {way_out}.")
    rwkv = models.build_transformer_model(
        config_path=config_path,
        checkpoint_path=checkpoint_path,
        model=_version(model),
        keras_weights_path=keras_weights_path,
        with_lm=False if with_lm is None else with_lm,
        prefix=prefix or "",
        **kwargs,
    )
    if os.environ.get("ENABLE_LORA", "0").lower() in ("1", "true", "yes", "on", "y", "t"):
        rwkv.enable_lora(rwkv.config.attention_head_size or 64)
    return rwkv.model if return_keras_model else rwkv


def _version(model):
    """The model's name in `config`, None for 'rwkv'."""
    if model is RWKV6:
        return "rwkv6"
    name = model.lower() if isinstance(model, str) else model
    if name == "rwkv":
        return None
    if name not in versions():
        known = ", ".join(map(repr, sorted(versions())))
        raise ValueError(f"Only RWKV is here: `model` is one of {known}, 'rwkv' or `RWKV6`. Received: {model!r}.")
    return name
