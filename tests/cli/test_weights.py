"""`raycrt certify --model` with a file of weights."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from raycrt import data
from raycrt.certification.table import storage
from raycrt.cli import main as cli
from raycrt.cli import options
from raycrt.distributed import stages
from raycrt.errors import InvalidInput
from raycrt.networks import checkpoint, network
from raycrt.networks.network import Network
from raycrt.specs import Spec
from raycrt.verify import verify_run
from tests.data.laws import part
from tests.data.stores import STORES
from tests.distributed.inprocess import work_here
from tests.foreign.models import assert_same
from tests.foreign.weights.models import dense, normed


class TestCommand:
    @pytest.fixture
    def certify(self, monkeypatch: pytest.MonkeyPatch):
        """Runs the command without certifying: exit code, output, and what is to be certified."""
        app, given = typer.Typer(), []
        app.command()(cli.certify)

        def kept(
            spec: Spec, network: Network, out: Path, *, spec_describes_model: bool, **named: Any
        ) -> None:
            given.append((network, spec.model if spec_describes_model else None))

        monkeypatch.setattr(stages, "certify", kept)

        def run(file: Path, *options: str):
            out = ["--out", str(file.parent / f"run{len(given)}")]
            done = CliRunner().invoke(app, ["--model", str(file), *out, *options])
            if done.exception and not isinstance(done.exception, SystemExit):
                return str(done.exception), None, None
            return done.output, *given[-1]

        return run

    def test_too_few_logits_for_the_data(self, tmp_path: Path, certify) -> None:
        torch.save(dense(64, 50, 3).state_dict(), tmp_path / "w.ckpt")
        output, *_ = certify(tmp_path / "w.ckpt", "--set", "model.activation=tanh")
        assert "each of the 10 classes of digits, but" in output and "has 3; --recipe" in output

    def test_different_widths(self, tmp_path: Path, certify) -> None:
        torch.save(dense(64, 50, 25, 10).state_dict(), tmp_path / "w.ckpt")
        output, found, told = certify(tmp_path / "w.ckpt", "--set", "model.activation=tanh")
        assert "model: 64-50-25-10, tanh" in output
        assert "recipe: digits (no --recipe names another); certified are its test" in output
        assert found.activation.name == "tanh"
        assert [layer.width for layer in told.layers] == [50, 25]

    def test_another_depth_than_the_recipe_is_told_truly(self, tmp_path: Path, certify) -> None:
        torch.save(dense(64, 20, 20, 20, 10).state_dict(), tmp_path / "w.pt")
        _, _, told = certify(tmp_path / "w.pt", "--recipe", "digits")
        assert (told.depth, told.width, told.activation) == (4, 20, "softplus")
        assert checkpoint.load_model(tmp_path / "run0" / "train")[1].model == told

    def test_the_activation_must_be_stated(self, tmp_path: Path, certify) -> None:
        torch.save(dense(64, 20, 10).state_dict(), tmp_path / "w.pt")
        assert "does not say its activation" in certify(tmp_path / "w.pt")[0]

    def test_layers_key_and_eps(self, tmp_path: Path, certify) -> None:
        model = normed(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 10))
        names = {"0": "in", "1": "norm", "3": "out"}
        state = {names[n[0]] + n[1:]: t for n, t in model.state_dict().items()}
        torch.save({"ema": state, "last": state}, tmp_path / "w.pt")
        options = ["--set", "model.activation=tanh", "--key", "ema", "--layers", "in+norm,out"]
        output, found, told = certify(tmp_path / "w.pt", *options, "--batch-norm-eps", "1e-5")
        assert told.layers[1].eps == 1e-5, output
        assert_same(model, found, (64,))

    def test_options_without_effect(self, tmp_path: Path, certify) -> None:
        app = typer.Typer()
        app.command()(cli.certify)
        done = CliRunner().invoke(app, ["--out", str(tmp_path), "--key", "ema"])
        assert "go with --model" in str(done.exception)

    def test_half_precision_from_file_to_checked_certificates(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stages, "session", nullcontext)
        monkeypatch.setattr(stages.room, "check", lambda run: None)
        work_here(monkeypatch)
        state = {n: t.bfloat16() for n, t in dense(64, 20, 10).state_dict().items()}
        state["0.bias"] = state["0.bias"].float() + 1e-4
        torch.save(state, tmp_path / "w.pt")
        app, out = typer.Typer(), tmp_path / "run"
        app.command()(cli.certify)
        few = ["--set", "data.limit=12", "--set", "model.activation=tanh"]
        few += ["--set", "certify.steps=5"]
        done = CliRunner().invoke(app, ["--model", str(tmp_path / "w.pt"), "--out", str(out), *few])
        assert done.exit_code == 0, done.output
        rows, _ = storage.read(out / "certificates")
        assert (rows["radius"].to_numpy() > 0).any()
        assert verify_run(out).sound

    def test_data_in_place_of_that_of_the_recipe_has_no_other_share_held_out(
        self, tmp_path: Path
    ) -> None:
        """`certify` does not read data.validation, of which another data set has the default."""
        stated = options.stated_spec(
            "digits",
            ["data.source=folder", f"data.path={tmp_path}"],
            None,
            False,
            idle=("data.validation",),
        )
        assert stated.data.source == "folder"
        with pytest.raises(InvalidInput, match=r"data\.validation=0\.3 has no effect"):
            options.stated_spec(
                "digits", ["data.validation=0.3"], None, False, idle=("data.validation",)
            )

    def test_a_directory_that_raycrt_wrote_names_its_data(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stages, "session", nullcontext)
        monkeypatch.setattr(stages.room, "check", lambda run: None)
        work_here(monkeypatch)
        spec = STORES["npy"].spec(tmp_path, {"train": part(30), "test": part(6)})
        spec = data.described(spec.override({"certify.steps": 0, "model.width": 4}))
        model = network.build(spec.model, data.shape(spec.data), 3)
        checkpoint.save_model(tmp_path / "elsewhere", model, spec)
        app, out = typer.Typer(), tmp_path / "run"
        app.command()(cli.certify)
        done = CliRunner().invoke(app, ["--model", str(tmp_path / "elsewhere"), "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert len(storage.read(out / "certificates")[0]) == 6
        assert verify_run(out).sound
