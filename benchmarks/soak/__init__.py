"""A server under mixed load for minutes: python -m benchmarks.soak."""
