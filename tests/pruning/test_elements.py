"""Updates for single pruned weights against dense optimal brain surgeon, chunk by chunk where they are chunked."""

import dense_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_oracle import EXAMPLE_A, EXAMPLE_G, EXAMPLE_W
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.errors import InputError
from jaxlab.pruning.costs import n_of_m
from jaxlab.pruning.elements import update_elements
from jaxlab.pruning.inverse import Inverses, damped_inverse

DRAWN = {
    "shape": st.sampled_from([(1, 6), (5, 1), (9, 5)]),
    "share": st.floats(0, 1),
    "seed": st.integers(0, 9999),
}


def drawn(shape, share, seed):
    """Problem and mask, some of whose weights were pruned earlier."""
    W, A, G = dense_oracle.problem(*shape, seed)
    rng = np.random.default_rng(seed + 1)
    mask = rng.random(W.shape) < share * rng.random((shape[0], 1)) * 2  # rows differ in how many they lose
    W[mask & (rng.random(W.shape) < 0.3)] = 0
    return W, A, G, mask


def updated(W, mask, A, G, **options):
    with jax.enable_x64(True):
        inverses = Inverses(*(None if F is None else jnp.asarray(np.linalg.inv(F)) for F in (A, G)))
        return np.asarray(jitted(jnp.asarray(W), jnp.asarray(mask), inverses, **options))


jitted = jax.jit(update_elements, static_argnames=("max_chunk", "add_update", "update_scale"))


def chunk_masks(mask, max_chunk):
    """Whole rows in order, as many as fit."""
    chunks = [np.zeros_like(mask)]
    for i, row in enumerate(mask):
        if chunks[-1].sum() and chunks[-1].sum() + row.sum() > max_chunk:
            chunks.append(np.zeros_like(mask))
        chunks[-1][i] = row
    return chunks


def close(ours, theirs, scale):
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(scale).max())


@given(**DRAWN)
def test_all_in_one_chunk_is_the_dense_optimum(shape, share, seed):
    W, A, G, mask = drawn(shape, share, seed)
    close(updated(W, mask, A, G), W + dense_oracle.remove(W, A, G, mask)[1], W)


@given(**DRAWN, how=st.sampled_from([(1, True), (8, True), (8, False)]))
def test_chunks_are_dense_updates_in_turn(shape, share, seed, how):
    max_chunk, add_update = how
    W, A, G, mask = drawn(shape, share, seed)
    change = dense_oracle.remove_in_turn(W, A, G, chunk_masks(mask, max_chunk), add_update=add_update)
    ours = updated(W, mask, A, G, max_chunk=max_chunk, add_update=add_update)
    close(ours, np.where(mask, 0, W + change), W + change)


@given(**DRAWN)
def test_with_an_identity_factor_rows_or_columns_are_exact_one_by_one(shape, share, seed):
    W, A, G, mask = drawn(shape, share, seed)
    one = np.eye(1)
    by_rows = [dense_oracle.remove(W[i : i + 1], A, one, mask[i : i + 1])[1] for i in range(shape[0])]
    close(updated(W, mask, A, None), W + np.concatenate(by_rows), W)
    by_columns = [
        dense_oracle.remove(W[:, j : j + 1], one, G, mask[:, j : j + 1])[1] for j in range(shape[1])
    ]
    close(updated(W, mask, None, G), W + np.concatenate(by_columns, axis=1), W)
    close(updated(W, mask, A, np.eye(shape[0]), max_chunk=4), W + np.concatenate(by_rows), W)


@pytest.mark.parametrize("max_chunk", [1, 40, 150])
@pytest.mark.parametrize("shape", [(95, 2), (4, 48)])
def test_more_rows_than_a_window_and_systems_of_several_sizes(shape, max_chunk):
    W, A, G, mask = drawn(shape, 0.6, 1)
    A, G = dense_oracle.damped(A, 0.1), dense_oracle.damped(G, 0.1)
    change = dense_oracle.remove_in_turn(W, A, G, chunk_masks(mask, max_chunk))
    close(updated(W, mask, A, G, max_chunk=max_chunk), np.where(mask, 0, W + change), W + change)


def test_two_of_four_is_the_dense_optimum():
    W, A, G = dense_oracle.problem(4, 8, 0)
    mask = np.asarray(n_of_m(jnp.asarray(W**2), 2, 4)[0])
    ours = updated(W, mask, A, G)
    close(ours, W + dense_oracle.remove(W, A, G, mask)[1], W)
    assert ((ours == 0).reshape(4, 2, 4).sum(axis=2) == 2).all()


@given(**DRAWN, max_chunk=st.sampled_from([1, 2000]))
def test_pruned_weights_are_exactly_zero_and_a_second_shot_changes_nothing(shape, share, seed, max_chunk):
    W, A, G, mask = drawn(shape, share, seed)
    once = updated(W, mask, A, G, max_chunk=max_chunk)
    assert not once[mask].any() and not np.signbit(once[mask]).any()
    np.testing.assert_array_equal(updated(once, mask, A, G, max_chunk=max_chunk), once)


