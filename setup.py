"""Build script: two packages, of which ptl_kernels lives in the Hugging Face kernel project under kernels/."""

from setuptools import find_namespace_packages, find_packages, setup

KERNELS = "kernels/torch-ext"

setup(
    packages=[*find_namespace_packages(include=["ptl_fast", "ptl_fast.*"]), *find_packages(KERNELS)],
    package_dir={"ptl_kernels": f"{KERNELS}/ptl_kernels"},
    package_data={"": ["*.yaml", "*.json", "*.jsonl", "*.safetensors", "*.md"]},
)
