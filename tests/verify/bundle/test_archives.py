"""Archives that are not what a writer makes are refused in a sentence, before a row is read."""

import shutil
import stat
import struct
import zipfile

import numpy as np
import pytest

from raycrt.errors import InvalidInput
from raycrt.verify.bundle import archive, index, verify_bundle
from tests.verify.bundle.forged import ROWS, files_of, stored


@pytest.fixture(autouse=True)
def unproved(monkeypatch):
    """Fails where anything is proved."""
    monkeypatch.setattr("raycrt.verify.bundle.verify_with", lambda *a, **k: pytest.fail("proved"))


def _refused(file, message):
    with pytest.raises(InvalidInput, match=message) as refusal:
        verify_bundle(file)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["README.md", ROWS, "data/inputs.npy", "train/spec.yaml"])
def test_a_changed_file(bundle, tmp_path, name):
    files = files_of(bundle)
    changed = files[name][:-1] + bytes([files[name][-1] ^ 1])
    _refused(stored(tmp_path, {**files, name: changed}), f"'{name}' was changed: its SHA-256 is ")


@pytest.mark.parametrize("name", ["model.onnx", "data/labels.npy", ROWS])
def test_a_missing_file(bundle, tmp_path, name):
    files = files_of(bundle)
    del files[name]
    _refused(stored(tmp_path, files), f"'{name}' is missing in the bundle")


@pytest.mark.parametrize("name", ["bundle.json", "README.md", "train/model.safetensors"])
def test_a_file_that_every_bundle_has(bundle, tmp_path, name):
    files = files_of(bundle)
    del files[name]
    _refused(stored(tmp_path, files), f"must hold {name}")


def test_an_added_file_of_the_format(bundle, tmp_path):
    files = files_of(bundle)
    extra = {"certificates/rows/more.parquet": files[ROWS]}
    _refused(stored(tmp_path, {**files, **extra}), "more.parquet' was added to the bundle")


@pytest.mark.parametrize(
    "name",
    [
        *("../out", "/etc/out", "certificates/rows/../../../out.parquet", "notes.txt"),
        *("certificates/rows/a/b.parquet", "certificates/rows/.parquet", "model.onnx/x"),
        *("certificates\\rows\\x.parquet", "certificates/driver", "certificates/rows/x.parquet\n"),
        *("C:/out", "certificates/rows/", "README.md ", "readme.md"),
    ],
)
def test_names_that_are_not_of_the_format(bundle, tmp_path, name):
    before = set(tmp_path.parent.iterdir())
    _refused(stored(tmp_path, {**files_of(bundle), name: b"x"}), "a bundle holds no file")
    assert set(tmp_path.parent.iterdir()) == before


