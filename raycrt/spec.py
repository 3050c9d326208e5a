"""The one record that says what a run is: model, training, data, certification, search, run.

Every command, trial, worker, job and notebook reads the same validated `Spec`, and the full record
is stored beside every artefact it made. Unknown keys and impossible values are refused before any
work starts.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from raycrt.activations import ACTIVATIONS
from raycrt.errors import InvalidInput
from raycrt.outputs import write_atomically

ObjectiveName = Literal["standard", "pgd", "ibp", "crt", "crt-all"]
DataName = Literal["digits", "mnist", "fashion-mnist", "cifar10"]


class Record(BaseModel):
    """A frozen record that refuses unknown keys, NaN and infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSpec(Record):
    """A convolution for each of `channels`, if there are any, then `depth` dense layers.

    Convolutions pad with `padding` zeros on each side: an odd kernel makes ceil(n / stride) pixels
    of n.
    """

    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="output channels of the convolutions in front; none: a dense network"
    )
    kernel: int = Field(3, ge=1, description="height and width of the convolutions' kernels")
    stride: int = Field(2, ge=1, description="step of the convolutions")
    depth: int = Field(2, ge=1, le=16, description="dense layers, the last one included")
    width: int = Field(1024, ge=1, description="neurons in each hidden dense layer")
    activation: str = Field("softplus", description="one of raycrt.activations.ACTIVATIONS")
    beta: float = Field(1.0, gt=0, description="sharpness of softplus; no other activation has it")

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ACTIVATIONS:
            raise ValueError(f"must be one of {sorted(ACTIVATIONS)}{_nearest(name, ACTIVATIONS)}")
        return name

    @model_validator(mode="after")
    def _beta_has_effect(self) -> ModelSpec:
        if self.beta != 1.0 and self.activation != "softplus":
            raise ValueError("beta must be left at 1 unless activation is softplus")
        return self

    @model_validator(mode="after")
    def _layers_have_effect(self) -> ModelSpec:
        if not self.channels and self.depth < 2:
            raise ValueError("depth must be at least 2 unless channels has convolutions")
        if not self.channels and (self.kernel, self.stride) != (3, 2):
            raise ValueError("kernel and stride must be left at 3 and 2 unless channels is given")
        if self.depth < 2 and self.width != 1024:
            raise ValueError(
                "width must be left at 1024 where depth is 1 and no dense layer hidden"
            )
        return self

    @property
    def padding(self) -> int:
        """Zeros on each side of the images that a convolution gets."""
        return (self.kernel - 1) // 2


class AugmentationSpec(Record):
    """Random affine maps of the training images; all zero changes nothing."""

    rotation: float = Field(0.0, ge=0, le=180, description="largest angle, in degrees")
    shift: float = Field(0.0, ge=0, description="largest shift, in pixels")
    scaling: float = Field(0.0, ge=0, lt=1, description="largest change of height and width")
    mirror: bool = Field(False, description="swap left and right in half of the images")
    until: float = Field(1.0, ge=0, le=1, description="share of training that has it")

    @property
    def moves(self) -> bool:
        """Whether any image is changed."""
        return bool(self.rotation or self.shift or self.scaling or self.mirror)


class TrainSpec(Record):
    """How the weights are found. `radius` is the l2 radius trained for, in units of the input."""

    objective: ObjectiveName = "crt-all"
    radius: float = Field(1.58, ge=0, description="l2 radius trained for")
    gamma: float = Field(0.0, ge=0, description="weight of the curvature regulariser K(y, t)")
    targets: int = Field(3, ge=1, description="classes attacked per image by crt-all")
    attack_steps: int = Field(4, ge=1, description="fixed-point steps of the dual attack")
    epochs: int = Field(24, ge=1)
    batch_size: int = Field(512, ge=1, description="rows in a step, over all workers together")
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = Field(3e-3, gt=0, description="largest rate of Adam")
    muon_rate: float = Field(0.1, gt=0, description="largest rate of Muon, which has the matrices")
    warm_up: float = Field(0.0, ge=0, lt=1, description="share of training in which rates grow")
    ramp: float = Field(0.25, ge=0, le=1, description="share of training in which radius grows")
    averaging: float | None = Field(
        None, gt=0, lt=1, description="decay of the weight average; none keeps the last weights"
    )
    precision: Literal["float32", "float64", "tf32", "bfloat16"] = Field(
        "float32", description="of the step's products; tf32 and bfloat16 keep the weights float32"
    )
    components: int | None = Field(
        None, ge=1, description="principal directions of the images trained on; none: every pixel"
    )
    linear_layers: int = Field(
        0, ge=0, description="first layers that are near-linear isometries, put in front at the end"
    )
    linear_scale: float = Field(0.01, gt=0, description="size of the signal in these layers")
    augmentation: AugmentationSpec = AugmentationSpec()


