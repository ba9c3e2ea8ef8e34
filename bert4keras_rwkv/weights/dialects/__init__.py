"""The names and layouts that other projects give the same tensors, to official ones and back, without reading any."""
