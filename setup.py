"""Packaging: the root folders backends/, kernels/, models/ and configs/ install as ``evocore.backends`` and so on."""

from pathlib import Path

from setuptools import setup

ROOTS = {
    "evocore": "evocore",
    "evocore.backends": "backends",
    "evocore.kernels": "kernels",
    "evocore.models": "models",
    "evocore.configs": "configs",
}


def packages() -> list[str]:
    """Every folder with Python files below the four roots, by import name."""
    found = set()
    for name, folder in ROOTS.items():
        found.add(name)  # also where it holds folders only, so that an editable install maps it
        for file in Path(folder).rglob("*.py"):
            found.add(".".join([name, *file.parent.relative_to(folder).parts]))
    return sorted(found)


HUB = ["datasets>=3", "transformers>=4.57", "tokenizers>=0.21"]

setup(
    name="evocore",
    version="0.1.0",
    description="Train large language models on any accelerator; hardware is a plug-in.",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=packages(),
    package_dir=ROOTS,
    package_data={"evocore": ["py.typed"]},
    install_requires=[
        "torch>=2.9",
        "jinja2>=3.1",
        "numpy>=1.26",
        "packaging>=23",
        "pluggy>=1.5",
        "pydantic>=2.7",
        "typer>=0.15",
        "rich>=13",
        "sentencepiece>=0.2",
        "safetensors>=0.4",
    ],
    extras_require={
        "cuda": ["triton>=3.5"],
        "npu": ["torch-npu>=2.9"],
        "hub": HUB,
        "s3": ["boto3>=1.34"],
        "test": [
            *HUB,
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "tensorboard>=2.16",
            "triton==3.7.1",
            "ruff>=0.9",
            "mypy>=1.15",
            "build>=1.2",
            "setuptools>=77",
        ],
    },
    entry_points={
        "console_scripts": ["evocore = evocore.cli.main:main"],
        "evocore": [
            "cpu = evocore.backends.cpu.plugin",
            "cuda = evocore.backends.cuda.plugin",
            "decoders = evocore.models.plugin",
            "npu = evocore.backends.npu.plugin",
        ],
    },
)
