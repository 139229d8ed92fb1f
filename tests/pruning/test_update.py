"""Updates for pruned rows and columns against dense optimal brain surgeon, group by group where they are grouped."""

import functools

import dense_oracle
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from dense_oracle import EXAMPLE_A, EXAMPLE_G, EXAMPLE_W, SHAPES, columns_mask, rows_mask
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.pruning.inverse import Inverses, damped_inverse
from jaxlab.pruning.update import update

DRAWN = {"shape": SHAPES, "seed": st.integers(0, 9999)}


def drawn(shape, seed):
    """Problem and masks, some of whose structures were pruned earlier."""
    W, A, G = dense_oracle.problem(*shape, seed)
    rng = np.random.default_rng(seed + 1)
    row_mask, column_mask = rng.random(shape[0]) < 0.4, rng.random(shape[1]) < 0.4
    W[row_mask & (rng.random(shape[0]) < 0.3)] = 0
    W[:, column_mask & (rng.random(shape[1]) < 0.3)] = 0
    return W, A, G, row_mask, column_mask


def updated(W, row_mask, column_mask, A, G, **options):
    with jax.enable_x64(True):
        inverses = Inverses(jnp.asarray(np.linalg.inv(A)), jnp.asarray(np.linalg.inv(G)))
        masks = (None if m is None else jnp.asarray(m) for m in (row_mask, column_mask))
        return np.asarray(jitted(jnp.asarray(W), *masks, inverses, **options))


jitted = jax.jit(
    update,
    static_argnames=("joint", "max_correlate", "add_update", "update_scale"),
)


def groups(mask, size):
    where = np.flatnonzero(mask)
    return [where[k : k + size] for k in range(0, len(where), size)]


def pruned_mask(row_mask, column_mask):
    return row_mask[:, None] | column_mask


def close(ours, theirs, scale):
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(scale).max())


@given(**DRAWN)
def test_rows_and_columns_together_are_the_dense_optimum(shape, seed):
    W, A, G, row_mask, column_mask = drawn(shape, seed)
    mask = pruned_mask(row_mask, column_mask)
    least, change = dense_oracle.remove(W, A, G, mask)
    ours = updated(W, row_mask, column_mask, A, G)
    close(ours, W + change, W)
    np.testing.assert_allclose(dense_oracle.loss(ours - W, A, G), least, rtol=1e-9, atol=1e-12)


@given(**DRAWN)
def test_rows_alone_and_columns_alone_are_the_dense_optimum(shape, seed):
    W, A, G, row_mask, column_mask = drawn(shape, seed)
    by_rows = W + dense_oracle.remove(W, A, G, rows_mask(W.shape, np.flatnonzero(row_mask)))[1]
    by_columns = W + dense_oracle.remove(W, A, G, columns_mask(W.shape, np.flatnonzero(column_mask)))[1]
    close(updated(W, row_mask, None, A, G), by_rows, W)
    close(updated(W, row_mask, np.zeros(shape[1], bool), A, G), by_rows, W)
    close(updated(W, None, column_mask, A, G), by_columns, W)


@given(
    **DRAWN, size=st.sampled_from([1, 3]), add_update=st.booleans(), joint=st.sampled_from(["exact", "sum"])
)
def test_groups_are_dense_updates_in_turn(shape, seed, size, add_update, joint):
    W, A, G, row_mask, column_mask = drawn(shape, seed)
    of_rows = [rows_mask(W.shape, group) for group in groups(row_mask, size)]
    of_columns = [columns_mask(W.shape, group) for group in groups(column_mask, size)]
    change = dense_oracle.remove_in_turn(W, A, G, of_rows, add_update=add_update)
    start = W + change if joint == "exact" else W
    change += dense_oracle.remove_in_turn(start, A, G, of_columns, add_update=add_update)
    expected = np.where(pruned_mask(row_mask, column_mask), 0, W + change)
    ours = updated(W, row_mask, column_mask, A, G, joint=joint, max_correlate=size, add_update=add_update)
    close(ours, expected, W + change)


