"""Packages that only some commands need, in the extras `train` and `verify` of raycrt."""

from __future__ import annotations

_VERIFY = {"PIL", "onnx"}
# What is imported of `train` besides; the checker does without.
_TRAIN = {
    *("altair", "cmaes", "filelock", "grpc", "jinja2", "markupsafe", "matplotlib", "optuna"),
    *("pandas", "ray", "scipy", "sklearn", "sqlalchemy", "tensorboard", "torch", "torchvision"),
    "vl_convert",
}


def lacking(error: ModuleNotFoundError) -> str | None:
    """The sentence that names the extra without which `error` was raised; None for other modules.

    >>> lacking(ModuleNotFoundError(name="torch"))
    "this needs torch, which is not installed: pip install 'raycrt[train]'"
    """
    package = (error.name or "").partition(".")[0]
    extra = "verify" if package in _VERIFY else "train" if package in _TRAIN else None
    if extra is None:
        return None
    return f"this needs {package}, which is not installed: pip install 'raycrt[{extra}]'"
