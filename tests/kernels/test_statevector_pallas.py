"""Kernels for blocks on GPU and TPU, interpreted, against matrices in NumPy float64 and the plain version; lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering import holds_kernel
from random_states import random_state

from jaxlab.kernels.statevector import blocks, blocks_pallas_gpu, blocks_pallas_tpu
from jaxlab.kernels.statevector.blocks_pallas import apply_on, planned, undo_on
from jaxlab.quantum.lowering import Dense, lower
from jaxlab.quantum.recording import record
from jaxlab.quantum.simulation import simulate

SMALL = blocks_pallas_gpu.Sizes(tile=6, columns=2)
KERNELS = {
    "gpu": (blocks_pallas_gpu, {}),
    "gpu, tiles of 2^6": (blocks_pallas_gpu, {"tile": SMALL}),
    "tpu": (blocks_pallas_tpu, {}),
    "tpu, tiles of 2^10": (blocks_pallas_tpu, {"tile": 10}),
}
CASES = {
    "all of 8": (8, ((0, 1, 2, 3), (4, 5, 6, 7))),
    "all of 9, a single wire last": (9, ((0, 1, 2, 3), (4, 5, 6, 7), (8,))),
    "gaps": (10, ((0, 1), (3, 4, 5), (7,))),
    "five in the middle": (11, ((3, 4, 5, 6, 7),)),
    "seven and more than a tile": (13, ((0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11, 12))),
    "wires apart": (9, ((0, 2), (1,), (3, 4), (5, 6, 7, 8))),
}


def random_matrix(wires, seed, real):
    rng, shape = np.random.default_rng(seed), (1 << wires,) * 2
    return np.linalg.qr(rng.normal(size=shape) + (0 if real else 1j * rng.normal(size=shape)))[0]


def on_wires(psi, matrix, wires):
    """The matrix on some wires, in NumPy: their axes in front, a product, and back."""
    n = len(psi).bit_length() - 1
    tensor = np.moveaxis(psi.reshape((2,) * n), wires, range(len(wires)))
    product = (matrix @ tensor.reshape(len(matrix), -1)).reshape(tensor.shape)
    return np.moveaxis(product, range(len(wires)), wires).reshape(-1)


def oracle(psi, matrices, wires):
    for matrix, own in zip(matrices, wires, strict=True):
        psi = on_wires(psi, matrix, own)
    return psi


def oracle_gradients(after, psi, matrices, wires):
    """Of Re <after, blocks psi>, each entry of a matrix on its own: the derivative is linear in that matrix."""
    found = []
    for i, own in enumerate(wires):
        others = [m for j, m in enumerate(matrices) if j != i], [w for j, w in enumerate(wires) if j != i]
        partly = oracle(psi, *others)
        n = len(psi).bit_length() - 1
        rows = [
            np.moveaxis(x.reshape((2,) * n), own, range(len(own))).reshape(1 << len(own), -1)
            for x in (after, partly)
        ]
        found.append(np.array([[np.sum(a.conj() * b) for b in rows[1]] for a in rows[0]]))
    return found


def problem(wires, n, real, seed=0):
    matrices = [random_matrix(len(own), seed + i, real) for i, own in enumerate(wires)]
    cast = tuple(jnp.asarray(one, jnp.float32 if real else jnp.complex64) for one in matrices)
    return matrices, cast, random_state(n, seed), random_state(n, seed + 1)


def assert_close(found, expected, tolerance=2e-6):
    assert np.linalg.norm(np.asarray(found) - expected) <= tolerance * np.linalg.norm(expected)


def compared_to_numpy(n, wires, real, kernel, seed=0):
    kernels, options = KERNELS[kernel]
    matrices, cast, psi, after = problem(wires, n, real, seed)
    exact = oracle(psi, matrices, wires)
    forward = jax.jit(functools.partial(apply_on, wires=wires, kernels=kernels, interpret=True, **options))(
        jnp.asarray(psi, jnp.complex64), cast
    )
    assert_close(forward, exact)
    assert abs(np.linalg.norm(forward) - 1) < 2e-6
    back = jax.jit(functools.partial(undo_on, wires=wires, kernels=kernels, interpret=True, **options))
    back_after, back_psi, gradients = back(
        jnp.asarray(after, jnp.complex64), jnp.asarray(exact, jnp.complex64), cast
    )
    assert_close(back_psi, psi)
    assert_close(back_after, oracle(after, [one.conj().T for one in matrices], wires))
    for found, expected in zip(gradients, oracle_gradients(after, psi, matrices, wires), strict=True):
        assert jnp.iscomplexobj(found) != real
        assert_close(found, expected.real if real else expected, 4e-6)


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize(
    ("case", "kernel"),
    [(case, kernel) for case in CASES for kernel in KERNELS if "tiles" in kernel or case.startswith("seven")],
)
def test_blocks_their_inverse_and_gradients_are_those_of_matrices_in_float64(case, kernel, real):
    compared_to_numpy(*CASES[case], real, kernel)


@settings(max_examples=4)
@given(
    st.sampled_from(list(KERNELS)),
    st.integers(8, 10),
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_runs_of_any_sizes_anywhere(kernel, n, sizes, real, seed):
    wires, at = [], int(np.random.default_rng(seed).integers(0, 3))
    for size in sizes:
        if at + size <= n:
            wires.append(tuple(range(at, at + size)))
        at += size + int(np.random.default_rng(seed + at).integers(0, 2))
    if wires:
        compared_to_numpy(n, tuple(wires), real, kernel, seed)


@pytest.mark.parametrize("real", [True, False])
def test_both_implementations_agree_under_jit_vmap_and_grad(real):
    n, wires = CASES["all of 8"]
    _, cast, psi, after = problem(wires, n, real)
    states = jnp.asarray([psi, after, psi + after], jnp.complex64)
    batch = tuple(jnp.stack([one, -one, one.T]) for one in cast)

    def both(function):
        return [function("xla"), function("pallas")]

    def applied(implementation):
        return functools.partial(blocks.apply_blocks, wires=wires, implementation=implementation)

    def undone(implementation):
        return functools.partial(blocks.undo_blocks, wires=wires, implementation=implementation)

    def gradients(implementation):
        def loss(psi, matrices):
            return jnp.abs(jnp.vdot(states[1], applied(implementation)(psi, matrices))) ** 2

        return jax.grad(loss, argnums=(0, 1))(states[0], cast)

    def second(implementation):
        def loss(matrices):
            return jnp.real(undone(implementation)(states[1], states[0], matrices)[2][0]).sum()

        return jax.grad(loss)(cast)

    for make in (
        lambda name: jax.jit(jax.vmap(applied(name)))(states, batch),
        lambda name: jax.vmap(applied(name), (0, None))(states, cast),
        lambda name: jax.vmap(applied(name), (None, 0))(states[0], batch),
        lambda name: jax.jit(jax.vmap(undone(name)))(states, states[::-1], batch),
        lambda name: jax.vmap(undone(name), (0, None, None))(states, states[0], cast),
        gradients,
        second,
    ):
        expected, found = both(make)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            assert_close(a, np.asarray(b), 4e-6)


def test_default_on_a_cpu_is_the_plain_version_to_the_last_bit():
    wires = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9), (10, 11, 12, 13, 14))
    for real in (True, False):
        _, cast, psi, after = problem(wires, 15, real)
        psi, after = jnp.asarray(psi, jnp.complex64), jnp.asarray(after, jnp.complex64)
        expected = (
            blocks.turn(psi, cast) if real else functools.reduce(lambda x, m: blocks.rotate(x, m), cast, psi)
        )
        np.testing.assert_array_equal(blocks.apply_blocks(psi, cast, wires), expected)
        if real:
            transposes = [blocks.transposed(one) for one in cast]
            jax.tree.map(
                np.testing.assert_array_equal,
                blocks.undo_blocks(after, psi, cast, wires, transposes=transposes),
                blocks.turn_back(after, psi, transposes),
            )


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (1, 5, 3, 7), (2, 7, 7)])
def test_lowers_for_accelerators(sizes, platform, real):
    wires, at = [], 0
    for size in sizes:
        wires.append(tuple(range(at, at + size)))
        at += size
    state = jax.ShapeDtypeStruct((1 << at,), jnp.complex64)
    matrices = tuple(
        jax.ShapeDtypeStruct((1 << size,) * 2, jnp.float32 if real else jnp.complex64) for size in sizes
    )
    apply, undo = (
        functools.partial(one, wires=tuple(wires), implementation="pallas")
        for one in (blocks.apply_blocks, blocks.undo_blocks)
    )
    assert holds_kernel(apply, state, matrices, platform=platform)
    assert holds_kernel(undo, state, state, matrices, platform=platform)


def passes_over_memory(function, *arguments):
    """How many kernels a function calls, from its trace."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            total += equation.primitive.name == "pallas_call"
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
            ):
                inner = getattr(inner, "jaxpr", inner)
                total += count(inner) if hasattr(inner, "eqns") else 0
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.mark.parametrize(
    ("kernels", "sizes", "passes"),
    [
        (blocks_pallas_gpu, (4, 4, 4, 4, 4, 3, 3), (3, 3)),
        (blocks_pallas_gpu, (4, 4, 4), (1, 2)),
        (blocks_pallas_tpu, (5, 7, 7, 7), (3, 3)),
        (blocks_pallas_tpu, (6, 7, 7), (2, 2)),
    ],
)
def test_blocks_of_a_tile_share_a_pass(kernels, sizes, passes):
    edges = np.cumsum([0, *sizes])
    wires = tuple(tuple(range(a, b)) for a, b in zip(edges, edges[1:], strict=False))
    state = jax.ShapeDtypeStruct((1 << edges[-1],), jnp.complex64)
    matrices = tuple(jax.ShapeDtypeStruct((1 << size,) * 2, jnp.float32) for size in sizes)
    ahead, back = (functools.partial(one, wires=wires, kernels=kernels) for one in (apply_on, undo_on))
    found = passes_over_memory(ahead, state, matrices), passes_over_memory(back, state, state, matrices)
    assert found == passes


