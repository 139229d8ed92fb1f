"""The PennyLane device `jaxlab.qubit`: existing QNodes on this library's simulator.

With the JAX interfaces a QNode is traced through, without a callback, so that jit, nested vmap, grad and hessian work;
gradients are adjoint ones. With NumPy, autograd and torch, values and adjoint Jacobians are computed in double
precision: small circuits that are new gate by gate, those that come again by a compiled plan. Written against the
device interface of PennyLane 0.45.
"""

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from pennylane.devices import Device, ExecutionConfig
from pennylane.devices.default_qubit import (
    accepted_analytic_measurement,
    accepted_sample_measurement,
)
from pennylane.devices.modifiers import simulator_tracking, single_tape_support
from pennylane.devices.preprocess import (
    decompose,
    device_resolve_dynamic_wires,
    no_sampling,
    validate_adjoint_trainable_params,
    validate_device_wires,
    validate_measurements,
)
from pennylane.devices.qubit.simulate import measure_final_state
from pennylane.exceptions import DeviceError
from pennylane.measurements import ExpectationMP, VarianceMP
from pennylane.transforms import broadcast_expand, defer_measurements

from jaxlab.quantum import pauli_sums
from jaxlab.quantum.pennylane_results import as_numpy, is_jax, nested
from jaxlab.quantum.pennylane_tapes import final_state, interpreted_state, is_supported

_INTERPRETED_WIRES = 10
_INTERPRETED_RUNS = 2
"""How often a small circuit runs gate by gate before it is compiled."""
_KEPT_PROGRAMS = 256
_NUMERIC = (jax.Array, np.ndarray, np.generic, float, int, complex)
_OPTIONS = ("block",)


def _differentiable(operation: Any) -> bool:
    return is_supported(operation) and (
        not any(qml.math.requires_grad(x) for x in operation.data) or operation.name != "Projector"
    )


