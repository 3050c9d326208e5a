"""The sections of a spec: model, training, certification, run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from raycrt.activations import ACTIVATIONS, FAMILIES
from raycrt.errors import InvalidInput
from raycrt.specs.affine import SIDE, ConvolutionLayer, DenseLayer, Reshaping, known_activation
from raycrt.specs.layers import LayerSpec, acts, convolves, curves, with_inner
from raycrt.specs.record import NEURONS, PROCESSES, ROWS, SEED, TURNS, Options, Real, Record, Uri

# The smallest share of a CPU or GPU that Ray supports.
_SHARE = 1e-4
# Resources that every node of Ray has by itself.
_OF_RAY = ("cpu", "gpu", "memory", "object_store_memory")


class ModelSpec(Record):
    """The layers of a network: a list, or in short a convolution for each of `channels`, if there
    are any, then `depth` dense layers, of which the last one makes the logits.

    The convolutions of the short form pad with `padding` zeros on each side: an odd kernel turns n
    pixels into ceil(n / stride).
    """

    factory: str | None = Field(
        None, description="module:function whose torch.nn.Module has the layers, in their place"
    )
    layers: tuple[LayerSpec, ...] = Field(
        (), description="every layer but the last, a dense one that makes the logits"
    )
    head: bool = Field(
        True, description="whether that dense layer follows; else the last of layers makes logits"
    )
    logits: Literal[1] | None = Field(
        None, description="1: of two classes the second is z > 0; none: a logit for each class"
    )
    channels: tuple[Annotated[int, Field(ge=1, le=NEURONS, strict=True)], ...] = Field(
        (), description="output channels of the convolutions in front; none: a dense network"
    )
    kernel: int = Field(
        3, ge=1, le=SIDE, description="height and width of the convolutions' kernels"
    )
    stride: int = Field(2, ge=1, le=SIDE, description="stride of the convolutions")
    depth: int = Field(2, ge=1, le=16, description="dense layers, the last one included")
    width: int = Field(1024, ge=1, le=NEURONS, description="neurons in each hidden dense layer")
    normalize: bool = Field(
        False, description="whether (x - mean) / std comes first; data.normalize sets it"
    )
    activation: str = Field(
        "softplus",
        examples=list(ACTIVATIONS),
        description=f"{', '.join(ACTIVATIONS)}, or one added to raycrt.activations.ACTIVATIONS",
    )
    beta: float = Field(1.0, gt=0, description="sharpness of softplus; no other activation has it")

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str) -> str:
        known_activation(name)
        return name

    @model_validator(mode="after")
    def _beta_has_effect(self) -> ModelSpec:
        if self.beta != 1.0 and self.activation not in FAMILIES:
            raise ValueError(f"beta must be left at 1 unless activation is {' or '.join(FAMILIES)}")
        return self

    @model_validator(mode="after")
    def _betas_have_effect(self) -> ModelSpec:
        for layer in (each for listed in self.layers for each in with_inner(listed)):
            if isinstance(layer, Reshaping) or layer.beta is None:
                continue
            if (layer.activation or self.activation) not in FAMILIES:
                raise ValueError(
                    f"beta of a layer must be left out unless it has {' or '.join(FAMILIES)}"
                )
        return self

    @model_validator(mode="after")
    def _layers_have_effect(self) -> ModelSpec:
        if not self.channels and self.depth < 2:
            raise ValueError("depth must be at least 2 unless channels has convolutions")
        if not self.channels and (self.kernel, self.stride) != (3, 2):
            raise ValueError("kernel and stride must be left at 3 and 2 unless channels is given")
        if self.depth < 2 and self.width != 1024:
            raise ValueError(
                "width must be left at 1024 where depth is 1 and no dense layer is hidden"
            )
        return self

    @model_validator(mode="after")
    def _one_form(self) -> ModelSpec:
        fields = type(self).model_fields
        changed = [key for key in fields if getattr(self, key) != fields[key].default]
        if self.factory is not None and set(changed) - {"factory", "normalize"}:
            others = ", ".join(key for key in changed if key not in ("factory", "normalize"))
            raise ValueError(f"{others} must be left out where factory is given")
        short = ("channels", "kernel", "stride", "depth", "width")
        stated = [key for key in short if key in changed]
        if self.logits is not None and not self.head:
            raise ValueError("logits must be left out where head is false")
        if self.layers and stated:
            raise ValueError(f"{', '.join(stated)} must be left out where layers is given")
        if self.layers and not any(curves(layer) for layer in self.layers):
            raise ValueError("layers must have one with an activation")
        maps = [layer for layer in self.layers if not isinstance(layer, Reshaping)]
        if not self.head and (not maps or acts(maps[-1])):
            raise ValueError("head must be left at true unless layers ends in a linear layer")
        return self

    @property
    def padding(self) -> int:
        """Zeros on each side of the images that a convolution of the short form gets."""
        return (self.kernel - 1) // 2

    @property
    def hidden_layers(self) -> tuple[LayerSpec, ...]:
        """Every layer but the last, a dense one that makes the logits if there is a `head`."""
        if self.factory is not None:
            raise InvalidInput(
                f"model.factory={self.factory} must first be read, by raycrt.foreign.factory"
            )
        if self.layers:
            return self.layers
        convolutions = (
            ConvolutionLayer(
                kind="convolution",
                channels=channels,
                kernel=self.kernel,
                stride=self.stride,
                padding=self.padding,
            )
            for channels in self.channels
        )
        dense = DenseLayer(kind="dense", width=self.width)
        return (*convolutions, *(dense for _ in range(self.depth - 1)))

    @property
    def convolves(self) -> bool:
        """Whether a layer must be given images."""
        return any(convolves(layer) for layer in self.hidden_layers)


class AugmentationSpec(Record):
    """Random affine maps of the training images; the defaults change nothing."""

    rotation: float = Field(0.0, ge=0, le=180, description="largest angle, in degrees")
    shift: float = Field(0.0, ge=0, description="largest shift, in pixels")
    scaling: float = Field(0.0, ge=0, lt=1, description="largest change of height and width")
    mirror: bool = Field(False, description="swap left and right in half of the images")
    until: float = Field(1.0, ge=0, le=1, description="share of training with augmentation")

    @property
    def moves(self) -> bool:
        """Whether any image is changed."""
        return bool(self.rotation or self.shift or self.scaling or self.mirror)


class TrainSpec(Options):
    """Options of training. `radius` is the l2 radius trained for, in units of the input.

    Every objective and optimizer states which of these keys it uses; `training.options.effects`
    refuses the others where they are set. A spec can be read where its objective is not available.
    """

    section: ClassVar[str] = "train"

    objective: str = Field(
        "crt-all",
        examples=["crt", "crt-all", "ibp", "pgd", "standard"],
        description="crt-all, crt, pgd, ibp, standard, or one added to training.objectives",
    )
    radius: float = Field(1.58, ge=0, description="l2 radius trained for")
    gamma: float = Field(0.0, ge=0, description="weight of the curvature regulariser K(y, t)")
    targets: int = Field(3, ge=1, le=TURNS, description="classes attacked per image by crt-all")
    attack_steps: int = Field(4, ge=1, le=TURNS, description="fixed-point steps of the dual attack")
    epochs: int = Field(24, ge=1, le=TURNS, description="passes over the training rows")
    batch_size: int = Field(
        512, ge=1, le=ROWS, description="rows in a step, over all workers together"
    )
    optimizer: str = Field(
        "adam",
        examples=["adam", "muon"],
        description="adam, muon, or one added to training.optimizers.OPTIMIZERS",
    )
    learning_rate: float = Field(3e-3, gt=0, description="largest rate of Adam")
    muon_rate: float = Field(0.1, gt=0, description="largest rate of Muon, for the matrices")
    warm_up: float = Field(0.0, ge=0, lt=1, description="share of training in which rates grow")
    ramp: float = Field(0.25, ge=0, le=1, description="share of training in which radius grows")
    averaging: float | None = Field(
        None, gt=0, lt=1, description="decay of the weight average; none keeps the last weights"
    )
    precision: Literal["float32", "float64", "tf32", "bfloat16"] = Field(
        "float32",
        description="of the step's products where the device has them, else float32; tf32 and "
        "bfloat16 keep float32 weights",
    )
    components: int | None = Field(
        None,
        ge=1,
        le=NEURONS,
        description="principal directions of the images trained on; none: every pixel",
    )
    mirror_invariant: bool = Field(
        False,
        description="tie weights so that an image and its mirror image have the same logits; "
        "dense layers only",
    )
    shift_averaged: int = Field(
        0,
        ge=0,
        le=SIDE,
        description="pixels: the network is the mean of a trained one, with a quarter of its "
        "neurons, over four diagonal shifts by so many pixels; dense layers only",
    )
    linear_layers: int = Field(
        0,
        ge=0,
        le=16,
        description="near-linear isometries put in front of the network after training",
    )
    linear_scale: float = Field(0.01, gt=0, description="size of the signal in these layers")
    augmentation: AugmentationSpec = Field(
        AugmentationSpec(), description="random affine maps of the training images"
    )


class CertifySpec(Record):
    """Options of certification, and the radii at which certified accuracy is stated."""

    at: tuple[Real, ...] = Field((0.5, 1.0, 1.58), min_length=1, description="stated l2 radii")
    steps: int = Field(60, ge=0, le=TURNS, description="solver steps per class at most")
    batch_size: int = Field(256, ge=1, le=ROWS, description="rows certified at a time")
    region: Literal["global", "local"] = Field(
        "global", description="local: proofs on a ball around each image too, which take longer"
    )
    deployment: Literal["exact", "float32"] = Field(
        "exact", description="arithmetic of the network for which the radii hold"
    )

    @field_validator("at")
    @classmethod
    def _positive(cls, radii: tuple[float, ...]) -> tuple[float, ...]:
        if any(r <= 0 for r in radii) or list(radii) != sorted(set(radii)):
            raise ValueError("must be positive and strictly increasing")
        return radii


_Workers = Annotated[int, Field(ge=1, le=PROCESSES, strict=True)]


class WorkerRange(Record):
    """As many workers as there is work and room for, at least `low` and at most `high`."""

    low: _Workers = Field(description="workers at least")
    high: _Workers = Field(description="workers at most")

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.low > self.high:
            raise ValueError("must have low <= high")
        return self

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


class RunSpec(Record):
    """Seed and resources."""

    seed: int = Field(
        0, ge=0, le=SEED, description="seed of initial weights, batches, augmentation and search"
    )
    workers: _Workers | WorkerRange = Field(
        2, description="training workers and certification actors, or {low: .., high: ..} of them"
    )
    cpus_per_worker: float = Field(
        1, ge=_SHARE, le=PROCESSES, description="CPUs that Ray reserves for each worker"
    )
    gpus_per_worker: float = Field(
        0, ge=0, le=PROCESSES, description="GPUs of each worker, or the share of one; 0: none"
    )
    resources: dict[str, Annotated[Real, Field(ge=_SHARE, le=PROCESSES)]] = Field(
        default_factory=dict,
        description="name -> amount that each worker takes of what nodes state by --resources",
    )
    stream: bool = Field(
        False, description="training reads its rows from files, for data larger than memory"
    )
    mlflow: Uri | None = Field(
        None, description="URI of the MLflow server to which trainings and trials are logged too"
    )
    wandb: str | None = Field(
        None, description="Weights & Biases project to which trainings and trials are logged too"
    )

    @property
    def least(self) -> int:
        """The least number of workers."""
        return self.workers.low if isinstance(self.workers, WorkerRange) else self.workers

    @property
    def most(self) -> int:
        """The largest number of workers."""
        return self.workers.high if isinstance(self.workers, WorkerRange) else self.workers

    @field_validator("resources")
    @classmethod
    def _of_the_nodes_own(cls, resources: dict[str, float]) -> dict[str, float]:
        for name in resources:
            if name.lower() in _OF_RAY:
                raise ValueError(f"must name what nodes state by --resources, unlike {name}")
        return resources

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_or_a_share(cls, gpus: float) -> float:
        if 0 < gpus < _SHARE or (gpus > 1 and gpus != int(gpus)):
            raise ValueError(f"must be whole, or a share of one GPU of at least {_SHARE}")
        return gpus
