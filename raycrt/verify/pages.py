"""The unpacked size of a Parquet file, from its footer and from the headers of its pages.

Both are read here before a library unpacks anything: a footer may misstate its pages, and readers
unpack whatever the pages hold. Footer and headers are structs of Thrift's compact protocol, with
the field numbers of parquet.thrift. Malformed bytes raise `ValueError`, `LookupError`, `TypeError`
or `AttributeError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raycrt.specs import Place

# Deepest nesting; in valid files nothing is nested deeper than the statistics of a column.
_DEPTH = 12


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a row group: its `name` and the group's number of `rows`; as the footer states,
    its pages hold `numbers` values in `packed` bytes from byte `first` on."""

    name: str
    rows: int
    numbers: int
    first: int
    packed: int

    def unpacked(self, file: Place) -> tuple[int, int]:
        """Counts of values and bytes that the pages unpack to, according to their own headers."""
        with file.open("rb") as opened:
            opened.seek(self.first)
            header = _Thrift(opened.read(self.packed))
        numbers = size = 0
        while header.at < len(header.data):
            page = header.struct()
            unpacked, packed = _whole(page[2]), _whole(page[3])
            # Both kinds of data pages count: a reader may take a page for either.
            numbers += sum(_whole(page[kind][1]) for kind in (5, 8) if kind in page)
            size += unpacked
            header.at += packed
        return numbers, size


@dataclass(frozen=True, kw_only=True)
class Footer:
    """The `rows` of a file and the columns of all its row groups."""

    rows: int
    columns: tuple[Column, ...]

    @staticmethod
    def read(file: Place) -> Footer:
        with file.open("rb") as opened:
            end = opened.seek(0, 2) - 8
            opened.seek(end)
            start = end - int.from_bytes(opened.read(4), "little")
            opened.seek(start)
            content = _Thrift(opened.read(end - start)).struct()
        columns = []
        for group in content[4]:
            for chunk in group[1]:
                facts = chunk[3]
                # The dictionary, if there is one, precedes the other pages.
                first = min(facts[9], facts.get(11) or facts[9])
                columns.append(
                    Column(
                        name=facts[3][0].decode(),
                        rows=_whole(group[3]),
                        numbers=_whole(facts[5]),
                        first=_whole(first),
                        packed=_whole(facts[7]),
                    )
                )
        rows = sum(_whole(group[3]) for group in content[4])
        return Footer(rows=max(_whole(content[3]), rows), columns=tuple(columns))


def _whole(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError("a size is not a number >= 0")
    return number


@dataclass
class _Thrift:
    """Reader of `data` from byte `at` on; a struct is a dictionary of values by field number."""

    data: bytes
    at: int = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while (byte := self._byte()) != 0:
            step, kind = byte >> 4, byte & 15
            number = number + step if step else self._integer()
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEPTH:
            raise ValueError("structs are nested too deeply")
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind in (7, 8):
            length = 8 if kind == 7 else self._varint()
            self.at += length
            return self.data[self.at - length : self.at]
        if kind in (9, 10):
            byte = self._byte()
            size = byte >> 4 if byte >> 4 < 15 else self._varint()
            return [self._value(byte & 15, depth + 1) for _ in range(size)]
        if kind == 12:
            return self.struct(depth)
        raise ValueError(f"unknown type {kind}")

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number does not end")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
