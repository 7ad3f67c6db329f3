"""Describes the extension ``cpunorm._native`` to cffi: API mode, plain functions, no callbacks. setup.py builds it."""

from pathlib import Path

from cffi import FFI

FOLDER = "csrc"  # relative to the project, as setuptools wants its sources
HEADERS = ("program.h", "native.h")
INCLUDED = [
    f"{name}.inc"
    for name in (
        *("types", "kernels", "tile", "counts", "folds", "windows", "pictures", "resize", "stages"),
        *("elements", "moments", "moments_columns", "sums", "affine", "affine_rows"),
    )
]

# No -march: kernels.c is compiled for several instruction sets, and sets.c chooses when it runs. No -ffast-math: NaN and infinity keep
# their meaning; what it would allow to sums, the kernels ask for where they want it (-fopenmp-simd).
COMPILE = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
OPENMP = ["-fopenmp"]


def declarations(header: str) -> str:
    """A header as cffi reads it: without the preprocessor's lines."""
    lines = (Path(__file__).parent / header).read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


ffi = FFI()
for header in HEADERS:
    ffi.cdef(declarations(header))
ffi.set_source(
    "cpunorm._native",
    "\n".join(f'#include "{header}"' for header in HEADERS),
    sources=[f"{FOLDER}/{name}.c" for name in ("avx512", "avx2", "sse2", "sets", "driver", "ready", "limit")],  # the longest first
    depends=[f"{FOLDER}/{name}" for name in (*HEADERS, "driver.h", "sets.h", "kernels.c", *INCLUDED)],
    include_dirs=[FOLDER],
    libraries=["m"],
    extra_compile_args=[*COMPILE, *OPENMP],
    extra_link_args=[*OPENMP],
    optional=True,  # without a C compiler the package has its other kernels
)
