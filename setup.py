"""What the package is and needs: pyproject.toml. Here: wheels for one platform, with the native kernels of its CPUs.

They are built where BERT4KERAS_RWKV_PREBUILT is 1 (see [tool.cibuildwheel] in pyproject.toml); else the wheel is the
same for all platforms, and the kernels are built when they are first used.
"""

import os
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class WithKernels(build_py):
    def run(self):
        super().run()
        sys.path.insert(0, str(Path(__file__).parent))
        from bert4keras_rwkv.ops.kernels import library

        target = Path(self.build_lib) / library.PREBUILT.relative_to(Path(__file__).resolve().parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        library.build_to(target)


class ForOnePlatform(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]  # no part of it is of one Python


class Binary(Distribution):
    def has_ext_modules(self):
        return True


prebuilt = {
    "cmdclass": {"build_py": WithKernels, "bdist_wheel": ForOnePlatform},
    "distclass": Binary,
    "options": {"build": {"build_base": "build/one-platform"}},  # of which nothing gets into a wheel for all
}
setup(**(prebuilt if os.environ.get("BERT4KERAS_RWKV_PREBUILT") == "1" else {}))
