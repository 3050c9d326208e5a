"""What a refusal shows of the keys and values that it refuses."""

import pytest

from raycrt.errors import InvalidInput
from raycrt.specs import validate


@pytest.mark.parametrize(
    "tree", [{"data": {"s3://u:SECRET@h": 1}}, "s3://u:SECRET@h", ["s3://u:SECRET@h"]]
)
def test_a_uri_in_place_of_a_key_or_a_spec_is_not_shown(tree):
    with pytest.raises(InvalidInput, match="a URI") as refused:
        validate(tree)
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("key", ["x" * 10_000, "a\nb"])
def test_an_odd_key_is_one_short_line(key):
    with pytest.raises(InvalidInput) as refused:
        validate({key: 1})
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)
