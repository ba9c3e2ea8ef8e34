"""Formats: one file a format, and the registry that lists them. Importing it loads no backend."""
