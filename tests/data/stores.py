"""How each source's files are written, for the laws of sources."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import csv, parquet

from tests.data.laws import Part, Store

INSTALLED = importlib.util.find_spec("datasets") is not None


def png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 pixels (3, height, width)."""
    file = io.BytesIO()
    Image.fromarray(np.moveaxis(pixels, 0, 2)).save(file, "png")
    return file.getvalue()


def cut(file: Path) -> str:
    file.write_bytes(file.read_bytes()[:-40])
    return str(file)


def _npz(directory: Path, parts: Mapping[str, Part]) -> dict:
    arrays = {}
    for name, part in parts.items():
        suffix = "" if [*parts] == ["train"] else f"_{name}"
        arrays |= {f"x{suffix}": np.moveaxis(part.pixels, 1, 3), f"y{suffix}": np.array(part.names)}
    np.savez(directory / "all.npz", **arrays)
    return {"source": "arrays", "path": directory / "all.npz"}


def _npy(directory: Path, parts: Mapping[str, Part]) -> dict:
    for name, part in parts.items():
        np.save(directory / f"{name}-images.npy", part.pixels)
        np.save(directory / f"{name}-labels.npy", np.array(part.names))
    return {"source": "arrays", "path": directory}


def _images(directory: Path, part: Part) -> None:
    for row, (pixels, name) in enumerate(zip(part.pixels, part.names, strict=True)):
        file = directory / name / f"{row:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(pixels))


def _folder(directory: Path, parts: Mapping[str, Part]) -> dict:
    for name, part in parts.items():
        _images(directory / ("" if [*parts] == ["train"] else name), part)
    return {"source": "folder", "path": directory}


def _spoilt_image(directory: Path) -> str:
    file = directory / "bat" / "004.png"
    file.write_bytes(b"no image")
    return str(file)


def _parquet(directory: Path, parts: Mapping[str, Part]) -> dict:
    for name, part in parts.items():
        table = pa.table({"image": [png(p) for p in part.pixels], "label": part.names})
        parquet.write_table(table, directory / f"{name}.parquet")
    return {"source": "table", "path": directory}


def _lists(directory: Path, parts: Mapping[str, Part]) -> dict:
    for name, part in parts.items():
        kind = pa.list_(pa.list_(pa.list_(pa.uint8())))
        table = pa.table({"pixels": pa.array(part.pixels.tolist(), kind), "label": part.names})
        parquet.write_table(table, directory / f"{name}.parquet")
    return {"source": "table", "path": directory}


def _csv(directory: Path, parts: Mapping[str, Part]) -> dict:
    for name, part in parts.items():
        flat = part.pixels.reshape(len(part.pixels), -1)
        columns = {f"f{k}": column for k, column in enumerate(flat.T)}
        csv.write_csv(pa.table({**columns, "label": part.names}), directory / f"{name}.csv")
    return {"source": "table", "path": directory}


def _spoilt_csv(directory: Path) -> str:
    file = directory / "train.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], "inf" + lines[3][lines[3].index(",") :], *lines[4:]]))
    return f"column 'f0' in row 2 of {file} is inf"


def _huggingface(directory: Path, parts: Mapping[str, Part]) -> dict:
    import datasets

    names = sorted({name for part in parts.values() for name in part.names})
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    made = {}
    for name, part in parts.items():
        images = [{"bytes": png(p), "path": None} for p in part.pixels]
        columns = {"image": images, "label": part.names}
        made[name] = datasets.Dataset.from_dict(columns, features=kinds)
    saved = made["train"] if [*made] == ["train"] else datasets.DatasetDict(made)
    saved.save_to_disk(str(directory / "saved"))
    return {"source": "huggingface", "path": directory / "saved"}


def _spoilt_huggingface(directory: Path) -> str:
    cut(next((directory / "saved").glob("*.arrow")))
    return str(directory / "saved")


def _torchvision(directory: Path, parts: Mapping[str, Part]) -> dict:
    _images(directory / "eurosat" / "2750", parts["train"])
    return {"source": "torchvision:EuroSAT", "directory": directory}


def _function(directory: Path, parts: Mapping[str, Part]) -> dict:
    arrays = _npz(directory, parts)["path"]
    names = list(parts)
    suffix = {name: "" if [*parts] == ["train"] else f"_{name}" for name in names}
    module = f"mine_{abs(hash(directory))}"
    (directory / f"{module}.py").write_text(
        f"""import numpy as np

def load():
    arrays = np.load({str(arrays)!r})
    return {{n: (arrays["x" + s], arrays["y" + s]) for n, s in {suffix!r}.items()}}
"""
    )
    return {"source": f"{module}:load", "path": directory}


def _spoilt_function(directory: Path) -> str:
    arrays = dict(np.load(directory / "all.npz"))
    arrays["x"] = arrays["x"].astype(np.float32)
    arrays["x"][5, 1, 2, 0] = np.nan
    np.savez(directory / "all.npz", **arrays)
    return "entry (0, 1, 2) in row 5 of 'train' of mine_"


def _tar(directory: Path, parts: Mapping[str, Part]) -> dict:
    for name, part in parts.items():
        # Two files of a split, read one after the other.
        half = len(part.names) // 2
        for number, rows in enumerate((range(half), range(half, len(part.names)))):
            with tarfile.open(directory / f"{name}-{number}.tar", "w") as file:
                for row in rows:
                    for kind, content in (
                        ("png", png(part.pixels[row])),
                        ("cls", part.names[row].encode()),
                    ):
                        member = tarfile.TarInfo(f"{row:03d}.{kind}")
                        member.size = len(content)
                        file.addfile(member, io.BytesIO(content))
    return {"source": "webdataset", "path": directory}


def _spoilt_tar(directory: Path) -> str:
    file = directory / "train-0.tar"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"IHDR", b"IHDX", 1))
    return f"000 in {file}"


STORES = {
    "npz": Store("arrays", _npz, lambda d: cut(d / "all.npz")),
    "npy": Store("arrays", _npy, lambda d: cut(d / "train-images.npy"), by_number=True),
    "folder": Store("folder", _folder, _spoilt_image, ordered=False, by_number=True),
    "parquet": Store("table", _parquet, lambda d: cut(d / "train.parquet"), by_number=True),
    "lists": Store("table", _lists, lambda d: cut(d / "train.parquet"), by_number=True),
    "csv": Store("table", _csv, _spoilt_csv, flat=True, scale=1),
    "huggingface": Store(
        "huggingface", _huggingface, _spoilt_huggingface, by_number=True, on_stores=False
    ),
    "webdataset": Store("webdataset", _tar, _spoilt_tar, by_number=True),
    "torchvision": Store(
        "torchvision",
        _torchvision,
        lambda d: _spoilt_image(d / "eurosat" / "2750"),
        splits=False,
        ordered=False,
        on_stores=False,
    ),
    "function": Store("function", _function, _spoilt_function, on_stores=False),
}
