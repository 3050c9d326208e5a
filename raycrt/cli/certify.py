"""`raycrt certify`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer

from raycrt.cli.about import completion
from raycrt.cli.options import (
    DEFAULT_OUT,
    DEFAULT_RECIPE,
    DataDir,
    Download,
    Gpus,
    Out,
    Overrides,
    Workers,
    found,
    remark,
    stated_spec,
)
from raycrt.errors import InvalidInput
from raycrt.specs import ModelSpec
from raycrt.system.places import outputs
from raycrt.system.places.storage import Place

# Test rows that are compared with a model's own outputs, and whose range is looked at.
_COMPARED, _LOOKED_AT = 10_000, 256


def certify(
    out: Out = DEFAULT_OUT,
    model: Annotated[
        Place | None,
        typer.Option(
            callback=found,
            parser=str,
            metavar="MODEL",
            help="Another model: .onnx, .pt2, weights (.safetensors, .pt) or a directory.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            autocompletion=completion.recipes,
            help="Recipe for --model: its data, and the activation of bare weights.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Key of the weights in the --model file, such as model.ema."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Layers of the weights in --model, first to last: fc1,fc2,out. A + in place of a "
            "comma means no activation between the two: fc1+norm,out.",
        ),
    ] = None,
    batch_norm_eps: Annotated[
        float | None,
        typer.Option(metavar="EPS", help="The eps of batch normalisation in --model's weights."),
    ] = None,
    run_code: Annotated[
        bool,
        typer.Option("--run-code", help="Read a .pt2 file, which torch may run code of."),
    ] = False,
    set_: Overrides = None,
    data_dir: DataDir = None,
    download: Download = False,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
) -> None:
    """Prove a radius for each test image; write OUT/certificates.

    The model is the one in OUT/train, or --model with a --recipe that describes its images, if it
    is no directory that raycrt wrote; it is copied to OUT/train if a spec can describe it.
    """
    trained = out / "train"
    if model is None and recipe is not None:
        raise InvalidInput("--recipe goes with --model; the model in OUT/train has its own spec")
    if run_code and (model is None or model.suffix.lower() != ".pt2"):
        raise InvalidInput("--run-code goes with a --model in a .pt2 file")
    if model is None and (key, layers, batch_norm_eps) != (None, None, None):
        raise InvalidInput("--key, --layers and --batch-norm-eps go with --model")
    import torch

    from raycrt import data
    from raycrt.distributed import stages
    from raycrt.foreign import description, factory, files
    from raycrt.networks import checkpoint

    if model is None and not (trained / checkpoint.MODEL).is_file():
        raise InvalidInput(
            f"there is no trained model in {trained}: `raycrt train --out {out}` puts one there, "
            "and --model names one from elsewhere"
        )
    # A model states its own architecture and training; bare weights state neither.
    bare = model is not None and files.is_weights(model)
    idle = ("train", "search", "run.seed", "data.validation", *(() if bare else ("model",)))
    # A directory that raycrt wrote names its data too.
    home = trained if model is None else model
    own = recipe is None and (home / "spec.yaml").is_file()
    stated = stated_spec(
        str(home / "spec.yaml") if own else recipe or DEFAULT_RECIPE,
        set_,
        data_dir,
        download,
        idle=idle,
        run__workers=workers,
        run__gpus_per_worker=gpus_per_worker,
    )
    if model is not None and not own:
        unnamed = "" if recipe else " (no --recipe names another); certified are its test images"
        print(f"recipe: {recipe or DEFAULT_RECIPE}{unnamed}")
    spec, reader = data.opened_for_test(stated)
    remark(spec, reader.first(_LOOKED_AT))
    spec = factory.resolved(spec)
    named = recipe is not None or any(text.startswith("model.activation") for text in set_ or [])
    if not own and spec.data.normalize is not None:
        raise InvalidInput(
            "data.normalize must be left out with --model, as a model has its normalisation in "
            "itself: --set data.normalize=null"
        )
    if bare and not named:
        raise InvalidInput(
            f"{model} does not say its activation: --recipe, or --set model.activation, must"
        )
    source = model or trained
    # The outputs of a graph are compared with those of the network on test images.
    graph = model is not None and not bare and model.is_file()
    network = files.load(
        source,
        spec.model,
        data.shape(spec.data),
        images=torch.from_numpy(reader.first(_COMPARED).images) if graph else None,
        key=key,
        layers=None if layers is None else layers.split(","),
        batch_norm_eps=batch_norm_eps,
        run_code=run_code,
    )
    made = checkpoint.load_provenance(source).training if source.is_dir() else None
    described: ModelSpec | None = spec.model
    if model is not None:
        sizes = [network.features, *(layer.out_features for layer in network.layers)]
        names = dict.fromkeys(each.activation.name for each in network.nonlinearities)
        print(f"model: {'-'.join(map(str, sizes))}, {', '.join(names)}")
        shape, classes = data.shape(spec.data), len(data.class_names(spec.data))
        if network.classes < classes:
            raise InvalidInput(
                f"a model must have a logit for each of the {classes} classes of "
                f"{spec.data.title}, but {model} has {network.classes}; --recipe names other data"
            )
        if bare or model.is_dir():
            described = description.described(model, network, spec.model, classes, shape)
        else:
            described = description.spec_of(network, shape) if network.classes == classes else None
    with outputs.held(trained) if described is not None else nullcontext():
        if model is not None:
            spec = stages.adopt(spec, network, described, trained, made)
        stages.certify(
            spec,
            network,
            out / "certificates",
            reader=reader,
            spec_describes_model=described is not None,
            made=made,
        )
