from setuptools import setup

setup(
    name="evocore-toydevice",
    version="1.0",
    packages=["evocore_toydevice"],
    install_requires=["evocore", "torch-toydevice"],
    entry_points={"evocore": ["toydevice = evocore_toydevice.plugin"]},
)
