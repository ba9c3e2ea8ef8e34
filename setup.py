"""How the package is built and what it needs. Tool settings: pyproject.toml. Exact versions: constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"$', (HERE / "bert4keras_rwkv/__init__.py").read_text("utf-8"), re.M)[1]

TENSORFLOW = ["tensorflow-cpu>=2.21,<2.22"]
TORCH = ["torch>=2.13,<3"]
PILE = ["tokenizers>=0.20,<1"]  # the vocabulary of RWKV-4 models trained on the Pile
DATA = ["google-crc32c>=1.5,<2", "pyrwkv-tokenizer>=0.9,<1"]  # TFRecord checksums and World tokens, both faster
GRAIN = ["grain>=0.2.15,<0.3"]  # data sets that Keras takes
EVAL = ["lm_eval>=0.4.13,<0.5"]  # its tasks, of which ours can be the model: 0.5 GB
# Compared with by `make interop`. llama-cpp-python is compiled when it is installed.
INTEROP = ["llama-cpp-python>=0.3.36,<0.4", "transformers>=5.23,<6"]
NOTEBOOKS = ["ipykernel>=7,<8", "jupytext>=1.16,<2", "matplotlib>=3.9,<4", "nbclient>=0.10,<1"]
DEV = [
    "hypothesis>=6.100,<7",
    "matplotlib>=3.9,<4",
    "pre-commit>=4,<5",
    "pytest>=9,<10",
    "pytest-xdist>=3.6,<4",
    "ruff>=0.17,<0.18",
]

setup(
    name="bert4keras_rwkv",
    version=VERSION,
    description="RWKV language models in Keras 3: from a checkpoint to text on JAX, TensorFlow and PyTorch",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["bert4keras_rwkv", "bert4keras_rwkv.*"]),
    package_data={"bert4keras_rwkv": ["presets/**/*"]},
    exclude_package_data={"": ["*.pyc"]},
    install_requires=[
        "gguf>=0.19,<0.20",
        "h5py>=3.11,<4",
        "jax>=0.10,<0.11",
        "keras>=3.15,<4",
        "ml_dtypes>=0.5,<1",
        "numpy>=2.0,<3",
        "rwkv>=0.8.26,<0.9",  # the World vocabulary file; it asks for no torch
        "safetensors>=0.5,<1",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "tensorflow": TENSORFLOW,
        "torch": TORCH,
        "pile": PILE,
        "data": DATA,
        "dev": DEV,
        "grain": GRAIN,
        "eval": EVAL,
        "interop": INTEROP + EVAL + TORCH,
        "notebooks": NOTEBOOKS + TENSORFLOW,
        "test": TENSORFLOW + TORCH + PILE + DATA + GRAIN + NOTEBOOKS + DEV,
    },
    entry_points={"console_scripts": ["bert4keras-rwkv = bert4keras_rwkv.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
