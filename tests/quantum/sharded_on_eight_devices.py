"""What `test_sharded.py` runs under pytest in a process with 8 virtual CPU devices."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from jax.sharding import PartitionSpec
from pennylane import numpy as autograd_numpy
from pennylane_oracle import all_angles, operator, random_gates, record_gates, wires_and_angles

from jaxlab.errors import InputError, ResourceError
from jaxlab.parallel import make_mesh
from jaxlab.quantum.ansatze import hardware_efficient, strongly_entangling
from jaxlab.quantum.frames import Frame
from jaxlab.quantum.gates import PAULIS
from jaxlab.quantum.pauli_sums import expval, pauli_sum
from jaxlab.quantum.recording import record
from jaxlab.quantum.sharded import ShardedState, in_order, simulate_sharded
from jaxlab.quantum.sharded_measurements import sharded_expval, sharded_marginal_z, sharded_probs
from jaxlab.quantum.simulation import simulate

pytestmark = pytest.mark.usefixtures("double_precision")


def random_sum(rng, n, count=10):
    terms = {"".join(rng.choice(list("IXYZ"), n)): rng.normal() for _ in range(count)}
    return pauli_sum(terms | {"Y" * n: 0.3, "Z" + "I" * (n - 1): -0.7})


def word_matrix(x, z, n):
    """Of the word with X or Y on the wires of x, Z or Y on those of z, by Kronecker products."""
    letters = ["IZXY"[2 * (x >> bit & 1) + (z >> bit & 1)] for bit in reversed(range(n))]
    return functools.reduce(np.kron, [PAULIS[letter] for letter in letters])


def by_pennylane(gates, matrix, n, unitary=None):
    """State, energy, and its gradient by plain differentiation."""

    @qml.qnode(qml.device("default.qubit", wires=n), diff_method="backprop", interface="autograd")
    def circuit(angles):
        at = 0
        for gate in gates:
            count = len(gate["angles"])
            own = [angles[at + i] for i in range(count)]
            at += count
            if gate["kind"] == "QubitUnitary":
                qml.QubitUnitary(unitary, wires=gate["wires"])
            else:
                operator(**(gate | {"angles": own}))
        return qml.state()

    def energy(angles):
        psi = circuit(angles)
        return autograd_numpy.real(
            autograd_numpy.dot(autograd_numpy.conj(psi), autograd_numpy.dot(matrix, psi))
        )

    angles = autograd_numpy.array(all_angles(gates), requires_grad=True)
    gradient = qml.grad(energy)(angles) if len(angles) else np.zeros(0)
    return np.asarray(circuit(angles)), float(energy(angles)), np.asarray(gradient)


def compared_to_pennylane(gates, n, devices, hamiltonian, record_all, unitary=None):
    mesh = make_mesh({"amp": devices})

    @jax.jit
    def run(angles, c):
        def energy(angles, c):
            state = simulate_sharded(
                *record(lambda circuit: record_all(circuit, gates, angles), n), mesh=mesh
            )
            return sharded_expval(state, dataclasses.replace(hamiltonian, c=c)), state

        (value, state), gradients = jax.value_and_grad(energy, argnums=(0, 1), has_aux=True)(angles, c)
        return in_order(state), value, *gradients

    psi, value, gradient, of_words = run(all_angles(gates), hamiltonian.c)
    matrices = [
        [word_matrix(x, z, n) for z in row] for x, row in zip(hamiltonian.x, hamiltonian.z, strict=True)
    ]
    expected, energy, slopes = by_pennylane(
        gates, np.einsum("mt,mtab->ab", hamiltonian.c, matrices), n, unitary
    )
    assert psi.sharding.spec == PartitionSpec("amp")
    assert len({shard.device for shard in psi.addressable_shards}) == devices
    np.testing.assert_allclose(psi, expected, atol=1e-10)
    assert abs(value - energy) < 1e-10
    np.testing.assert_allclose(gradient, slopes, atol=1e-10)
    means = np.einsum("a,mtab,b->mt", expected.conj(), matrices, expected).real
    np.testing.assert_allclose(of_words, means, atol=1e-10)


@pytest.mark.parametrize(("n", "devices", "seed"), [(7, 4, 2), (4, 2, 3)])
def test_state_energy_and_gradient_are_pennylanes(n, devices, seed):
    rng = np.random.default_rng(seed)
    shared = devices.bit_length() - 1
    gates = [
        gate
        for gate in random_gates(rng, n, 16)
        if wires_and_angles(gate["kind"])[0] + len(gate["controls"]) <= n - shared
    ]
    compared_to_pennylane(gates, n, devices, random_sum(rng, n), record_gates)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [8, 4])
def test_gates_may_lie_on_all_wires(devices):
    compared_all_kinds(devices, range(6))


def test_gates_may_lie_on_global_wires():
    compared_all_kinds(8, (0, 3))  # of whose six wires three are global


def compared_all_kinds(devices, starts):
    n, rng = 6, np.random.default_rng(devices)
    unitary = np.linalg.qr(rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4)))[0]
    kinds = [
        "SWAP",
        "Toffoli",
        "MultiRZ:3",
        "SingleExcitation",
        "DoubleExcitation",
        "ISWAP",
        "CRY",
        "QubitUnitary",
    ]
    kinds += ["OrbitalRotation"] * (devices == 4)  # without pair form: 4 wires must lie on a device
    gates = []
    for first in starts:
        for kind in rng.permutation(kinds):
            count, angles = (2, 0) if kind == "QubitUnitary" else wires_and_angles(kind)
            gates.append(
                {
                    "kind": str(kind),
                    "angles": rng.uniform(-3, 3, angles),
                    "wires": [(first + i) % n for i in range(count)],
                    "controls": [],
                    "values": [],
                    "adjoint": False,
                }
            )

    def record_all(c, gates, angles):
        at = 0
        for gate in gates:
            count = len(gate["angles"])
            if gate["kind"] == "QubitUnitary":
                c.unitary(unitary, gate["wires"])
            else:
                c.gate(gate["kind"], gate["wires"], *(angles[at + i] for i in range(count)))
            at += count

    compared_to_pennylane(gates, n, devices, random_sum(rng, n), record_all, unitary)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 116))
def test_many_states_are_pennylanes(seed):
    rng = np.random.default_rng(seed)
    shared = int(rng.integers(1, 4))
    n = int(rng.integers(2 * shared, 8))
    gates = [
        gate
        for gate in random_gates(rng, n, 20)
        if wires_and_angles(gate["kind"])[0] + len(gate["controls"]) <= n - shared
    ]
    compared_to_pennylane(gates, n, 1 << shared, random_sum(rng, n), record_gates)


def ising(n):
    """-sum Z Z - sum X with an open end."""
    terms = [(-1.0, "ZZ", (wire, wire + 1)) for wire in range(n - 1)]
    return pauli_sum([*terms, *((-1.0, "X", (wire,)) for wire in range(n))])


def fixture_angles(layers, n):
    return np.random.default_rng(0).uniform(-np.pi, np.pi, (layers, n, 2))


def energy_of(n, mesh, **options):
    def energy(angles):
        circuit = hardware_efficient(n, len(angles))
        return sharded_expval(simulate_sharded(*record(circuit, n, angles), mesh=mesh, **options), ising(n))

    return energy


def collectives(text):
    """How often each kind stands in a compiled program, within loops once."""
    names = ("all-to-all", "all-gather", "collective-permute", "reduce-scatter", "all-reduce")
    return {name: len(re.findall(rf"= [^\n]*? {name}(?:-start)?\(", text)) for name in names}


def test_one_all_to_all_a_layer():
    n, mesh = 18, make_mesh({"amp": 8})
    run = jax.jit(lambda angles: norm_of(angles, n, mesh))
    for layers in (4, 5):
        found = collectives(run.lower(fixture_angles(layers, n)).compile().as_text())
        assert found["all-gather"] == found["collective-permute"] == found["reduce-scatter"] == 0
        # One loop over pairs of mirrored layers, and perhaps a layer that is left over.
        assert 1 <= found["all-to-all"] <= 2 + layers % 2


def test_transverse_field_ising_fixture():
    angles = fixture_angles(4, 16)
    run = jax.jit(jax.value_and_grad(energy_of(16, make_mesh({"amp": 8})))).lower(angles).compile()
    value, gradient = run(angles)
    # The values of PennyLane's lightning, Catalyst and TensorCircuit-NG, which agree to 1e-12.
    assert abs(value - 0.134985780357370) < 1e-10
    assert abs(np.linalg.norm(gradient) - 2.365231213401902) < 1e-10
    found = collectives(run.as_text())
    assert found["all-gather"] == found["reduce-scatter"] == 0
    assert found["all-to-all"] <= 4  # two forwards; two back, for state and cotangent together
    assert found["collective-permute"] <= 3  # three of the words X flip a global bit


@pytest.mark.slow
def test_eighteen_wires_are_the_single_device():
    n, angles = 18, fixture_angles(4, 18)
    run = jax.jit(jax.value_and_grad(energy_of(n, make_mesh({"amp": 8}))))
    alone = jax.jit(jax.value_and_grad(energy_of_one(n)))
    for one, other in zip(run(angles), alone(angles), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)


def energy_of_one(n):
    return lambda angles: expval(simulate(*record(hardware_efficient(n, len(angles)), n, angles)), ising(n))


def norm_of(angles, n, mesh):
    state = simulate_sharded(*record(hardware_efficient(n, len(angles)), n, angles), mesh=mesh)
    return jnp.linalg.norm(state.amplitudes)


def test_norm_stays_over_a_thousand_layers():
    run = jax.jit(lambda angles: norm_of(angles, 6, make_mesh({"amp": 8})))
    assert abs(run(fixture_angles(1000, 6)) - 1) < 1e-12


def test_program_does_not_grow_with_depth():
    def size(layers):
        return len(
            str(jax.make_jaxpr(jax.grad(energy_of(8, make_mesh({"amp": 4}))))(fixture_angles(layers, 8)))
        )

    assert abs(size(32) - size(4)) < 0.02 * size(4)


def test_parameter_sets_lie_on_a_second_axis():
    mesh, n = make_mesh({"batch": 2, "amp": 4}), 6
    angles = np.random.default_rng(1).uniform(-3, 3, (4, 3, n, 2))
    run = jax.value_and_grad(energy_of(n, mesh))
    batched = jax.jit(jax.vmap(run, spmd_axis_name="batch"))
    placed = jax.device_put(angles, jax.NamedSharding(mesh, PartitionSpec("batch")))
    values, gradients = batched(placed)
    assert gradients.sharding.spec[0] == "batch"
    assert collectives(batched.lower(placed).compile().as_text())["all-gather"] == 0
    alone = jax.jit(jax.value_and_grad(energy_of_one(n)))
    for one, value, gradient in zip(angles, values, gradients, strict=True):
        expected, slopes = alone(one)
        np.testing.assert_allclose(value, expected, atol=1e-12)
        np.testing.assert_allclose(gradient, slopes, atol=1e-12)


@pytest.mark.slow
def test_memory_does_not_grow_with_depth():
    def needed(layers):
        run = jax.jit(jax.value_and_grad(energy_of(18, make_mesh({"amp": 8}))))
        return run.lower(fixture_angles(layers, 18)).compile().memory_analysis().temp_size_in_bytes

    state = 16 * 2**18 // 8
    shallow = needed(4)
    assert shallow < 16 * state  # of one device
    assert needed(32) - shallow < 28 * state // 4  # 28 layers: their matrices and phases alone


@pytest.mark.slow
def test_programs_lower_for_accelerators():
    energy = energy_of(8, make_mesh({"amp": 8}), dtype="complex64")
    angles = jax.ShapeDtypeStruct((4, 8, 2), jnp.float32)
    with jax.enable_x64(False):
        for platform in ("cuda", "tpu"):
            found = jax.export.export(jax.jit(jax.value_and_grad(energy)), platforms=[platform])(angles)
            assert found.nr_devices == 8


@pytest.mark.slow
def test_layers_whose_frames_are_brought_back_are_the_single_devices():
    n, mesh, rng = 7, make_mesh({"amp": 8}), np.random.default_rng(0)
    pairs = [rng.permutation(n)[:2].tolist() for _ in range(30)]
    angles = rng.uniform(-3, 3, (24, 2))

    def layer(c, angles):
        c.rx(angles[0], 6)
        c.ry(angles[1], 0)
        for control, target in pairs:
            c.cnot(control, target)
        c.x(1)

    program = functools.partial(record, lambda c, angles: c.repeat(layer, angles), n)
    hamiltonian = random_sum(rng, n)
    runs = (
        lambda angles: sharded_expval(simulate_sharded(*program(angles), mesh=mesh), hamiltonian),
        lambda angles: expval(simulate(*program(angles)), hamiltonian),
    )
    one, other = (jax.jit(jax.value_and_grad(run))(angles) for run in runs)
    np.testing.assert_allclose(one[0], other[0], atol=1e-12)
    np.testing.assert_allclose(one[1], other[1], atol=1e-12)


@pytest.mark.slow
def test_layers_with_other_permutations_are_the_single_device():
    n, mesh, ansatz = 6, make_mesh({"amp": 4}), strongly_entangling(6, 9)
    angles = np.random.default_rng(2).uniform(-3, 3, ansatz.shape)
    hamiltonian = random_sum(np.random.default_rng(3), n)

    def by_shards(angles):
        return sharded_expval(simulate_sharded(*record(ansatz, n, angles), mesh=mesh), hamiltonian)

    one, other = (
        jax.jit(jax.value_and_grad(run))(angles)
        for run in (by_shards, lambda angles: expval(ansatz.state(angles), hamiltonian))
    )
    np.testing.assert_allclose(one[0], other[0], atol=1e-12)
    np.testing.assert_allclose(one[1], other[1], atol=1e-12)


@pytest.mark.slow
def test_a_state_can_be_gone_on_with():
    n, mesh, rng = 5, make_mesh({"amp": 4}), np.random.default_rng(4)
    angles = rng.uniform(-3, 3, (2, 2, n, 2))
    hamiltonian = random_sum(rng, n)

    @jax.jit
    @jax.value_and_grad
    def twice(angles):
        state = None
        for part in angles:
            program = record(hardware_efficient(n, 2), n, part)
            state = simulate_sharded(*program, state, mesh=mesh)
        return sharded_expval(state, hamiltonian)

    @jax.jit
    @jax.value_and_grad
    def once(angles):
        return expval(simulate(*record(hardware_efficient(n, 4), n, angles.reshape(4, n, 2))), hamiltonian)

    for one, other in zip(twice(angles), once(angles), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_probabilities_and_their_gradient_are_those_of_the_amplitudes():
    n, mesh, rng = 6, make_mesh({"amp": 8}), np.random.default_rng(6)
    amplitudes = rng.normal(size=1 << n) + 1j * rng.normal(size=1 << n)
    amplitudes /= np.linalg.norm(amplitudes)
    frame = Frame(3, tuple(1 << bit for bit in range(n)))
    for wire in range(n - 1):  # a chain of CNOTs, so that a bit of a place is the parity of several wires
        columns = [1 << bit for bit in range(n)]
        columns[n - 1 - wire] |= 1 << (n - 2 - wire)
        frame = frame.after(columns, 1 << wire)
    weights = rng.normal(size=8), rng.normal(size=n)

    def of_shards(amplitudes):
        own = ShardedState(amplitudes, frame, mesh, "amp")
        found = sharded_probs(own, (4, 0, 1)), sharded_marginal_z(own)
        return sum(jnp.dot(*pair) for pair in zip(weights, found, strict=True)), (found, in_order(own))

    run = jax.jit(jax.value_and_grad(of_shards, has_aux=True))
    (_, ((joint, marginals), psi)), gradient = run(amplitudes)
    square = (np.abs(psi) ** 2).reshape((2,) * n)
    signs = 1 - 2 * np.indices(square.shape)
    np.testing.assert_allclose(joint, square.transpose(4, 0, 1, 2, 3, 5).reshape(8, 8).sum(1), atol=1e-12)
    np.testing.assert_allclose(marginals, [(square * one).sum() for one in signs], atol=1e-12)
    # The sum is quadratic, so that a symmetric difference is exact.
    step = 1e-2 * (rng.normal(size=1 << n) + 1j * rng.normal(size=1 << n))
    ahead, behind = (run(amplitudes + sign * step)[0][0] for sign in (1, -1))
    np.testing.assert_allclose(jnp.real(jnp.sum(gradient * step)), (ahead - behind) / 2, atol=1e-12)


@pytest.mark.slow
def test_single_precision_is_close():
    angles = fixture_angles(4, 12)
    single = jax.jit(energy_of(12, make_mesh({"amp": 8}), dtype="complex64"))(angles.astype(np.float32))
    assert abs(single - -0.450516977518038) < 2e-5


def test_wrong_use_is_named():
    mesh = make_mesh({"amp": 4})

    def fails(match, circuit, n=6, mesh=mesh, state=None, **options):
        with pytest.raises(InputError, match=match):
            simulate_sharded(*record(circuit, n), state, mesh=mesh, **options)

    fails("axis is 'data', but the mesh has amp", lambda c: c.x(0), axis="data")
    fails("'amp' has 3 devices; it must be a power of two", lambda c: c.x(0), mesh=make_mesh({"amp": 3}))
    fails(
        "8 devices, for 3 of the 5 wires; .* up to 4 devices",
        lambda c: c.x(0),
        n=5,
        mesh=make_mesh({"amp": 8}),
    )
    fails(
        "OrbitalRotation acts on 4 wires, but a device holds 3 of the 5",
        lambda c: c.gate("OrbitalRotation", (0, 1, 2, 3), 0.1),
        n=5,
    )
    fails("noise channel", lambda c: c.channel(np.eye(2)[None], 0))
    fails("block is 11", lambda c: c.x(0), block=11)
    state = ShardedState(jnp.zeros(64, complex), Frame(4, tuple(1 << bit for bit in range(6))), mesh, "amp")
    fails("state has 6 wires", lambda c: c.x(0), n=7, state=state)
    fails("state has 6 wires on axis 'amp'", lambda c: c.x(0), mesh=make_mesh({"amp": 2}), state=state)
    with pytest.raises(ResourceError, match="40 wires"):
        simulate_sharded(*record(lambda c: c.x(0), 40), mesh=mesh, dtype="complex128")
    with pytest.raises(InputError, match="no forward-mode derivatives"):
        jax.jit(jax.jacfwd(energy_of(6, mesh)))(fixture_angles(1, 6))
    for match, call in [
        ("sum is on 5 wires, the state on 6", lambda: sharded_expval(state, ising(5))),
        ("complex coefficients", lambda: sharded_expval(state, pauli_sum({"Z" * 6: 1j}))),
        ("masks are traced", lambda: jax.jit(lambda h: sharded_expval(state, h))(ising(6))),
        (r"wires is \[6\]", lambda: sharded_probs(state, (6,))),
        (r"none may stand twice", lambda: sharded_probs(state, (1, 1))),
        (r"wires are 0; there may be 1 to 12", lambda: sharded_probs(state, ())),
    ]:
        with pytest.raises(InputError, match=match):
            call()
