"""Evaluation of an ONNX model by the reference evaluator of the onnx package."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raycrt.errors import InvalidInput
from raycrt.foreign.onnx_graph.file import batch_is_open, inputs

# Rows at a time: the evaluator stores every window of a convolution separately.
_ROWS = 16


class Reference:
    """Map from inputs (n, ...) to the model's tensor `logits` (n, classes), float64.

    Inputs are evaluated together if the file leaves the batch size open and the nodes accept more
    than one, else one by one. With `predicts`, the model's output predicts a class from the logits:
    raises `InvalidInput` where the logit of that class is not the largest, up to rounding.
    """

    def __init__(self, model: Any, logits: str, *, predicts: bool) -> None:
        from onnx.helper import tensor_dtype_to_np_dtype

        value = inputs(model.graph)[0]
        self.input, self.logits = value.name, logits
        self.output = model.graph.output[0].name
        self.type = tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        self.predicts = predicts
        self.together = batch_is_open(model.graph)
        self.evaluator = _evaluator(model)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.double().numpy().astype(self.type)
        if self.together:
            try:
                return self._evaluated(rows)
            except InvalidInput:
                raise
            except Exception:  # Any error of a node that accepts only one input.
                self.together = False
        return torch.cat([self._evaluated(rows[i : i + 1]) for i in range(len(rows))])

    def _evaluated(self, rows: np.ndarray) -> Tensor:
        found = [self._run(part) for part in np.split(rows, range(_ROWS, len(rows), _ROWS))]
        return torch.cat(found)

    def _run(self, rows: np.ndarray) -> Tensor:
        with np.errstate(all="ignore"):
            logits, output = self.evaluator.run([self.logits, self.output], {self.input: rows})
        values, decision = (
            np.asarray(result).astype(np.float64).reshape(len(rows), -1)
            for result in (logits, output)
        )
        if self.predicts:
            chosen = (
                decision.argmax(1) if decision.shape == values.shape else decision[:, 0].astype(int)
            )
            eps = float(np.finfo(np.float32 if self.type.itemsize > 2 else np.float16).eps)
            _require_largest(values, chosen, 16 * eps)
        return torch.from_numpy(values)


def _require_largest(values: np.ndarray, chosen: np.ndarray, tolerance: float) -> None:
    """Raise `InvalidInput` unless entries `chosen` are the largest of their rows, to rounding."""
    below = values.max(1) - values[np.arange(len(values)), chosen]
    allowed = tolerance * np.maximum(1, np.abs(values).max(1))
    worst = int(np.argmax(below - allowed))
    if below[worst] > allowed[worst]:
        raise InvalidInput(
            f"what follows the logits must keep their order, but the model predicts class "
            f"{chosen[worst]}, whose logit is {below[worst]:.3g} below the largest"
        )


def _evaluator(model: Any) -> Any:
    """The package's evaluator, with two operations that it does not compute as specified replaced.

    Its erf rounds to float32, and its batch normalisation before opset 14 mixes in the statistics
    of the batch though the node has one output.
    """
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun
    from scipy.special import erf

    class Erf(OpRun):
        op_domain = ""

        def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
            return (erf(x.astype(np.float64)).astype(x.dtype),)

    class BatchNormalization(OpRun):
        op_domain = ""

        def _run(self, x: np.ndarray, *numbers: np.ndarray, **stated: Any) -> tuple[np.ndarray]:
            channels = (-1, *[1] * (x.ndim - 2))
            scale, bias, mean, variance = (n.reshape(channels) for n in numbers)
            deviation = np.sqrt(variance + np.asarray(stated.get("epsilon", 1e-5), x.dtype))
            return (scale * (x - mean) / deviation + bias,)

    class Evaluator(ReferenceEvaluator):
        """An evaluator that is also used for the functions of a model."""

        def __init__(self, proto: Any, **options: Any) -> None:
            super().__init__(proto, **{**options, "new_ops": [Erf, BatchNormalization]})

    return Evaluator(model)