@simulator_tracking
@single_tape_support
class Qubit(Device):
    """State-vector device.

    Args:
      wires: number of wires or their labels; None takes those of each circuit.
      shots: default number of shots.
      seed: of the samples: an integer, a JAX PRNG key, "global" (from NumPy's global generator) or None.
      block: most wires of a dense block, see `jaxlab.quantum.simulate`.
    """

    def __init__(
        self, wires: Any = None, shots: Any = None, seed: Any = "global", block: int | None = None
    ) -> None:
        super().__init__(wires=wires, shots=shots)
        if isinstance(seed, str) and seed == "global":
            # "global" means NumPy's global generator, as on PennyLane's devices: np.random.seed then repeats samples.
            seed = np.random.randint(0, 10_000_000)  # noqa: NPY002
        self._key = seed if isinstance(seed, jax.Array) else None
        self._rng = np.random.default_rng(None if self._key is not None else seed)
        self._block = block
        self._seen: Counter[Any] = Counter()
        self._programs: OrderedDict[Any, Callable[..., Any]] = OrderedDict()

    @property
    def name(self) -> str:
        """`jaxlab.qubit`."""
        return "jaxlab.qubit"

    def setup_execution_config(
        self, config: ExecutionConfig | None = None, circuit: Any = None
    ) -> ExecutionConfig:
        """Fills in what is open: "backprop" with JAX, "adjoint" with other interfaces.

        Raises:
          DeviceError: an unknown device option, or a way of mid-circuit measurement that is not there.
        """
        config = config or ExecutionConfig()
        for option in config.device_options:
            if option not in _OPTIONS:
                raise DeviceError(f"device option {option} not present on {self}; there are {_OPTIONS}")
        mcm = config.mcm_config
        if mcm.mcm_method not in (None, "deferred", "device"):
            raise DeviceError(f"mcm_method {mcm.mcm_method} not supported on {self.name}; use 'deferred'")
        method = config.gradient_method
        if method == "best":
            method = "backprop" if is_jax(config) else "adjoint"
        ours = method in ("adjoint", "backprop")
        return dataclasses.replace(
            config,
            gradient_method=method,
            use_device_gradient=ours if config.use_device_gradient is None else config.use_device_gradient,
            use_device_jacobian_product=False,
            grad_on_execution=method == "adjoint"
            if config.grad_on_execution is None
            else config.grad_on_execution,
            convert_to_numpy=not (is_jax(config) and method != "adjoint"),
            device_options={
                option: config.device_options.get(option, getattr(self, f"_{option}")) for option in _OPTIONS
            },
            mcm_config=dataclasses.replace(mcm, mcm_method="deferred"),
        )

    def preprocess_transforms(self, execution_config: ExecutionConfig | None = None) -> Any:
        """The transforms that a circuit goes through before it is run."""
        config = execution_config or ExecutionConfig()
        pipeline = qml.CompilePipeline()
        pipeline.add_transform(defer_measurements, allow_postselect=True)
        pipeline.add_transform(
            decompose, stopping_condition=is_supported, device_wires=self.wires, name=self.name
        )
        pipeline.add_transform(device_resolve_dynamic_wires, wires=self.wires, allow_resets=False)
        pipeline.add_transform(validate_device_wires, self.wires, name=self.name)
        pipeline.add_transform(
            validate_measurements,
            analytic_measurements=accepted_analytic_measurement,
            sample_measurements=accepted_sample_measurement,
            name=self.name,
        )
        if config.gradient_method == "backprop":
            pipeline.add_transform(no_sampling, name=f"backprop + {self.name}")
        if config.gradient_method == "adjoint":
            name = f"adjoint + {self.name}"
            pipeline.add_transform(no_sampling, name=name)
            pipeline.add_transform(
                decompose,
                stopping_condition=_differentiable,
                device_wires=self.wires,
                name=name,
                skip_initial_state_prep=False,
            )
            pipeline.add_transform(validate_measurements, name=name)
            pipeline.add_transform(broadcast_expand)
            pipeline.add_transform(validate_adjoint_trainable_params)
        return pipeline

    def supports_derivatives(
        self, execution_config: ExecutionConfig | None = None, circuit: Any = None
    ) -> bool:
        """Adjoint always without shots, backprop with JAX."""
        if execution_config is None:
            return True
        if circuit is not None and circuit.shots:
            return False
        method = execution_config.gradient_method
        if method == "backprop":
            return is_jax(execution_config)
        return method in ("adjoint", "best")

    def execute(
        self, circuits: Sequence[Any], execution_config: ExecutionConfig | None = None
    ) -> tuple[Any, ...]:
        """Results of all circuits."""
        config = execution_config or ExecutionConfig()
        if not config.convert_to_numpy and is_jax(config):
            return tuple(self._traced(circuit) for circuit in circuits)
        with jax.enable_x64(True):
            return tuple(self._concrete(circuit) for circuit in circuits)

    def _traced(self, circuit: Any) -> Any:
        """With JAX's arrays or tracers; from the second circuit of a structure on as one compiled function.

        Within an outer jit that is inlined; without one it spares a dispatch of every operation.
        """
        tape = circuit.map_to_standard_wires()
        key = ("traced", _structure(tape), tuple(map(_measurement, tape.measurements)), bool(tape.shots))
        self._seen[key] += 1
        data = tape.get_parameters(trainable_only=False, operations_only=bool(tape.shots))
        if self._seen[key] == 1 or not all(isinstance(x, _NUMERIC) for x in data):
            return self._measured(tape, final_state(tape, block=self._block))
        if tape.shots:
            return self._measured(tape, self._compiled(key, lambda: _state_function(tape, self._block))(data))
        return self._compiled(key, lambda: _results_function(tape, self._block))(data)

    def _concrete(self, circuit: Any) -> Any:
        (numbers,), _ = qml.transforms.convert_to_numpy_parameters(circuit)
        tape = numbers.map_to_standard_wires()
        key = _structure(tape)
        self._seen[key] += 1
        if tape.num_wires <= _INTERPRETED_WIRES and self._seen[key] <= _INTERPRETED_RUNS:
            state = interpreted_state(tape)
        else:
            data = tape.get_parameters(trainable_only=False, operations_only=True)
            run = self._compiled(("state", key), lambda: _state_function(tape, self._block))
            state = np.asarray(run(data))
        return as_numpy(self._measured(tape, state))

    def _measured(self, tape: Any, state: Any) -> Any:
        batched = state.ndim == 2
        tensor = state.reshape(*state.shape[: int(batched)], *(2,) * max(1, tape.num_wires))
        if not tape.shots:
            return _analytic(tape, tensor, batched)
        key = None
        if self._key is not None:
            self._key, key = jax.random.split(self._key)
        return measure_final_state(tape, tensor, batched, rng=self._rng, prng_key=key)

    def _compiled(self, key: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """A function that is compiled once for all circuits of one structure."""
        if key not in self._programs:
            self._programs[key] = jax.jit(make())
            if len(self._programs) > _KEPT_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]

    def execute_and_compute_derivatives(
        self, circuits: Sequence[Any], execution_config: ExecutionConfig | None = None
    ) -> tuple[Any, Any]:
        """Results and adjoint Jacobians of all circuits."""
        with jax.enable_x64(True):
            pairs = [self._jacobian(circuit) for circuit in circuits]
        return tuple(value for value, _ in pairs), tuple(jacobian for _, jacobian in pairs)

    def compute_derivatives(
        self, circuits: Sequence[Any], execution_config: ExecutionConfig | None = None
    ) -> Any:
        """Adjoint Jacobians of all circuits."""
        return self.execute_and_compute_derivatives(circuits, execution_config)[1]

    def _jacobian(self, circuit: Any) -> tuple[Any, Any]:
        (numbers,), _ = qml.transforms.convert_to_numpy_parameters(circuit)
        trainable = list(circuit.trainable_params)
        tape = numbers.map_to_standard_wires()
        data = tape.get_parameters(trainable_only=False, operations_only=True)
        # Those behind are of observables, which PennyLane has warned about: their derivative is not there.
        count, trainable = len(trainable), [place for place in trainable if place < len(data)]
        if not trainable:
            value = as_numpy(self._measured(tape, interpreted_state(tape)))
            zero = jax.tree.map(np.zeros_like, [value] if len(tape.measurements) == 1 else list(value))
            return value, nested([[one] * count for one in zero], count)
        own = [np.asarray(data[i], np.result_type(data[i], float)) for i in trainable]
        key = ("jacobian", _structure(tape), tuple(trainable), tuple(mp.hash for mp in tape.measurements))
        run = self._compiled(key, lambda: _jacobian_function(tape, trainable, self._block))
        value, jacobian = run(own, data)
        rows = [jacobian] if len(tape.measurements) == 1 else list(jacobian)
        padded = [[*row, *[np.zeros_like(row[0])] * (count - len(row))] for row in as_numpy(rows)]
        return as_numpy(value), nested(padded, count)


