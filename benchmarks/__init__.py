"""What the package costs, measured against the `rwkv` package and against the machine's own limits. `make bench`."""
