"""The command line: thin over the library, one spec for every command.

Further commands are found in the entry-point group `raycrt.commands`, so that packages that build
on this one add theirs without being imported here.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from raycrt import recipes
from raycrt.errors import InvalidInput, require
from raycrt.spec import ModelSpec, Spec, parse_override

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="""Train, search and certify classifiers with a proved l2 radius for every image.

A run is a recipe with overrides. Start with `raycrt demo`; then, step by step:

  raycrt search  --recipe digits --out runs/a        find the best configuration
  raycrt train   --recipe runs/a/search/best.yaml --out runs/a
  raycrt certify --out runs/a                        prove a radius for each test image
  raycrt verify  runs/a                              prove them again, independently
  raycrt report  --out runs/a                        Markdown and a plot
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
        raise InvalidInput(
            f"--out must be a directory, no URI (search.directory may be), got {out}"
        )
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    require(out.is_absolute() or not in_job, "--out is absolute inside a Ray job", out=str(out))
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


def spec_from(
    recipe: str,
    overrides: list[str] | None,
    data_dir: Path | None,
    download: bool,
    **shorthands: float | None,
) -> Spec:
    """The spec that the common options of a command state; its data set is there.

    `shorthands` are values of further keys, `section__key`, that options stand for; none are left
    as they are.
    """
    from raycrt import data

    values = dict(parse_override(text) for text in overrides or [])
    if data_dir is not None:
        values["data.directory"] = str(data_dir)
    if download:
        values["data.download"] = True
    given = {key: value for key, value in shorthands.items() if value is not None}
    values |= {key.replace("__", "."): value for key, value in given.items()}
    spec = recipes.load(recipe).override(values)
    data.check(spec.data)
    return spec


@app.command()
def train(
    recipe: Recipe = DEFAULT_RECIPE,
    set_: Overrides = None,
    out: Out = Path("runs/train"),
    data_dir: DataDir = None,
    download: Download = False,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    hold_out: Annotated[
        bool, typer.Option("--hold-out", help="Keep validation rows out and assess them instead.")
    ] = False,
) -> None:
    """Train a recipe on training and validation rows with Ray Train; write OUT/train.

    OUT/train/tensorboard follows it; with --hold-out, by what is proved on the validation rows.
    """
    spec = spec_from(
        recipe, set_, data_dir, download, run__workers=workers, run__gpus_per_worker=gpus_per_worker
    )
    from raycrt.distributed import stages

    stages.train(spec, out / "train", hold_out=hold_out)


@app.command()
def certify(
    out: Out = Path("runs/train"),
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
    trained = out / "train"
    if model is None and recipe is not None:
        raise InvalidInput("--recipe goes with --model; the model in OUT/train has its own spec")
    if model is None and (key, layers, batch_norm_eps) != (None, None, None):
        raise InvalidInput("--key, --layers and --batch-norm-eps go with --model")
    if model is None and not (trained / "spec.yaml").is_file():
        raise InvalidInput(f"--out must hold a trained model, but there is none in {trained}")
    stated = str(trained / "spec.yaml") if model is None else recipe or DEFAULT_RECIPE
    spec = spec_from(
        stated, set_, data_dir, download, run__workers=workers, run__gpus_per_worker=gpus_per_worker
    )
    from raycrt import data, models

    said = recipe is not None or any(text.startswith("model.activation") for text in set_ or [])
    if model is not None and models.is_weights(model) and not said:
        raise InvalidInput(
            f"{model} does not say its activation: --recipe, or --set model.activation, must"
        )
    # What a graph computes is compared at images.
    graph = model is not None and model.suffix.lower() == ".onnx"
    network = models.load(
        model or trained,
        spec.model,
        data.image_shape(spec.data),
        images=data.load(spec.data).test.images if graph else None,
        key=key,
        layers=None if layers is None else layers.split(","),
        batch_norm_eps=batch_norm_eps,
    )
    from raycrt.distributed import stages

    told: ModelSpec | None = spec.model
    if model is not None:
        sizes = [network.features, *(layer.out_features for layer in network.layers)]
        print(f"model: {'-'.join(map(str, sizes))}, {network.activation.name}")
        told = models.described(model, network, spec.model)
        spec = stages.adopt(spec, network, told, trained)
    home = model or trained
    stages.certify(
        spec,
        network,
        out / "certificates",
        home=home if home.is_dir() else None,
        told=told is not None,
    )


@app.command()
def report(out: Out = Path("runs/train")) -> None:
    """Write OUT/report from OUT/certificates (and the trials of OUT/search, if there are any)."""
    from raycrt import report as reports

    trials = out / "search" / "trials.csv"
    written = reports.write(
        out / "certificates", out / "report", trials_csv=trials if trials.is_file() else None
    )
    print("\n".join([written.headline, *written.unproved]))
    print(written.markdown)
    print(written.plot)


def main() -> None:
    """Run the command line; bad input ends in one line on standard error and exit code 2."""
    from raycrt.verify.cli import verify

    app.command()(verify)
    for entry in sorted(entry_points(group="raycrt.commands"), key=lambda e: e.name):
        app.command(entry.name)(entry.load())
    try:
        app()
    except InvalidInput as error:
        print(f"raycrt: {error}", file=sys.stderr)
        sys.exit(2)
