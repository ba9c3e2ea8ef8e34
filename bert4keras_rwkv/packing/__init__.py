"""Matrices that are packed into fewer bytes, in NumPy."""

from bert4keras_rwkv.packing.pack import pack, pack_pieces
from bert4keras_rwkv.packing.scheme import LARGEST, MOST, NAMES, PAIR, UNIT, Scheme, in_halves, unpacked

__all__ = ["LARGEST", "MOST", "NAMES", "PAIR", "UNIT", "Scheme", "in_halves", "pack", "pack_pieces", "unpacked"]
