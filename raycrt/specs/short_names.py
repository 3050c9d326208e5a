"""Short names of the keys of a spec, for tables and charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each of the `keys`, the whole key where two of them end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    number = Counter(last.values())
    return {key: name if number[name] == 1 else key for key, name in last.items()}