@given(**DRAWN)
def test_the_sum_of_updates_is_never_better_than_the_optimum(shape, seed):
    W, A, G, row_mask, column_mask = drawn(shape, seed)
    optimum, total = (
        dense_oracle.loss(updated(W, row_mask, column_mask, A, G, joint=joint) - W, A, G)
        for joint in ("exact", "sum")
    )
    assert optimum <= total * (1 + 1e-12) + 1e-12


@given(**DRAWN, size=st.sampled_from([0, 1]), joint=st.sampled_from(["exact", "sum"]))
def test_pruned_entries_are_exactly_zero_and_a_second_shot_changes_nothing(shape, seed, size, joint):
    W, A, G, row_mask, column_mask = drawn(shape, seed)
    once = updated(W, row_mask, column_mask, A, G, joint=joint, max_correlate=size)
    mask = pruned_mask(row_mask, column_mask)
    assert not once[mask].any() and not np.signbit(once[mask]).any()
    np.testing.assert_array_equal(
        updated(once, row_mask, column_mask, A, G, joint=joint, max_correlate=size), once
    )


@given(**DRAWN)
def test_permuting_rows_and_columns_permutes_the_result(shape, seed):
    W, A, G, row_mask, column_mask = drawn(shape, seed)
    rng = np.random.default_rng(seed)
    p, q = rng.permutation(shape[0]), rng.permutation(shape[1])
    permuted = updated(W[p][:, q], row_mask[p], column_mask[q], A[q][:, q], G[p][:, p])
    close(permuted, updated(W, row_mask, column_mask, A, G)[p][:, q], W)


@given(**DRAWN, scale_a=st.floats(1e-6, 1e6), scale_g=st.floats(1e-6, 1e6))
def test_scaling_the_loss_or_the_inputs_changes_nothing(shape, seed, scale_a, scale_g):
    W, A, G, row_mask, column_mask = drawn(shape, seed)

    invert = jax.jit(damped_inverse)

    def pruned(A, G):
        with jax.enable_x64(True):
            inverses = Inverses(
                invert(jnp.asarray(A), jnp.ones(shape[1], bool), 0.1),
                invert(jnp.asarray(G), jnp.ones(shape[0], bool), 0.1),
            )
            return jitted(jnp.asarray(W), jnp.asarray(row_mask), jnp.asarray(column_mask), inverses)

    close(pruned(scale_a * A, scale_g * G), pruned(A, G), W)


def test_example_of_the_specification():
    row_mask, column_mask = np.arange(3) == 2, np.isin(np.arange(4), [0, 3])
    exact = updated(EXAMPLE_W, row_mask, column_mask, EXAMPLE_A, EXAMPLE_G)
    total = updated(EXAMPLE_W, row_mask, column_mask, EXAMPLE_A, EXAMPLE_G, joint="sum")
    loss = functools.partial(dense_oracle.loss, A=EXAMPLE_A, G=EXAMPLE_G)
    np.testing.assert_allclose(exact[:2, 1:3], [[-1.866841, 0.448491], [0.142716, -0.520724]], atol=5e-7)
    np.testing.assert_allclose(total[:2, 1:3], [[-1.872857, 0.448571], [0.166781, -0.521046]], atol=5e-7)
    np.testing.assert_allclose(loss(exact - EXAMPLE_W), 3.508505, atol=5e-7)
    np.testing.assert_allclose(loss(total - EXAMPLE_W), 3.509009, atol=5e-7)
    alone = np.asarray(update(jnp.asarray(EXAMPLE_W), jnp.asarray(row_mask), jnp.asarray(column_mask), None))
    np.testing.assert_allclose(loss(alone - EXAMPLE_W), 3.724250, atol=5e-7)


def test_dead_structures_are_zeroed_and_move_nothing():
    W, A, G, row_mask, column_mask = drawn((5, 6), 3)
    row_mask[:], column_mask[:] = [1, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0]
    G[2], G[:, 2], A[4], A[:, 4] = 0, 0, 0, 0  # row 2 and column 4 are dead and pruned, with weights
    alive_rows, alive_columns = np.arange(5) != 2, np.arange(6) != 4
    inside = np.ix_(alive_rows, alive_columns)
    with jax.enable_x64(True):
        inverses = Inverses(
            damped_inverse(jnp.asarray(A), jnp.asarray(alive_columns), 0.0),
            damped_inverse(jnp.asarray(G), jnp.asarray(alive_rows), 0.0),
        )
        for size in (0, 1):
            ours = update(
                jnp.asarray(W), jnp.asarray(row_mask), jnp.asarray(column_mask), inverses, max_correlate=size
            )
            smaller = updated(
                W[inside],
                row_mask[alive_rows],
                column_mask[alive_columns],
                A[alive_columns][:, alive_columns],
                G[alive_rows][:, alive_rows],
                max_correlate=size,
            )
            close(np.asarray(ours)[inside], smaller, W)
            assert not ours[2].any() and not ours[:, 4].any()


