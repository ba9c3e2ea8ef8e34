"""The forms in which models have learned conversations, as data: one JSON file a form. Loads no Keras."""

from bert4keras_rwkv.templates.files import read_template, template_for, template_names, template_of
from bert4keras_rwkv.templates.prompt import end_of_reply, ids_of, prompt_ids
from bert4keras_rwkv.templates.template import Mode, Part, Template
from bert4keras_rwkv.templates.turns import conversation

__all__ = [
    "Mode",
    "Part",
    "Template",
    "conversation",
    "end_of_reply",
    "ids_of",
    "prompt_ids",
    "read_template",
    "template_for",
    "template_names",
    "template_of",
]
