"""Models: `build_transformer_model` and what it returns."""
