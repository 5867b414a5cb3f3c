"""Build script: two packages, of which ptl_kernels lives in the Hugging Face kernel project under
kernels/, and csrc's kernels.
"""

from setuptools import Extension, find_namespace_packages, find_packages, setup

KERNELS = "kernels/torch-ext"

# A plain shared library, loaded with ctypes: it needs neither Python's nor torch's headers. It
# leaves OpenMP's symbols open, for torch's own OpenMP library to fill (ptl_kernels/cpu.py says
# why). Optional: without a compiler, installation warns and goes on.
cpu_kernels = Extension(
    "ptl_kernels._cpu",
    sources=[f"csrc/{name}.cpp" for name in ("api", "avx512", "avx2", "baseline")],
    depends=["csrc/kernels.h", "csrc/kernels.inl"],
    language="c++",
    extra_compile_args=["-O3", "-std=c++17", "-fopenmp", "-g0"],
    optional=True,
)

setup(
    packages=[
        *find_namespace_packages(include=["ptl_fast", "ptl_fast.*"]),
        *find_packages(KERNELS),
    ],
    package_dir={"ptl_kernels": f"{KERNELS}/ptl_kernels"},
    package_data={"": ["*.yaml", "*.json", "*.jsonl", "*.safetensors", "*.md", "py.typed"]},
    ext_modules=[cpu_kernels],
)
