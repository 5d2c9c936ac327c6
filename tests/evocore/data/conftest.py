"""Fixtures of the data room."""

import pytest
from data_files import write_bin


@pytest.fixture
def bin_file(tmp_path):
    """Writes a ``.bin`` file below the test's folder: ``bin_file("en/a.bin", documents)``."""
    return lambda name, documents, **options: write_bin(tmp_path / name, documents, **options)
