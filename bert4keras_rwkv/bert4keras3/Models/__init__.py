"""The models by their module; there is one, `RWKV`."""
