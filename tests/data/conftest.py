import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest


@pytest.fixture(scope="session")
def elsewhere():
    """Another process, in which data sets are read too."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process
