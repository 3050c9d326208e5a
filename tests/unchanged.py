"""What raycrt computes on a fixed set, hashed: a change of structure leaves each bit as it is.

    python -m tests.unchanged            compare with tests/unchanged.json
    python -m tests.unchanged --record   write it, for a change that alters numbers on purpose

Last bits depend on the processor and its libraries, so the hashes are stored under a fingerprint of
this machine's arithmetic; on another one there is nothing to compare with until it is recorded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from raycrt import Certificates, Certifier, Network, data
from raycrt.activations import ACTIVATIONS
from raycrt.distributed.session import session
from raycrt.networks import network
from raycrt.specs import Spec, validate
from raycrt.training import loop
from raycrt.training.options import effects
from raycrt.tuning.analysis import study
from raycrt.tuning.search import driver
from raycrt.tuning.trials import store

FILE = Path(__file__).with_suffix(".json")
_ROWS = 32
_OF_A_TRIAL = ("number", "params", "epochs", "certified", "clean", "mean_radius", "curvature")


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def fingerprint() -> str:
    """What this machine makes of products, decompositions, convolutions and functions.

    Functions of a few numbers may be another library's than those of many.
    """
    torch.manual_seed(0)
    found = []
    for dtype in (torch.float32, torch.float64):
        a = torch.randn(192, 192, dtype=dtype)
        found += [a @ a, a[:, :7] @ a[:7], a[:, :24] @ a[:24, :10], a.sum(0), a.norm(dim=1)]
        for z in (a, 9 * a, *a.flatten()[: 31 * 9].split(31)):
            functions = torch.exp, torch.log1p, torch.tanh, torch.sigmoid, torch.erf, torch.arctan
            found += [function(z.abs()) for function in functions]
            found += [F.softplus(z), F.softplus(z, threshold=40.0), torch.sigmoid(z)]
        found += [torch.linalg.eigvalsh(a @ a.T), torch.linalg.cholesky(a @ a.T + torch.eye(192))]
        found.append(F.conv2d(a.reshape(4, 1, 96, 96), a[:8, :9].reshape(8, 1, 3, 3), stride=2))
    return _hash(*found)


def _spec(**sections: dict) -> Spec:
    tree = {"model": {"depth": 2, "width": 24}, "data": {"name": "digits"}, **sections}
    return validate(tree)


def _drawn(gain: float = 1.5, **model: object) -> Network:
    spec = _spec(model={"depth": 2, "width": 24, **model})
    torch.manual_seed(3)
    made = network.build(spec.model, data.shape(spec.data), len(data.class_names(spec.data)))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= gain
    return made


def certificates_hash(found: Certificates) -> str:
    """Of radii, predictions, binding classes, witnesses and all else that a certificate states."""
    tensors = [getattr(found, f.name) for f in fields(found) if f.name != "witnesses"]
    tensors += [getattr(found.witnesses, f.name) for f in fields(found.witnesses)]
    return _hash(*tensors)


def _certified(made: Network, decided: float | None = None, **options: object) -> str:
    images = data.load(_spec().data).test.images[:_ROWS]
    certifier = Certifier(made, **{"steps": 20, **options})
    return certificates_hash(certifier(images) if decided is None else certifier(images, decided))


def _trained(**train: object) -> str:
    """Weights after two epochs, and what is certified of them."""
    spec = _spec(
        train={"epochs": 2, "batch_size": 128, "radius": 0.5, "gamma": 0.01},
        certify={"at": [0.1, 0.5], "steps": 10},
    )
    spec = effects.override(spec, {f"train.{key}": value for key, value in train.items()})
    made = loop.train(spec, data.load(spec.data).train)
    return _hash(*made.parameters()) + certificates_hash(
        Certifier.of(made, spec.certify)(data.load(spec.data).test.images[:_ROWS])
    )


CASES: dict[str, Callable[[], str]] = {
    **{
        f"two layers, {name}": lambda name=name: _certified(_drawn(activation=name))
        for name in ACTIVATIONS
        if name in ("softplus", "sigmoid", "tanh", "arctan", "gelu", "silu", "erf")
    },
    "three layers": lambda: _certified(_drawn(depth=3, activation="tanh")),
    "four layers": lambda: _certified(_drawn(depth=4)),
    "a convolution": lambda: _certified(_drawn(channels=(4,), depth=2)),
    "all pixels": lambda: _certified(_drawn(width=96)),
    "few directions": lambda: _certified(_drawn(width=6)),
    "closed form": lambda: _certified(_drawn(), steps=0),
    "local region": lambda: _certified(_drawn(depth=3), region="local", radii=(0.5, 1.0, 2.0)),
    "float32 deployment": lambda: _certified(_drawn(), deployment="float32"),
    "decided at a radius": lambda: _certified(_drawn(), decided=0.1),
    "float64 weights": lambda: _certified(_drawn().double()),
    **{
        f"trained by {objective}": lambda objective=objective: _trained(objective=objective)
        for objective in ("standard", "pgd", "ibp", "crt", "crt-all")
    },
    "trained by muon with an average": lambda: _trained(optimizer="muon", averaging=0.9),
    "trained on components": lambda: _trained(components=20, augmentation={"rotation": 5.0}),
}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def computed(case: str) -> str:
    """The hash of a case of `CASES`, on one thread."""
    with _one_thread():
        return CASES[case]()


def searched(home: Path) -> str:
    """The hash of what a search of four trials, one at a time, draws and measures."""
    spec = _spec(
        train={"epochs": 2, "batch_size": 128, "radius": 0.5, "gamma": 0.01},
        certify={"at": [0.1], "steps": 10},
        search={
            "radius": 0.1,
            "trials": 4,
            "concurrent": 1,
            "rungs": [1],
            "rows": 64,
            "finalists": 0,
            "space": {
                "model.depth": {"low": 2, "high": 3},
                "train.gamma": {"low": 0.0001, "high": 0.1, "log": True},
            },
        },
    )
    driver.run(spec, home)
    trials = study.trials(store.load_study(spec, home), spec)
    drawn = [{key: getattr(trial, key) for key in _OF_A_TRIAL} for trial in trials]
    return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:16]


def recorded() -> dict[str, str] | None:
    """The hashes of `CASES` and of the search ("search") on this machine; none where it is new."""
    return json.loads(FILE.read_text()).get(fingerprint())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write tests/unchanged.json")
    options = parser.parse_args()
    found = {case: computed(case) for case in CASES}
    with session(2), tempfile.TemporaryDirectory() as home:
        found["search"] = searched(Path(home))
    if options.record:
        every = json.loads(FILE.read_text()) if FILE.is_file() else {}
        FILE.write_text(json.dumps({**every, fingerprint(): found}, indent=1) + "\n")
        return
    known = recorded()
    if known is None:
        sys.exit("nothing is recorded of this machine's arithmetic")
    changed = [case for case in found if found[case] != known.get(case)]
    sys.exit(f"changed: {', '.join(changed)}" if changed else 0)


if __name__ == "__main__":
    main()