@given(**DRAWN, scale_a=st.floats(1e-6, 1e6), scale_g=st.floats(1e-6, 1e6))
def test_scaling_the_loss_or_the_inputs_changes_nothing(shape, share, seed, scale_a, scale_g):
    W, A, G, mask = drawn(shape, share, seed)
    scaled = updated(W, mask, scale_a * A, scale_g * G, max_chunk=10)
    plain = updated(W, mask, A, G, max_chunk=10)
    close(scaled, plain, plain)


@given(**DRAWN)
def test_permuting_rows_and_columns_permutes_the_result(shape, share, seed):
    W, A, G, mask = drawn(shape, share, seed)
    rng = np.random.default_rng(seed)
    p, q = rng.permutation(shape[0]), rng.permutation(shape[1])
    permuted = updated(W[p][:, q], mask[p][:, q], A[q][:, q], G[p][:, p])
    close(permuted, updated(W, mask, A, G)[p][:, q], W)


def test_example_of_the_specification():
    mask = np.zeros((3, 4), bool)
    mask[0, 3] = mask[1, 1] = True
    ours = updated(EXAMPLE_W, mask, EXAMPLE_A, EXAMPLE_G)
    np.testing.assert_allclose(dense_oracle.loss(ours - EXAMPLE_W, EXAMPLE_A, EXAMPLE_G), 0.067319, atol=5e-7)
    np.testing.assert_allclose(ours[0], [1.026129, -1.987097, 0.536559, 0], atol=5e-7)


@pytest.mark.parametrize("max_chunk", [1, 2000])
def test_dead_entries_are_zeroed_and_move_nothing(max_chunk):
    W, A, G, mask = drawn((5, 6), 0.5, 3)
    mask[2], mask[:, 4] = True, True
    alive_rows, alive_columns = np.arange(5) != 2, np.arange(6) != 4
    inside = np.ix_(alive_rows, alive_columns)
    with jax.enable_x64(True):
        inverses = Inverses(
            damped_inverse(jnp.asarray(A), jnp.asarray(alive_columns), 0.0),
            damped_inverse(jnp.asarray(G), jnp.asarray(alive_rows), 0.0),
        )
        ours = np.asarray(update_elements(jnp.asarray(W), jnp.asarray(mask), inverses, max_chunk=max_chunk))
    smaller = (W[inside], mask[inside], A[alive_columns][:, alive_columns], G[alive_rows][:, alive_rows])
    close(ours[inside], updated(*smaller, max_chunk=max_chunk), W)
    assert not ours[2].any() and not ours[:, 4].any()


def test_without_inverses_nothing_moves_and_update_scale_multiplies_the_change():
    W, A, G, mask = drawn((5, 6), 0.5, 4)
    np.testing.assert_array_equal(
        update_elements(jnp.asarray(W), jnp.asarray(mask), None), np.where(mask, 0, W).astype(np.float32)
    )
    whole, half = updated(W, mask, A, G), updated(W, mask, A, G, update_scale=0.5)
    np.testing.assert_allclose(half[~mask], (W + whole)[~mask] / 2, rtol=1e-12)


@pytest.mark.parametrize("identity", [False, True])
def test_jit_map_vmap_and_eager_agree(identity):
    problems = [drawn((9, 7), 0.5, seed) for seed in range(3)]
    W, A, G, mask = (jnp.asarray(np.stack(x)) for x in zip(*problems, strict=True))
    inverses = Inverses(jnp.linalg.inv(A), None if identity else jnp.linalg.inv(G))

    def pruned(layer):
        return update_elements(*layer, max_chunk=12)

    layers = (W, mask, inverses)
    eager = jnp.stack([pruned(jax.tree.map(lambda x, k=k: x[k], layers)) for k in range(3)])
    np.testing.assert_allclose(jax.jit(jax.vmap(pruned))(layers), eager, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda x: jax.lax.map(pruned, x))(layers), eager, atol=1e-5)


def test_float32_at_a_real_width_stays_close_to_float64():
    rng = np.random.default_rng(0)
    W, mask = rng.standard_normal((20, 80)), rng.random((20, 80)) < 0.5
    A, G = dense_oracle.spd(80, rng), dense_oracle.spd(20, rng)
    exact = updated(W, mask, dense_oracle.damped(A, 0.01), dense_oracle.damped(G, 0.01), max_chunk=120)
    with jax.enable_x64(False):
        everything = [jnp.ones(n, bool) for n in (80, 20)]
        inverses = Inverses(
            damped_inverse(jnp.asarray(A, jnp.float32), everything[0], 0.01),
            damped_inverse(jnp.asarray(G, jnp.float32), everything[1], 0.01),
        )
        ours = jitted(jnp.asarray(W, jnp.float32), jnp.asarray(mask), inverses, max_chunk=120)
    np.testing.assert_allclose(ours, exact, atol=2e-3 * np.abs(exact).max())


def test_arguments_that_do_not_fit_are_refused():
    W = jnp.ones((2, 3))
    with pytest.raises(InputError, match=r"mask has shape \(3, 2\); it must be W's \(2, 3\)"):
        update_elements(W, jnp.zeros((3, 2), bool), None)
    with pytest.raises(InputError, match="max_chunk is 0"):
        update_elements(W, jnp.zeros((2, 3), bool), None, max_chunk=0)