def test_update_scale_multiplies_the_change():
    W, A, G, row_mask, column_mask = drawn((5, 6), 4)
    whole = updated(W, row_mask, column_mask, A, G)
    half = updated(W, row_mask, column_mask, A, G, update_scale=0.5)
    kept = ~pruned_mask(row_mask, column_mask)
    np.testing.assert_allclose(half[kept], (W + whole)[kept] / 2, rtol=1e-12)


def test_an_identity_factor_needs_no_matrix():
    W, A, _, row_mask, column_mask = drawn((5, 6), 4)
    with jax.enable_x64(True):
        inverse = jnp.linalg.inv(jnp.asarray(A))
        masks = jnp.asarray(W), jnp.asarray(row_mask), jnp.asarray(column_mask)
        short = update(*masks, Inverses(inverse, None))
        np.testing.assert_allclose(short, update(*masks, Inverses(inverse, jnp.eye(5))), atol=1e-14)
        short = update(*masks, Inverses(None, None))
        np.testing.assert_array_equal(short, update(*masks, None))


@pytest.mark.parametrize("count", [0, 5, 64, 65, 192, 193, 200])
def test_systems_of_every_size_give_the_optimum(count):
    rng = np.random.default_rng(count)
    W, noise = rng.standard_normal((200, 7)), rng.standard_normal((200, 300))
    G, A = noise @ noise.T / 300, np.eye(7)
    row_mask = np.zeros(200, bool)
    row_mask[rng.permutation(200)[:count]] = True
    inverse = np.linalg.inv(G)
    change = -inverse[:, row_mask] @ np.linalg.solve(inverse[row_mask][:, row_mask], W[row_mask])
    close(updated(W, row_mask, None, A, G), np.where(row_mask[:, None], 0, W + change), W)


@pytest.mark.parametrize("size", [0, 2])
def test_jit_vmap_and_eager_agree(size):
    problems = [drawn((5, 6), seed) for seed in range(3)]
    W, A, G, rows, columns = (jnp.asarray(np.stack(x)) for x in zip(*problems, strict=True))
    inverses = Inverses(jnp.linalg.inv(A), jnp.linalg.inv(G))
    pruned = functools.partial(update, max_correlate=size)
    eager = jnp.stack(
        [pruned(W[k], rows[k], columns[k], jax.tree.map(lambda x, k=k: x[k], inverses)) for k in range(3)]
    )
    np.testing.assert_allclose(jax.jit(jax.vmap(pruned))(W, rows, columns, inverses), eager, atol=1e-5)


def test_gradient_equals_finite_differences():
    W, A, G, row_mask, column_mask = drawn((4, 5), 8)
    with jax.enable_x64(True):
        inverses = Inverses(jnp.asarray(np.linalg.inv(A)), jnp.asarray(np.linalg.inv(G)))
        masks = jnp.asarray(row_mask), jnp.asarray(column_mask)

        def total(W):
            return jnp.sum(update(jnp.asarray(W), *masks, inverses) ** 2)

        jax.test_util.check_grads(total, (jnp.asarray(W),), order=1, modes=["fwd", "rev"])


def test_arguments_that_do_not_fit_are_refused():
    W, rows, columns = jnp.ones((2, 3)), jnp.zeros(2, bool), jnp.zeros(3, bool)
    with pytest.raises(InputError, match=r"row_mask has shape \(3,\); W \(2, 3\) needs \(2,\)"):
        update(W, columns, columns, None)
    with pytest.raises(InputError, match="joint is 'both'"):
        update(W, rows, columns, None, joint="both")
    with pytest.raises(InputError, match="max_correlate is -1"):
        update(W, rows, columns, None, max_correlate=-1)
