"""lightning.qubit's adjoint method at device level: no QNode around it."""

from collections.abc import Callable
from typing import Any

import numpy as np


def adjoint(
    operations: list[Any], measured: Any, n: int, dtype: Any = np.complex128
) -> Callable[[], tuple[float, np.ndarray]]:
    """A function without arguments that gives an expectation and its slopes along all angles of all operations."""
    import pennylane as qml

    tape = qml.tape.QuantumScript(operations, [measured])
    tape.trainable_params = list(range(sum(one.num_params for one in operations)))
    device = qml.device("lightning.qubit", wires=n, c_dtype=dtype)
    wanted = qml.devices.ExecutionConfig(gradient_method="adjoint", use_device_gradient=True)
    config = device.setup_execution_config(wanted)
    tapes, _ = device.preprocess_transforms(config)([tape])

    def run() -> tuple[float, np.ndarray]:
        values, gradients = device.execute_and_compute_derivatives(tapes, config)
        return float(np.asarray(values[0])), np.asarray(gradients[0])

    return run
