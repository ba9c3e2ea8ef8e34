"""Evaluation: how well a model predicts given text. Importing it loads no backend."""

from bert4keras_rwkv.evaluation.lambada import LambadaScore, evaluate_lambada, read_lambada
from bert4keras_rwkv.evaluation.scoring import Passage, score_passages
from bert4keras_rwkv.evaluation.text import TextScore, evaluate_text

__all__ = [
    "LambadaScore",
    "Passage",
    "TextScore",
    "evaluate_lambada",
    "evaluate_text",
    "read_lambada",
    "score_passages",
]