def _archive(place, files, **options):
    """An archive as zipfile writes it; `options` change the entry of the card."""
    with zipfile.ZipFile(place / "forged.zip", "w") as made:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            if name == "README.md":
                for key, value in options.items():
                    setattr(entry, key, value)
            made.writestr(entry, files[name])
    return place / "forged.zip"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"external_attr": (stat.S_IFLNK | 0o777) << 16}, "plain files, but 'README.md' is none"),
        ({"external_attr": (stat.S_IFDIR | 0o755) << 16}, "plain files, but 'README.md' is none"),
        ({"external_attr": (stat.S_IFREG | 0o644) << 16 | 0x10}, "plain files"),
        ({"compress_type": zipfile.ZIP_DEFLATED}, "stored as they are, but 'README.md' is not"),
        ({"compress_type": zipfile.ZIP_LZMA}, "stored as they are, but 'README.md' is not"),
        ({"extra": b"\x99\x99\x04\x00abcd"}, "one after the other, but not so"),
        ({"comment": b"hidden"}, "nothing else, but this one has more bytes"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_of_another_kind(bundle, tmp_path, options, message):
    _refused(_archive(tmp_path, files_of(bundle), **options), message)


def test_a_bomb_is_not_unpacked(bundle, tmp_path):
    bomb = b"\0" * 50_000_000
    file = _archive(
        tmp_path, {**files_of(bundle), "README.md": bomb}, compress_type=zipfile.ZIP_DEFLATED
    )
    assert file.stat().st_size < 1_000_000
    _refused(file, "stored as they are")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name(bundle, tmp_path):
    file = shutil.copy(bundle, tmp_path / "twice.zip")
    with zipfile.ZipFile(file, "a") as made:
        entry = zipfile.ZipInfo(ROWS, (1980, 1, 1, 0, 0, 0))
        entry.external_attr = (stat.S_IFREG | 0o644) << 16
        made.writestr(entry, b"other")
    _refused(file, "several 'certificates/rows")


@pytest.mark.parametrize("place", ["before", "after", "between"])
def test_bytes_that_are_no_file_of_the_archive(bundle, tmp_path, place):
    raw = bundle.read_bytes()
    if place == "between":
        # A second file that the archive's directory does not list.
        end = raw.rindex(b"PK\5\6")
        start = struct.unpack("<I", raw[end + 16 : end + 20])[0]
        hidden = raw[: 30 + len("README.md")] + b""
        raw = raw[:start] + hidden + raw[start:end] + raw[end : end + 16]
        raw += struct.pack("<IH", start + len(hidden), 0)
    elif place == "before":
        raw = b"#!/bin/sh\n" + raw
    else:
        raw = raw[:-2] + b"\5\0hello"
    file = tmp_path / "forged.zip"
    file.write_bytes(raw)
    _refused(file, "one after the other|nothing else, but this one has more bytes")


def test_a_header_that_says_something_else_than_the_directory(bundle, tmp_path):
    raw = bytearray(bundle.read_bytes())
    raw[22:26] = struct.pack("<I", 7)  # The size of the first file.
    (tmp_path / "forged.zip").write_bytes(raw)
    _refused(tmp_path / "forged.zip", "one after the other, but not so 'README.md'")


@pytest.mark.parametrize("cut", [0, 1, 21, 30, 1000, -1, -30])
def test_a_part_of_an_archive(bundle, tmp_path, cut):
    (tmp_path / "cut.zip").write_bytes(bundle.read_bytes()[:cut])
    _refused(tmp_path / "cut.zip", "must be a whole zip archive")


def test_an_archive_that_is_too_large(bundle, monkeypatch):
    monkeypatch.setattr(archive, "_MOST_BYTES", 1000)
    _refused(bundle, "a bundle has at most 1000 bytes")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"[]", "must hold an object"),
        (b"{}", "version must be 1"),
        (b'{"version": 2, "files": {}}', "version must be 1 in bundle.json, but is 2"),
        (b'{"version": true, "files": {}}', "version must be 1"),
        (b'{"version": 1, "files": []}', "files must be an object"),
        (b'{"version": 1, "files": {"README.md": 1}}', "README.md' was changed|was added"),
        (b'{"version": 1, "version": 1}', "a key occurs twice"),
        (b"\xff", "must be JSON"),
    ],
)
def test_an_index_that_is_none(bundle, tmp_path, index, message):
    _refused(stored(tmp_path, {**files_of(bundle), "bundle.json": index}), message)


@pytest.mark.slow
def test_any_byte_that_is_changed_is_refused_or_means_nothing(bundle, tmp_path):
    rng, honest, raw = np.random.default_rng(0), files_of(bundle), bundle.read_bytes()
    headers = [place for place in range(len(raw)) if raw[place : place + 2] == b"PK"]
    for number in range(150):
        changed = bytearray(raw)
        place = int(rng.choice(headers) + rng.integers(60)) % len(raw)
        changed[place] ^= int(rng.integers(1, 256))
        file, target = tmp_path / "forged.zip", tmp_path / str(number)
        file.write_bytes(changed)
        target.mkdir()
        try:
            digests = archive.unpack(file, target)
            index.check(target, digests)
        except InvalidInput as error:
            assert "\n" not in str(error)
            continue
        found = {name: (target / name).read_bytes() for name in digests}
        assert found == honest
