from setuptools import setup

setup(name="torch-toydevice", version="0.1", py_modules=["torch_toydevice"], install_requires=["torch>=2.11"])