class DataSpec(Record):
    """Which images, where they are, and which rows of the training set are held out."""

    name: DataName = "digits"
    directory: Path | None = Field(None, description="where the files are; else RAYCRT_DATA")
    download: bool = Field(False, description="fetch the files when they are missing")
    validation: float = Field(0.15, gt=0, lt=1, description="share of the training set held out")
    limit: int | None = Field(None, ge=1, description="use the first rows of each split only")


class CertifySpec(Record):
    """How radii are proved and at which radii the report states certified accuracy."""

    at: tuple[float, ...] = Field((0.5, 1.0, 1.58), min_length=1, description="stated l2 radii")
    steps: int = Field(60, ge=0, description="solver steps per class at most")
    batch_size: int = Field(256, ge=1, description="rows certified at a time")
    region: Literal["global", "local"] = Field(
        "global", description="curvature holds everywhere, or also on a ball around each image"
    )
    deployment: Literal["exact", "float32"] = Field(
        "exact", description="arithmetic of the network that the radii speak of"
    )

    @field_validator("at")
    @classmethod
    def _positive(cls, radii: tuple[float, ...]) -> tuple[float, ...]:
        if any(r <= 0 for r in radii) or list(radii) != sorted(set(radii)):
            raise ValueError("must be positive and strictly increasing")
        return radii


class Domain(Record):
    """One searched parameter: a range (`low`, `high`, log scale or not) or a list of `choices`."""

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    choices: tuple[str | int | float | bool | None, ...] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Domain:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("must have either choices or both low and high")
        if self.choices is None:
            assert self.low is not None and self.high is not None
            if self.low > self.high:
                raise ValueError("must have low <= high")
            if self.log and self.low <= 0:
                raise ValueError("must have low > 0 on a log scale")
        elif not self.choices:
            raise ValueError("must have at least one choice")
        return self

    @property
    def integer(self) -> bool:
        """Whether every value of the range is an integer."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class SearchSpec(Record):
    """Tune and Optuna: what is searched, for how long, and which certified accuracy decides."""

    space: dict[str, Domain] = Field(default_factory=dict, description="spec path -> domain")
    points: tuple[dict[str, str | int | float | bool | None], ...] = Field(
        (), description="known good values, tried right after the recipe's own"
    )
    algorithm: Literal["tpe", "gp", "cmaes", "nsga2", "random", "grid"] = "tpe"
    scheduler: Literal["asha", "median", "none"] = "asha"
    radius: float | tuple[float, ...] = Field(
        0.5, description="l2 radius of the objective; of several the mean counts"
    )
    trials: int = Field(12, ge=1)
    concurrent: int | None = Field(
        None,
        ge=1,
        description="most trials at a time, none: all that fit; 1 makes a search repeatable",
    )
    workers: int = Field(
        1, ge=1, description="training workers of a trial; with 1 it trains in its own process"
    )
    rungs: tuple[int, ...] = Field((), description="epochs at which trials are compared")
    reduction: int = Field(3, ge=2, description="of so many trials at a rung one goes on")
    rows: int = Field(500, ge=1, description="validation rows certified at the end of a trial")
    rung_rows: int | None = Field(
        None, ge=1, description="the first of these rows that rungs certify; none: all of them"
    )
    constraints: dict[Literal["clean", "parameters", "curvature"], float] = Field(
        default_factory=dict, description="least clean accuracy, most parameters, most curvature"
    )
    pareto: bool = Field(False, description="draw for clean accuracy too, not certified alone")
    finalists: int = Field(0, ge=0, description="best trials judged again on all validation rows")
    seeds: int = Field(3, ge=1, description="trainings of each finalist, with different seeds")
    failures: int = Field(10, ge=0, description="failed trials after which the search gives up")
    storage: str | None = Field(
        None, description="URL of Optuna's database; else a journal file in the output"
    )
    directory: str | None = Field(
        None, description="URI for Tune's logs, s3://... or file:///...; else OUT/search/tune"
    )
    mlflow: str | None = Field(
        None, description="URI of the MLflow tracking server that trials are logged to as well"
    )

    @field_validator("radius")
    @classmethod
    def _increasing(cls, radius: float | tuple[float, ...]) -> float | tuple[float, ...]:
        radii = radius if isinstance(radius, tuple) else (radius,)
        if not radii or radii[0] <= 0 or list(radii) != sorted(set(radii)):
            raise ValueError("must be a positive number or a strictly increasing list of them")
        return radius

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii of the objective, one or more."""
        return self.radius if isinstance(self.radius, tuple) else (self.radius,)

    @model_validator(mode="after")
    def _rungs_are_cheaper(self) -> SearchSpec:
        if self.rung_rows is not None and self.rung_rows > self.rows:
            raise ValueError("rung_rows must not exceed rows, which it takes the first of")
        return self

    @model_validator(mode="after")
    def _several_objectives(self) -> SearchSpec:
        if self.pareto and self.algorithm == "cmaes":
            raise ValueError("algorithm cmaes draws for one objective; pareto needs another")
        return self


