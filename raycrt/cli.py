"""The command line: thin over the library, one spec for every command.

Further commands are found in the entry-point group `raycrt.commands`, so that packages that build
on this one add theirs without being imported here.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from raycrt import identity, interruption, outputs, pipes, recipes
from raycrt.errors import InvalidInput, require
from raycrt.spec import ModelSpec, Spec, parse_override


class _Commands(TyperGroup):
    """Commands that a signal stops in one sentence."""

    def invoke(self, ctx: Any) -> Any:
        with interruption.told():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="""Train, search and certify classifiers with a proved l2 radius for every image.

A run is a recipe with overrides. Start with `raycrt demo`; then, step by step:

  raycrt search  --recipe digits --out runs/a        find the best configuration
  raycrt train   --recipe runs/a/search/best.yaml --out runs/a
  raycrt certify --out runs/a                        prove a radius for each test image
  raycrt verify  runs/a                              prove them again, independently
  raycrt report  runs/a                              Markdown and a plot
""",
)

Recipe = Annotated[str, typer.Option(help="Name of a shipped recipe, or a path to YAML.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key: section.key=value. May be repeated."),
]


def _lasting(out: Path) -> Path:
    """`out`, unless it is a URI, or lies in the copy of the project that a Ray job runs in and
    leaves behind."""
    # A path has one slash where the URI had two.
    scheme = out.parts[0] if out.parts else ""
    if len(scheme) > 1 and scheme.endswith(":"):
        raise InvalidInput(f"a run is a directory, no URI (search.directory may be one), got {out}")
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    require(out.is_absolute() or not in_job, "a run's path is absolute in a Ray job", path=str(out))
    return out


Out = Annotated[
    Path, typer.Option(callback=_lasting, help="Directory of the run; made if it is missing.")
]
DataDir = Annotated[
    Path | None, typer.Option(help="Directory of the data sets (else RAYCRT_DATA).")
]
Download = Annotated[bool, typer.Option("--download", help="Fetch missing data sets.")]
Workers = Annotated[
    int | None, typer.Option(help="Training workers, certification actors: run.workers.")
]
TrialWorkers = Annotated[
    int | None, typer.Option(help="Training workers of each trial: search.workers.")
]
Gpus = Annotated[
    float | None,
    typer.Option("--gpus-per-worker", help="GPUs of each worker or actor: run.gpus_per_worker."),
]

DEFAULT_RECIPE = "digits"
DEFAULT_OUT = Path("runs/a")


def spec_from(
    recipe: str,
    overrides: list[str] | None,
    data_dir: Path | None,
    download: bool,
    *,
    idle: tuple[str, ...] = (),
    **shorthands: float | None,
) -> Spec:
    """The spec that the common options of a command state; its data set is there.

    `shorthands` are values of further keys, `section__key`, that options stand for; none are left
    as they are. `InvalidInput` where what is given would have no effect: a key twice, another value
    below the keys `idle`, which the command does not read, or the files of a data set without any.
    """
    from raycrt import data

    given = [parse_override(text) for text in overrides or []]
    given += [("data.directory", str(data_dir))] * (data_dir is not None)
    given += [("data.download", True)] * download
    given += [(k.replace("__", "."), v) for k, v in shorthands.items() if v is not None]
    values = dict(given)
    for key in values:
        require([k for k, _ in given].count(key) == 1, "a key is given once", key=key)
    own = recipes.load(recipe)
    spec = own.override(values)
    changed = identity.difference(own, spec, idle)
    if changed is not None:
        key, _, value = changed
        raise InvalidInput(f"{key}={value} has no effect on this command; leave it out")
    if spec.data.name == "digits" and (values.get("data.directory") or values.get("data.download")):
        raise InvalidInput(
            "--data-dir and --download have no effect on data.name=digits, which comes with "
            "scikit-learn; name another data set by a --recipe or --set data.name=..."
        )
    data.check(spec.data)
    return spec


@app.command()
def train(
    recipe: Recipe = DEFAULT_RECIPE,
    set_: Overrides = None,
    out: Out = DEFAULT_OUT,
    data_dir: DataDir = None,
    download: Download = False,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    hold_out: Annotated[
        bool, typer.Option("--hold-out", help="Keep validation rows out and assess them instead.")
    ] = False,
) -> None:
    """Train a recipe on training and validation rows with Ray Train; write OUT/train.

    OUT/train/tensorboard follows it. With --hold-out it writes OUT/hold-out instead, and what is
    proved on the validation rows is followed there.
    """
    spec = spec_from(
        recipe,
        set_,
        data_dir,
        download,
        idle=("search",),
        run__workers=workers,
        run__gpus_per_worker=gpus_per_worker,
    )
    from raycrt import rules
    from raycrt.distributed import stages

    rules.check_training(spec)
    print(f"recipe: {recipe}")
    stages.train(spec, out / ("hold-out" if hold_out else "train"), hold_out=hold_out)


@app.command()
def certify(
    out: Out = DEFAULT_OUT,
    model: Annotated[
        Path | None,
        typer.Option(help="Another model: .onnx, weights (.safetensors, .pt) or a directory."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe for --model: its data, and the activation of bare weights."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Where the weights are in the --model file, as model.ema."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers of weights in --model, first to last: fc1,fc2,out. A + in place of the "
            "comma: no activation between them, as in fc1+norm,out."
        ),
    ] = None,
    batch_norm_eps: Annotated[
        float | None, typer.Option(help="The eps of batch normalisation in --model's weights.")
    ] = None,
    set_: Overrides = None,
    data_dir: DataDir = None,
    download: Download = False,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
) -> None:
    """Prove a radius for each test image; write OUT/certificates.

    The model is the one in OUT/train, or --model with the --recipe that says what its images are;
    that is put in OUT/train if a spec can say what it is.
    """
    from raycrt import checkpoint, data, models
    from raycrt.distributed import stages

    trained = out / "train"
    if model is None and recipe is not None:
        raise InvalidInput("--recipe goes with --model; the model in OUT/train has its own spec")
    if model is None and (key, layers, batch_norm_eps) != (None, None, None):
        raise InvalidInput("--key, --layers and --batch-norm-eps go with --model")
    if model is None and not (trained / checkpoint.MODEL).is_file():
        raise InvalidInput(
            f"there is no trained model in {trained}: `raycrt train --out {out}` puts one there, "
            "and --model names one from elsewhere"
        )
    # What trained the weights is told by them, and so is the model unless they are bare.
    bare = model is not None and models.is_weights(model)
    idle = ("train", "search", "run.seed", "data.validation", *(() if bare else ("model",)))
    spec = spec_from(
        str(trained / "spec.yaml") if model is None else recipe or DEFAULT_RECIPE,
        set_,
        data_dir,
        download,
        idle=idle,
        run__workers=workers,
        run__gpus_per_worker=gpus_per_worker,
    )
    said = recipe is not None or any(text.startswith("model.activation") for text in set_ or [])
    if model is not None and models.is_weights(model) and not said:
        raise InvalidInput(
            f"{model} does not say its activation: --recipe, or --set model.activation, must"
        )
    source = model or trained
    # What a graph computes is compared at images.
    graph = model is not None and model.suffix.lower() == ".onnx"
    network = models.load(
        source,
        spec.model,
        data.image_shape(spec.data),
        images=data.load(spec.data).test.images if graph else None,
        key=key,
        layers=None if layers is None else layers.split(","),
        batch_norm_eps=batch_norm_eps,
    )
    made = checkpoint.load_provenance(source).training if source.is_dir() else None
    told: ModelSpec | None = spec.model
    if model is not None:
        sizes = [network.features, *(layer.out_features for layer in network.layers)]
        print(f"model: {'-'.join(map(str, sizes))}, {network.activation.name}")
        told = models.described(model, network, spec.model)
    with outputs.held(trained) if told is not None else nullcontext():
        if model is not None:
            spec = stages.adopt(spec, network, told, trained, made)
        stages.certify(spec, network, out / "certificates", told=told is not None, made=made)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(callback=_lasting, help="Directory of the run.")],
) -> None:
    """Write RUN/report from RUN/certificates (and the trials of RUN/search, if there are any)."""
    from raycrt import report as reports

    trials = run / "search" / "trials.csv"
    written = reports.write(
        run / "certificates", run / "report", trials_csv=trials if trials.is_file() else None
    )
    print("\n".join([written.headline, *written.remarks]))
    print(written.markdown)
    print(written.plot)


@contextmanager
def one_line() -> Iterator[None]:
    """What a command meets ends it in one line on standard error: bad input with exit code 2, a
    disk that is full or fails with 1, and how to go on with what is written by then."""
    shown, threading.excepthook = threading.excepthook, _shown_of_thread
    try:
        yield
    except InvalidInput as error:
        print(f"raycrt: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        cause = outputs.disk_error(error)
        if cause is None:
            raise
        said = f"{cause.strerror}: {cause.filename}" if cause.filename else cause.strerror
        print(
            f"raycrt: {said}; what was written before is kept, and the same command goes on from "
            "it (raycrt search: with --resume)",
            file=sys.stderr,
        )
        sys.exit(1)
    finally:
        threading.excepthook = shown


def _shown_of_thread(failed: threading.ExceptHookArgs) -> None:
    """A disk that fails is told by the command, not by each thread that writes."""
    if outputs.disk_error(failed.exc_value) is None:
        threading.__excepthook__(failed)


def main() -> None:
    """Run the command line."""
    from raycrt.verify.cli import verify

    pipes.outlive_readers()
    app.command()(verify)
    for entry in sorted(entry_points(group="raycrt.commands"), key=lambda e: e.name):
        app.command(entry.name)(entry.load())
    with one_line():
        app()
