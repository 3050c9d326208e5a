"""The laws of data sets, for every source and for the named ones."""

import numpy as np
import pytest

from raycrt.data.sources import SOURCES
from raycrt.specs import validate
from tests.data.laws import DataLaws, SourceLaws
from tests.data.stores import INSTALLED, STORES
from tests.data.test_data import _write_idx


class TestSources(SourceLaws):
    @pytest.fixture(params=STORES)
    def store(self, request):
        if request.param == "huggingface" and not INSTALLED:
            pytest.skip("Hugging Face's datasets is not installed")
        return STORES[request.param]


class TestDigits(DataLaws):
    @pytest.fixture
    def spec(self):
        return validate({"data": {"name": "digits"}})


class TestMnist(DataLaws):
    @pytest.fixture
    def spec(self, tmp_path):
        random = np.random.default_rng(0)
        for name, rows in (("train", 30), ("t10k", 10)):
            images = random.integers(0, 256, (rows, 28, 28))
            _write_idx(tmp_path / f"{name}-images-idx3-ubyte", images, compress=False)
            _write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.arange(rows) % 10, compress=False)
        return validate({"data": {"name": "mnist", "directory": tmp_path}})


def test_every_source_has_a_store():
    assert {store.kind for store in STORES.values()} == set(SOURCES)
