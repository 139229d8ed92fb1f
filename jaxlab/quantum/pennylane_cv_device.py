"""The PennyLane device `jaxlab.gaussian`: existing QNodes of continuous variables on this library's Gaussian states.

With the JAX interfaces a QNode is traced through, without a callback, so that jit, vmap, grad and hessian work. With
NumPy, autograd and torch, values and exact Jacobians are computed in double precision, compiled once for all circuits
of one structure. Operations are known by their names alone, so that this module loads under versions of PennyLane
without continuous variables. Written against the device interface of PennyLane 0.45; hbar = 2.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
from jaxtyping import Array, Float
from pennylane.devices import Device, ExecutionConfig
from pennylane.devices.modifiers import simulator_tracking, single_tape_support
from pennylane.devices.preprocess import decompose, no_sampling, validate_device_wires, validate_measurements
from pennylane.exceptions import DeviceError
from pennylane.measurements import ExpectationMP, SampleMP, VarianceMP

from jaxlab.quantum import gaussian
from jaxlab.quantum import gaussian_measurements as measured
from jaxlab.quantum.cv_circuits import KINDS, cv_circuit, run_cv
from jaxlab.quantum.gaussian import Gaussian
from jaxlab.quantum.pennylane_results import as_numpy, is_jax, nested

_PREPARATIONS: dict[str, Callable[..., Gaussian]] = {
    "CoherentState": gaussian.coherent,
    "SqueezedState": gaussian.squeezed,
    "DisplacedSqueezedState": gaussian.displaced_squeezed,
    "ThermalState": gaussian.thermal,
}
_WIDE: dict[str, Callable[..., Gaussian]] = {
    "GaussianState": lambda state, cov, mean, wires: gaussian.prepare(state, mean, cov, wires),
    "InterferometerUnitary": gaussian.interferometer,
}
_GATES = frozenset(kind for kind, known in KINDS.items() if known.is_gaussian)
_NOT_GAUSSIAN = frozenset(KINDS) - _GATES | {"FockState", "FockStateVector", "FockDensityMatrix", "CatState"}
_QUADRATURES = ("QuadX", "QuadP", "QuadOperator")
_OBSERVABLES = (*_QUADRATURES, "NumberOperator", "PolyXP", "FockStateProjector", "Identity")


class Step(NamedTuple):
    """An operation; its parameters stand at `first` and behind."""

    name: str
    wires: tuple[int, ...]
    first: int
    size: int


class Reading(NamedTuple):
    """A measurement of an observable: "mean", "variance" or "sample"."""

    kind: str
    name: str
    wires: tuple[int, ...]
    first: int
    photons: tuple[int, ...]


class Plan(NamedTuple):
    """A circuit without its parameters: static and hashable."""

    modes: int
    steps: tuple[Step, ...]
    readings: tuple[Reading, ...]


@simulator_tracking
@single_tape_support
class GaussianModes(Device):
    """Device of Gaussian states.

    Args:
      wires: number of wires or their labels; None takes those of each circuit.
      shots: default number of shots.
      seed: of the samples: an integer, a JAX PRNG key, "global" (from NumPy's global generator) or None.

    With shots, quadratures are measured by homodyne detection and projectors by counts; means of photon numbers and of
    polynomials are drawn by the central limit theorem, as `default.gaussian` draws them, and their variances are exact.
    """

    def __init__(self, wires: Any = None, shots: Any = None, seed: Any = "global") -> None:
        super().__init__(wires=wires, shots=shots)
        if isinstance(seed, jax.Array):
            self._key = seed
            return
        if isinstance(seed, str) and seed == "global":
            # "global" means NumPy's global generator, as on PennyLane's devices: np.random.seed then repeats samples.
            seed = np.random.randint(0, 10_000_000)  # noqa: NPY002
        self._key = jax.random.key(np.random.default_rng(seed).integers(1 << 31))

    @property
    def name(self) -> str:
        """`jaxlab.gaussian`."""
        return "jaxlab.gaussian"

    @property
    def observables(self) -> set[str]:
        """Names of the observables: PennyLane's shift rules of continuous variables ask for them."""
        return set(_OBSERVABLES)

    def setup_execution_config(
        self, config: ExecutionConfig | None = None, circuit: Any = None
    ) -> ExecutionConfig:
        """Fills in what is open: "backprop" with JAX, "device" with other interfaces.

        Raises:
          DeviceError: a device option, of which there are none.
        """
        config = config or ExecutionConfig()
        for option in config.device_options:
            raise DeviceError(f"device option {option} not present on {self}; there are none")
        method = config.gradient_method
        if method == "best":
            method = "backprop" if is_jax(config) else "device"
        ours = method in ("device", "backprop")
        sampled = circuit is not None and bool(circuit.shots)
        return dataclasses.replace(
            config,
            gradient_method=method,
            use_device_gradient=ours if config.use_device_gradient is None else config.use_device_gradient,
            use_device_jacobian_product=False,
            grad_on_execution=method == "device"
            if config.grad_on_execution is None
            else config.grad_on_execution,
            # Samples must differ from call to call of a compiled function, and PennyLane's own rules compute in NumPy.
            convert_to_numpy=sampled or method not in ("backprop", None) or not is_jax(config),
        )

    def preprocess_transforms(self, execution_config: ExecutionConfig | None = None) -> Any:
        """The transforms that a circuit goes through before it is run."""
        config = execution_config or ExecutionConfig()
        pipeline = qml.CompilePipeline()
        pipeline.add_transform(
            decompose,
            stopping_condition=_is_gaussian,
            skip_initial_state_prep=False,
            device_wires=self.wires,
            name=self.name,
        )
        pipeline.add_transform(validate_device_wires, self.wires, name=self.name)
        pipeline.add_transform(
            validate_measurements,
            analytic_measurements=_is_analytic,
            sample_measurements=_is_sampled,
            name=self.name,
        )
        if config.gradient_method in ("backprop", "device"):
            pipeline.add_transform(no_sampling, name=f"{config.gradient_method} + {self.name}")
        return pipeline

    def supports_derivatives(
        self, execution_config: ExecutionConfig | None = None, circuit: Any = None
    ) -> bool:
        """Without shots always, as "device" or, with JAX, as "backprop"."""
        if circuit is not None and circuit.shots:
            return False
        if execution_config is None:
            return True
        method = execution_config.gradient_method
        return method in ("device", "best") or (method == "backprop" and is_jax(execution_config))

    def execute(
        self, circuits: Sequence[Any], execution_config: ExecutionConfig | None = None
    ) -> tuple[Any, ...]:
        """Results of all circuits."""
        config = execution_config or ExecutionConfig()
        if not config.convert_to_numpy and is_jax(config):
            return tuple(_single(_values(*_planned(circuit))) for circuit in circuits)
        with jax.enable_x64(True):
            return tuple(self._concrete(circuit) for circuit in circuits)

    def _concrete(self, circuit: Any) -> Any:
        plan, data = _planned(_with_numbers(circuit))
        if not circuit.shots:
            return as_numpy(_single(_values(plan, data)))
        found = []
        for shots in circuit.shots:
            self._key, key = jax.random.split(self._key)
            found.append(as_numpy(_single(_sampled(plan, data, key, shots))))
        return tuple(found) if circuit.shots.has_partitioned_shots else found[0]

    def execute_and_compute_derivatives(
        self, circuits: Sequence[Any], execution_config: ExecutionConfig | None = None
    ) -> tuple[Any, Any]:
        """Results and exact Jacobians of all circuits.

        Raises:
          DeviceError: the unitary of an interferometer is to be differentiated in.
        """
        with jax.enable_x64(True):
            pairs = [_with_jacobian(circuit) for circuit in circuits]
        return tuple(value for value, _ in pairs), tuple(jacobian for _, jacobian in pairs)

    def compute_derivatives(
        self, circuits: Sequence[Any], execution_config: ExecutionConfig | None = None
    ) -> Any:
        """Exact Jacobians of all circuits; see `execute_and_compute_derivatives`."""
        return self.execute_and_compute_derivatives(circuits, execution_config)[1]


def _is_gaussian(operation: Any) -> bool:
    """Whether an operation runs as it is.

    Raises:
      DeviceError: it leads out of Gaussian states.
    """
    if operation.name in _NOT_GAUSSIAN:
        raise DeviceError(
            f"{operation.name} is not Gaussian, and jaxlab.gaussian holds Gaussian states only; jaxlab.quantum.fock "
            "simulates it"
        )
    return operation.name in _GATES or operation.name in {*_PREPARATIONS, *_WIDE, "Identity"}


def _is_analytic(process: Any) -> bool:
    return isinstance(process, ExpectationMP | VarianceMP) and process.obs.name in _OBSERVABLES


def _is_sampled(process: Any) -> bool:
    if isinstance(process, SampleMP):
        return process.obs is not None and process.obs.name in _QUADRATURES
    return _is_analytic(process)


def _with_numbers(circuit: Any) -> Any:
    (numbers,), _ = qml.transforms.convert_to_numpy_parameters(circuit)
    return numbers


def _planned(circuit: Any) -> tuple[Plan, list[Any]]:
    """A circuit's structure and all its parameters, those of observables last.

    Raises:
      DeviceError: a parameter is a batch, which PennyLane does not know of for these operations.
    """
    tape = circuit.map_to_standard_wires()
    steps, readings = [], []
    data: list[Any] = []
    for operation in tape.operations:
        if operation.name not in _WIDE and any(np.ndim(x) for x in operation.data):
            shapes = [np.shape(x) for x in operation.data]
            raise DeviceError(
                f"{operation.name} has parameters of shapes {shapes}; they must be scalars (jax.vmap for batches)"
            )
        steps.append(Step(operation.name, tuple(operation.wires), len(data), len(operation.data)))
        data += operation.data
    for process in tape.measurements:
        kind = {ExpectationMP: "mean", VarianceMP: "variance", SampleMP: "sample"}[type(process)]
        observable = process.obs
        photons = observable.data[0] if observable.name == "FockStateProjector" else ()
        counted = tuple(int(number) for number in np.atleast_1d(photons))
        readings.append(Reading(kind, observable.name, tuple(observable.wires), len(data), counted))
        data += observable.data
    floats = [jnp.asarray(x, jnp.result_type(x, float)) for x in data]
    return Plan(max(1, tape.num_wires), tuple(steps), tuple(readings)), floats


def _final_state(plan: Plan, data: Sequence[Array]) -> Gaussian:
    state = gaussian.vacuum(plan.modes)
    for are_gates, steps in itertools.groupby(plan.steps, lambda step: step.name in _GATES):
        if are_gates:
            gates = list(steps)
            circuit = cv_circuit(plan.modes, [(gate.name, gate.wires) for gate in gates])
            own = [x for gate in gates for x in data[gate.first : gate.first + gate.size]]
            state = run_cv(circuit, jnp.stack(own), state)
            continue
        for step in steps:
            params = data[step.first : step.first + step.size]
            if step.name in _PREPARATIONS:
                state = _PREPARATIONS[step.name](state, *params, step.wires[0])
            elif step.name in _WIDE:
                state = _WIDE[step.name](state, *params, step.wires)
    return state


@functools.partial(jax.jit, static_argnums=0)
def _values(plan: Plan, data: Sequence[Array]) -> tuple[Float[Array, ""], ...]:
    """All means and variances, exactly."""
    state = _final_state(plan, data)
    return tuple(_moment(reading, reading.kind, state, data) for reading in plan.readings)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _sampled(
    plan: Plan, data: Sequence[Array], key: jax.Array, shots: int
) -> tuple[Float[Array, "..."], ...]:
    state = _final_state(plan, data)
    keys = jax.random.split(key, len(plan.readings))
    return tuple(
        _estimate(one, reading, state, data, shots) for one, reading in zip(keys, plan.readings, strict=True)
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _jacobian(plan: Plan, trainable: tuple[int, ...], data: Sequence[Array]) -> tuple[Any, Any]:
    """Values, and their derivatives in some parameters: a list for each measurement."""

    def of(own: Sequence[Array]) -> Any:
        merged = list(data)
        for place, x in zip(trainable, own, strict=True):
            merged[place] = x
        return _values(plan, merged)

    own = [data[place] for place in trainable]
    return of(own), jax.jacrev(of)(own)


def _with_jacobian(circuit: Any) -> tuple[Any, Any]:
    trainable = tuple(circuit.trainable_params)
    plan, data = _planned(_with_numbers(circuit))
    if not trainable:
        return as_numpy(_single(_values(plan, data))), nested([[] for _ in plan.readings], 0)
    if any(jnp.iscomplexobj(data[place]) for place in trainable):
        raise DeviceError("the unitary of InterferometerUnitary has no derivative: declare it not trainable")
    value, rows = _jacobian(plan, trainable, data)
    return as_numpy(_single(value)), nested(as_numpy(list(rows)), len(trainable))


def _single(results: tuple[Any, ...]) -> Any:
    return results[0] if len(results) == 1 else results


def _moment(reading: Reading, kind: str, state: Gaussian, data: Sequence[Array]) -> Float[Array, ""]:
    """Mean or variance of an observable.

    Raises:
      DeviceError: coefficients of a polynomial that do not fit its wires.
    """
    is_mean = kind == "mean"
    if reading.name == "Identity":
        return jnp.ones(()) if is_mean else jnp.zeros(())
    if reading.name == "NumberOperator":
        return (measured.number_mean if is_mean else measured.number_variance)(state, reading.wires[0])
    if reading.name == "FockStateProjector":
        p = measured.fock_probability(state, reading.photons, reading.wires)
        return p if is_mean else p - jnp.square(p)
    if reading.name == "PolyXP":
        coefficients, size = data[reading.first], 1 + 2 * len(reading.wires)
        if coefficients.shape not in ((size,), (size, size)):
            raise DeviceError(
                f"PolyXP has coefficients of shape {coefficients.shape}; on {len(reading.wires)} wires it must be "
                f"({size},) or ({size}, {size})"
            )
        # PennyLane orders them (1, x_1, p_1, x_2, p_2, ..).
        order = np.array([0, *range(1, size, 2), *range(2, size, 2)])
        ordered = coefficients[np.ix_(*[order] * coefficients.ndim)]
        read = measured.polynomial_mean if is_mean else measured.polynomial_variance
        return read(state, ordered, reading.wires)
    read_quadrature = measured.quadrature_mean if is_mean else measured.quadrature_variance
    return read_quadrature(state, _angle(reading, data), reading.wires[0])


def _estimate(
    key: jax.Array, reading: Reading, state: Gaussian, data: Sequence[Array], shots: int
) -> Float[Array, "..."]:
    """What `shots` measurements give."""
    if reading.name in _QUADRATURES:
        angle = _angle(reading, data)
        values = measured.sample_homodyne(key, state, shots, angle, reading.wires)[:, 0]
    elif reading.name == "FockStateProjector":
        p = _moment(reading, "mean", state, data)
        values = jax.random.bernoulli(key, p, (shots,)).astype(p.dtype)
    else:
        exact = _moment(reading, reading.kind, state, data)
        if reading.kind == "variance":
            return exact
        error = jnp.sqrt(_moment(reading, "variance", state, data) / shots)
        return exact + error * jax.random.normal(key, dtype=exact.dtype)
    if reading.kind == "sample":
        return values
    return jnp.mean(values) if reading.kind == "mean" else jnp.var(values)


def _angle(reading: Reading, data: Sequence[Array]) -> Any:
    return (
        data[reading.first]
        if reading.name == "QuadOperator"
        else {"QuadX": 0.0, "QuadP": np.pi / 2}[reading.name]
    )
