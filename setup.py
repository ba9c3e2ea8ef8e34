"""For tools that look for this file. What the package is and needs: pyproject.toml."""

from setuptools import setup

setup()