def _analytic(tape: Any, tensor: Any, batched: bool) -> Any:
    """All measurements of a state; those of Pauli sums by our own kernel, which needs no matrix."""
    found = []
    for process in tape.measurements:
        operator = _pauli_sum(process, max(1, tape.num_wires)) if isinstance(tensor, jax.Array) else None
        if operator is None:
            found.append(measure_final_state(tape.copy(measurements=[process]), tensor, batched))
        else:
            psi = tensor.reshape(*tensor.shape[: int(batched)], -1)
            measure = pauli_sums.expval if isinstance(process, ExpectationMP) else pauli_sums.variance
            found.append(measure(psi, operator))
    return found[0] if len(found) == 1 else tuple(found)


def _pauli_sum(process: Any, n: int) -> pauli_sums.PauliSum | None:
    """What a mean or a variance is taken of, if that is a sum of Pauli words with real coefficients."""
    if not isinstance(process, ExpectationMP | VarianceMP) or getattr(process.obs, "pauli_rep", None) is None:
        return None
    operator = pauli_sums.from_pennylane(process.obs, n=n)
    if not jnp.iscomplexobj(operator.c):
        return operator
    if isinstance(operator.c, jax.core.Tracer) or np.any(np.imag(operator.c)):
        return None
    return dataclasses.replace(operator, c=np.real(operator.c))


def _measurement(process: Any) -> Any:
    """What two measurements share that differ in numbers alone."""
    return (type(process).__name__, process.hash if process.obs is None else _signature(process.obs))


def _structure(tape: Any) -> Any:
    """What two circuits share that differ in numbers alone."""
    return (tape.num_wires, tuple(map(_signature, tape.operations)))


def _signature(operation: Any) -> Any:
    fixed = tuple(sorted((name, _plain(value)) for name, value in operation.hyperparameters.items()))
    shapes = tuple((np.shape(x), np.result_type(getattr(x, "dtype", x)).kind) for x in operation.data)
    return (operation.name, tuple(operation.wires), fixed, shapes)


def _plain(value: Any) -> str:
    """A hyperparameter without the numbers of operators within it."""
    if isinstance(value, qml.operation.Operator):
        return repr(_signature(value))
    return repr([_plain(one) for one in value]) if isinstance(value, list | tuple) else repr(value)


def _state_function(tape: Any, block: int | None) -> Callable[[Sequence[Any]], jax.Array]:
    def run(data: Sequence[Any]) -> jax.Array:
        return final_state(tape.bind_new_parameters(data, list(range(len(data)))), block=block)

    return run


def _results_function(tape: Any, block: int | None) -> Callable[[Sequence[Any]], Any]:
    def run(data: Sequence[Any]) -> Any:
        bound = tape.bind_new_parameters(data, list(range(len(data))))
        state = final_state(bound, block=block)
        batched = state.ndim == 2
        shape = (*state.shape[: int(batched)], *(2,) * max(1, tape.num_wires))
        return _analytic(bound, state.reshape(shape), batched)

    return run


def _jacobian_function(tape: Any, trainable: list[int], block: int | None) -> Callable[..., tuple[Any, Any]]:
    def values(own: Sequence[Any], data: Sequence[Any]) -> Any:
        merged = list(data)
        for place, x in zip(trainable, own, strict=True):
            merged[place] = x
        bound = tape.bind_new_parameters(merged, list(range(len(merged))))
        state = final_state(bound, block=block)
        return _analytic(bound, state.reshape((2,) * max(1, tape.num_wires)), False)

    def run(own: Sequence[Any], data: Sequence[Any]) -> tuple[Any, Any]:
        value = values(own, data)
        complex_valued = any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(value))
        if not complex_valued:
            return value, jax.jacrev(values)(own, data)
        real, imaginary = (
            jax.jacrev(lambda own, part=part: jax.tree.map(part, values(own, data)))(own)
            for part in (jnp.real, jnp.imag)
        )
        return value, jax.tree.map(lambda a, b: a + 1j * b, real, imaginary)

    return run