def hardware_efficient(c, angles):
    for layer in range(len(angles)):
        c.ry(angles[layer, :, 0], range(c.n))
        c.rx(angles[layer, :, 1], range(c.n))
        for wire in range(c.n - 1):
            c.cnot(wire, wire + 1)


def test_blocks_of_seven_wires_leave_nothing_to_the_plain_version_on_a_tpu():
    for n in (15, 18, 20):
        program, _ = record(hardware_efficient, n, jnp.zeros((1, n, 2)))
        for segment in lower(program.parts[0].body, n, 7):
            if isinstance(segment, Dense):
                wires = tuple(block.wires for block in segment.blocks)
                assert not planned(wires, n, blocks_pallas_tpu, backward=False).rest


def test_programs_have_the_plain_values_gradients_and_hessians():
    angles = jnp.asarray(np.random.default_rng(0).uniform(-3, 3, (2, 8, 2)), jnp.float32)
    target = jnp.asarray(random_state(8), jnp.complex64)

    def overlap(angles, implementation, **options):
        psi = simulate(*record(hardware_efficient, 8, angles), implementation=implementation, **options)
        return jnp.abs(jnp.vdot(target, psi)) ** 2

    value, gradient = jax.jit(jax.value_and_grad(lambda x: overlap(x, "xla", diff="backprop")))(angles)
    kernel = functools.partial(overlap, implementation="pallas")
    assert passes_over_memory(jax.grad(kernel), angles) > passes_over_memory(kernel, angles) > 0
    found, by_kernel = jax.jit(jax.value_and_grad(kernel))(angles)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(by_kernel, gradient, atol=1e-6)
    two = jnp.stack([angles, angles + 0.1])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.grad(kernel)))(two)[1], jax.grad(kernel)(angles + 0.1), atol=1e-6
    )
    slope = jax.jvp(lambda x: jax.grad(kernel)(x), (angles,), (angles,))[1]
    expected = jax.jvp(jax.grad(lambda x: overlap(x, "xla")), (angles,), (angles,))[1]
    np.testing.assert_allclose(slope, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("psi", "implementation", "message"),
    [
        (jnp.zeros(256, jnp.complex64), "cuda", "must be None"),
        (jnp.zeros(128, jnp.complex64), "pallas", "8 or more wires"),
        (jnp.zeros(256, jnp.float32), "pallas", "complex64"),
    ],
)
def test_what_a_kernel_cannot_take_is_refused(psi, implementation, message):
    with pytest.raises(ValueError, match=message):
        blocks.apply_blocks(psi, [jnp.eye(2)], [(0,)], implementation=implementation)
