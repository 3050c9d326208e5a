"""Packages that only some commands need, in the extras `train` and `verify` of raycrt."""

from __future__ import annotations

# What is imported of `train`; the checker does without.
_TRAIN = {
    *("PIL", "cmaes", "filelock", "matplotlib", "optuna", "pandas", "ray", "scipy", "sklearn"),
    *("sqlalchemy", "tensorboard", "torch", "torchvision"),
}


def lacking(error: ModuleNotFoundError) -> str | None:
    """The sentence that names the extra without which `error` was raised; None for other modules.

    >>> lacking(ModuleNotFoundError(name="torch"))
    "this needs torch, which is not installed: pip install 'raycrt[train]'"
    """
    package = (error.name or "").partition(".")[0]
    extra = "verify" if package == "onnx" else "train" if package in _TRAIN else None
    if extra is None:
        return None
    return f"this needs {package}, which is not installed: pip install 'raycrt[{extra}]'"