class RunSpec(Record):
    """Seed and resources."""

    seed: int = Field(0, ge=0)
    workers: int = Field(2, ge=1, description="training workers; certification actors too")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)


class Spec(Record):
    """A whole run. Stored as `spec.yaml` beside every artefact."""

    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    data: DataSpec = DataSpec()
    certify: CertifySpec = CertifySpec()
    search: SearchSpec = SearchSpec()
    run: RunSpec = RunSpec()

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        leaves = set(_leaves(Spec))
        for path in self.search.space:
            if path not in leaves:
                raise ValueError(f"search.space.{path} is no key of a spec{_nearest(path, leaves)}")
        if self.model.channels:
            self._convolutional()
        elif self.train.linear_layers > self.model.depth - 2:
            raise ValueError("train.linear_layers must leave at least 2 of the model.depth layers")
        if list(self.search.rungs) != sorted(set(self.search.rungs)) or any(
            not 0 < rung < self.train.epochs for rung in self.search.rungs
        ):
            raise ValueError("search.rungs must increase strictly and lie in 1 .. train.epochs - 1")
        return self

    def _convolutional(self) -> None:
        """Refuse what has no meaning for, or no proof of, a model with convolutions."""
        if self.train.components is not None or self.train.linear_layers:
            raise ValueError(
                "train.components and train.linear_layers must be left out where model.channels "
                "has convolutions, which need images"
            )
        if self.train.optimizer == "muon" and self.model.depth < 2:
            raise ValueError(
                "train.optimizer muon must have a hidden dense layer to move: model.depth >= 2"
            )
        if self.certify.deployment != "exact":
            raise ValueError(
                "certify.deployment must be exact where model.channels has convolutions, which "
                "libraries may compute by transforms"
            )

    def override(self, values: dict[str, Any]) -> Spec:
        """A new spec with the dotted paths in `values` replaced, validated as a whole."""
        tree = self.model_dump(mode="python")
        for path, value in values.items():
            _assign(tree, path, value)
        return validate(tree)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def save(self, directory: Path, *, without: tuple[str, ...] = ()) -> None:
        """Write `spec.yaml` into `directory`; the sections `without` have nothing to say."""
        tree = self.model_dump(mode="json", exclude=set(without))
        write_atomically(directory / "spec.yaml", yaml.safe_dump(tree, sort_keys=False).encode())

    @staticmethod
    def load(path: Path) -> Spec:
        """Read and validate a YAML file; a directory means the `spec.yaml` in it."""
        file = path / "spec.yaml" if path.is_dir() else path
        if not file.is_file():
            raise InvalidInput(f"a spec file must exist, but there is none at {file}")
        try:
            tree = yaml.safe_load(file.read_text())
        except yaml.YAMLError as error:
            raise InvalidInput(f"{file} must be YAML: {' '.join(str(error).split())}") from None
        return validate(tree if tree is not None else {})


def validate(tree: Any) -> Spec:
    """The spec that `tree` states; `InvalidInput` with one line naming field, value and rule."""
    if not isinstance(tree, dict):
        raise InvalidInput(f"a spec must be a mapping of sections, but got {tree!r}")
    try:
        return Spec.model_validate(tree)
    except ValidationError as error:
        raise InvalidInput(_one_line(error)) from None


def parse_override(text: str) -> tuple[str, Any]:
    """`train.gamma=0.01` as a (path, value) pair; the value is read as YAML."""
    path, separator, value = text.partition("=")
    if not separator or not path:
        raise InvalidInput(f"an override must have the form section.key=value, but got {text!r}")
    try:
        return path.strip(), _number(yaml.safe_load(value))
    except yaml.YAMLError:
        raise InvalidInput(f"the value of {path!r} must be YAML, but got {value!r}") from None


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _assign(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for depth, section in enumerate(sections):
        child = tree.get(section)
        if not isinstance(child, dict):
            where = ".".join(sections[: depth + 1])
            raise InvalidInput(f"{where!r} is no section of a spec{_nearest(where, _leaves(Spec))}")
        tree = child
    tree[key] = value


def _leaves(record: type[BaseModel], prefix: str = "") -> list[str]:
    paths: list[str] = []
    for name, field in record.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            paths += _leaves(kind, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; the nearest known is {close[0]!r}" if close else ""


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{path}: unknown key{_nearest(path, [*_leaves(Spec), *Spec.model_fields])}"
    message = first["msg"].removeprefix("Value error, ")
    where = f"{path}: " if path else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    got = "" if first["type"] == "value_error" and not path else f", but got {first['input']!r}"
    return f"{where}{message[0].lower()}{message[1:]}{got}{more}"
