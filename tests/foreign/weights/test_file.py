"""Files of weights: read as they are, or refused in one sentence of ours."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raycrt.certification.certifier import Certifier
from raycrt.errors import InvalidInput
from raycrt.foreign import files
from raycrt.foreign.weights import state_dict
from raycrt.networks import checkpoint, network, weights_file
from raycrt.specs import ModelSpec, validate

SPEC = ModelSpec(depth=2, width=8, activation="tanh")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def assert_is(found: network.Network, expected: nn.Sequential) -> None:
    for layer, own in zip(found.layers, (expected[0], expected[2]), strict=True):
        assert torch.equal(layer.matrix(), own.weight) and torch.equal(layer.offset(), own.bias)


def refusal(file: Path, **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        files.load(file, SPEC, **options)
    sentence = str(caught.value)
    assert str(file) in sentence
    assert "\x1b" not in sentence and "\n" not in sentence and "weights_only" not in sentence
    return sentence


ENDINGS = [
    "w.pt",
    "w.pth",
    "w.ckpt",
    "w.bin",
    "w.pth.tar",
    "w.safetensors",
    "W.PT",
    "W.SafeTensors",
]


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.net."])
def test_endings_and_prefixes(tmp_path: Path, name: str, prefix: str) -> None:
    state = {prefix + n: t for n, t in model().state_dict().items()}
    save = save_file if "safetensors" in name.lower() else torch.save
    save(state, tmp_path / name)
    assert_is(files.load(tmp_path / name, SPEC), model())


@pytest.mark.parametrize("prefix", ["model.", "net._orig_mod.", "module.model."])
def test_checkpoints_of_lightning(tmp_path: Path, prefix: str) -> None:
    own = model()
    optimizer = torch.optim.Adam(own.parameters())
    own(torch.rand(2, 6)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {
            **{prefix + name: tensor for name, tensor in own.state_dict().items()},
            "criterion.weight": torch.ones(3),
            "val_acc.tp": torch.zeros(3, dtype=torch.long),
        },
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 1e-3, "options": argparse.Namespace(width=8)},
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert_is(files.load(tmp_path / "last.ckpt", SPEC), own)


class TestDamage:
    @pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
    def test_cut(self, tmp_path: Path, kind: str, share: float) -> None:
        big = {"0.weight": torch.zeros(100, 100)}
        file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
        if kind == "safetensors":
            save_file(big, file)
        else:
            torch.save(big, file, _use_new_zipfile_serialization=kind == "zip")
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        assert "damaged, or not a file of" in refusal(file) or "holds a collectio" in refusal(file)

    @pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
    @pytest.mark.parametrize(
        ("content", "message"), [(b"", "is empty"), (b"Hello, world\n" * 9, "is damaged, or no")]
    )
    def test_other_content(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        assert message in refusal(tmp_path / name)

    def test_zip_of_something_else(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
            archive.writestr("notes/readme.txt", "nothing")
        assert "is damaged, or not a file of torch.save" in refusal(tmp_path / "w.pt")

    def test_directory(self, tmp_path: Path) -> None:
        (tmp_path / "w.pt").mkdir()
        assert "must hold model.safetensors" in refusal(tmp_path / "w.pt")

    def test_not_readable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*arguments: Any, **named: Any) -> None:
            raise PermissionError(13, "Permission denied")

        (tmp_path / "w.pt").write_bytes(b"some")
        monkeypatch.setattr(Path, "open", refused)
        assert "cannot be read: Permission denied" in refusal(tmp_path / "w.pt")

    @pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b""])
    def test_what_raycrt_wrote(self, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
        spec = validate({"model": {"depth": 2, "width": 8}})
        checkpoint.save_model(tmp_path, network.build(spec.model, (1, 8, 8), 10), spec)
        checkpoint.save_state(tmp_path, {"epoch": 3})
        for name, load in (
            (checkpoint.MODEL, checkpoint.load_model),
            (checkpoint.STATE, checkpoint.load_state),
        ):
            (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
            with pytest.raises(InvalidInput, match=f"{name} is (damaged|empty)"):
                load(tmp_path)


class TestPickles:
    def test_plain_types_beside_the_weights(self, tmp_path: Path) -> None:
        torch.save(
            {
                "args": argparse.Namespace(lr=np.float32(0.1), out=Path("runs"), depth=np.int64(2)),
                "best": np.float64(0.9),
                "history": np.arange(3.0),
                "seen": np.bool_(True),
                "weights": model().state_dict(),
            },
            tmp_path / "w.pt",
        )
        assert_is(files.load(tmp_path / "w.pt", SPEC), model())
        read = weights_file.read(tmp_path / "w.pt")
        assert read["args"].lr == np.float32(0.1) and str(read["args"].out) == "runs"
        assert read["history"].tolist() == [0.0, 1.0, 2.0]

    def test_path_of_another_system(self, tmp_path: Path) -> None:
        """`WindowsPath` cannot be made here, so that its name is written into the file."""
        torch.save({"d": PureWindowsPath("c:/x")}, tmp_path / "w.pt")
        with zipfile.ZipFile(tmp_path / "w.pt") as written:
            parts = {name: written.read(name) for name in written.namelist()}
        with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content.replace(b"PureWindowsPath", b"WindowsPath"))
        assert weights_file.read(tmp_path / "w.pt")["d"] == PureWindowsPath("c:/x")

    @pytest.mark.parametrize(
        ("content", "name"),
        [
            (model(), "torch.nn.modules.container.Sequential"),
            ({"model": model().state_dict(), "f": os.getcwd}, "posix.getcwd"),
            ({"model": model().state_dict(), "f": zipfile.ZipInfo("x")}, "zipfile.ZipInfo"),
            (np.array([None]), None),
        ],
    )
    def test_other_types_are_named(self, tmp_path: Path, content: Any, name: str | None) -> None:
        torch.save(content, tmp_path / "w.pt")
        sentence = refusal(tmp_path / "w.pt")
        if name:
            assert "torch.save(model.state_dict(), ...)" in sentence and f" {name}" in sentence

    def test_pickle_protocol(self, tmp_path: Path) -> None:
        torch.save(model().state_dict(), tmp_path / "w.pt", pickle_protocol=4)
        assert "another pickle protocol" in refusal(tmp_path / "w.pt")

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_torchscript(self, tmp_path: Path) -> None:
        torch.jit.script(model()).save(tmp_path / "w.pt")
        assert "is a TorchScript archive" in refusal(tmp_path / "w.pt")


class TestNumbers:
    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
    @pytest.mark.parametrize("mixed", [None, torch.float32, torch.float64])
    def test_half_precision_is_taken_exactly(
        self, tmp_path: Path, name: str, half: torch.dtype, mixed: torch.dtype | None
    ) -> None:
        state = {n: t.to(half) for n, t in model().state_dict().items()}
        if mixed:
            state["2.bias"] = state["2.bias"].to(mixed) + torch.tensor(1e-3, dtype=mixed)
        (save_file if "safe" in name else torch.save)(state, tmp_path / name)
        found = files.load(tmp_path / name, SPEC)
        assert found.dtype == (mixed or torch.float32)
        for stored, read in zip(state.values(), found.state_dict().values(), strict=True):
            assert torch.equal(stored.double(), read.double())
        assert (Certifier(found, steps=2)(torch.rand(3, 6)).radius > 0).any()

    def test_a_half_precision_network_is_what_is_stored_of_it(self, tmp_path: Path) -> None:
        spec = validate({"model": {"depth": 2, "width": 8}})
        half = network.build(spec.model, (1, 8, 8), 10).bfloat16()
        checkpoint.save_model(tmp_path, half, spec)
        stored, _ = checkpoint.load_model(tmp_path)
        assert stored.dtype == torch.float32
        assert checkpoint.weights_hash(half) == checkpoint.weights_hash(stored)

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            (lambda t: t.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
            (lambda t: t.to(torch.int8), "torch.int8"),
            (lambda t: t.to("meta"), "on the meta device, without numbers"),
            (lambda t: t.to(torch.complex64), "torch.complex64"),
            (lambda t: t.to_sparse(), "torch.sparse_coo"),
            (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
        ],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_other_numbers(
        self, tmp_path: Path, change: Callable[[Tensor], Tensor], found: str
    ) -> None:
        state = model().state_dict()
        state["2.weight"] = change(state["2.weight"])
        torch.save(state, tmp_path / "w.pt")
        assert f"but 2.weight is {found}" in refusal(tmp_path / "w.pt")


class TestChoice:
    @pytest.mark.parametrize(
        "nest",
        [
            lambda s: {"model": s, "epoch": 3},
            lambda s: {"net": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(8, 6)}}}},
            lambda s: {"state_dict": s, "optimizer_state": {"0.weight": torch.ones(8, 6)}},
            lambda s: {"a": {"model_state_dict": s}, "scores": torch.ones(4, 4)},
            lambda s: {"state_dict": {f"model.{n}": t for n, t in s.items()}, "loops": {}},
            lambda s: {"n_averaged": torch.tensor(3), **{f"module.{n}": t for n, t in s.items()}},
            lambda s: {**s, "criterion.weight": torch.ones(3), "train_acc.tp": torch.ones(3)},
            lambda s: {**s, "metrics.confusion": torch.ones(3, 3, dtype=torch.long)},
            lambda s: {**s, "0.total_ops": torch.zeros(1), "1.num_batches_tracked": torch.ones(())},
            lambda s: {n.replace("0.", "0._orig_mod."): t for n, t in s.items()},
        ],
    )
    def test_one_state_dict(self, tmp_path: Path, nest: Callable[[dict], dict]) -> None:
        torch.save(nest(model().state_dict()), tmp_path / "w.pt")
        assert_is(files.load(tmp_path / "w.pt", SPEC), model())

    def test_several_are_chosen_from_by_key(self, tmp_path: Path) -> None:
        other = {n: t + 1 for n, t in model().state_dict().items()}
        both = {"model": {"last": other, "ema": model().state_dict()}}
        torch.save(both, tmp_path / "w.pt")
        assert "there are several: model.last, model.ema" in refusal(tmp_path / "w.pt")
        assert "there are several" in refusal(tmp_path / "w.pt", key="model")
        assert "'model.em' does not; there are" in refusal(tmp_path / "w.pt", key="model.em")
        assert_is(files.load(tmp_path / "w.pt", SPEC, key="model.ema"), model())
        flat = {f"model.{p}.{n}": t for p, s in both["model"].items() for n, t in s.items()}
        for file, save in (("f.pt", torch.save), ("f.safetensors", save_file)):
            save(flat, tmp_path / file)
            assert "choose a part of the file (--key)" in refusal(tmp_path / file)
            assert_is(files.load(tmp_path / file, SPEC, key="model.ema"), model())

    def test_nothing_is_left_over(self, tmp_path: Path) -> None:
        state = model().state_dict()
        for extra in ({"scale": torch.tensor(2.0)}, {"criterion.weight": torch.ones(3, 3)}):
            torch.save({**state, **extra}, tmp_path / "w.pt")
            assert next(iter(extra)).split(".")[0] in refusal(tmp_path / "w.pt")
        torch.save({**state, "scale": 2.0}, tmp_path / "w.pt")
        assert "tensors by name only, but there is scale (float)" in refusal(tmp_path / "w.pt")

    @pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(2, 2)], torch.ones(2, 2), {}])
    def test_no_state_dict(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "w.pt")
        assert "must hold a state dict, but holds" in refusal(tmp_path / "w.pt")

    def test_a_mapping_that_holds_itself_ends(self) -> None:
        content: dict[str, Any] = {f"k{n}": None for n in range(60)}
        content.update(dict.fromkeys(content, content))
        with pytest.raises(InvalidInput, match="must hold a state dict"):
            state_dict.choose(content)

    def test_key_has_no_effect_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_bytes(b"")
        assert "key must be left out unless" in refusal(tmp_path / "m.onnx", key="model")
