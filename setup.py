"""Adds the optional C extension to what pyproject.toml says."""

import functools
import os
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

PROBLEM = """
************************************************************************************************
cpunorm is built WITHOUT its C kernels: {problem}
It works with Numba's. For the C ones install a C compiler and Python's headers
(e.g. apt-get install gcc python3-dev) and then cpunorm again.
************************************************************************************************
"""


def at_once(compile_all: Callable[..., list[str]], sources: list[str], **options: Any) -> list[str]:
    """Source files compiled beside one another, as many as there are CPUs; the objects in the sources' order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [made for objects in pool.map(lambda source: compile_all([source], **options), sources) for made in objects]


class BuildNative(build_ext):
    """With OpenMP; where the compiler has none (Apple's clang), without; where there is no compiler, not at all."""

    def build_extension(self, ext: Extension) -> None:
        """Once as csrc/build.py describes it, and once more without OpenMP if that fails."""
        self.compiler.compile = functools.partial(at_once, self.compiler.compile)
        try:
            try:
                super().build_extension(ext)
            except (CompileError, LinkError):
                ext.extra_compile_args.remove("-fopenmp")
                ext.extra_link_args.remove("-fopenmp")
                super().build_extension(ext)
                print("cpunorm: the C compiler has no OpenMP; the C kernels run on one thread", file=sys.stderr)
        except Exception as problem:
            print(PROBLEM.format(problem=problem), file=sys.stderr)
            raise  # setuptools passes over it: the extension is optional


# One wheel for all Pythons from 3.11 on: cffi's extensions keep to the limited API. (Free-threaded ones have none.)
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    cffi_modules=["csrc/build.py:ffi"],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
