from setuptools import setup

setup(
    name="evocore-kernelpack",
    version="2.3",
    packages=["evocore_kernelpack"],
    install_requires=["evocore"],
    entry_points={"evocore": ["kernelpack = evocore_kernelpack.plugin"]},
)
