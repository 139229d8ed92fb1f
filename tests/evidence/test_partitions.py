import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab.errors import InputError
from jaxlab.evidence import make_partition, random_block

LABELS = np.array([7, 2, 2, 9, 7, 7, 2, 9, 9, 7, 2])


def switches(partition, labels):
    order = np.asarray(partition).ravel()
    return np.count_nonzero(np.diff(labels[order[order >= 0]]))


@pytest.mark.parametrize("kind", ["random", "label", "cluster"])
def test_every_example_is_in_one_block_and_padding_comes_last(kind):
    # Clusters far from each other: as many as blocks, by output.
    outputs = jnp.asarray(LABELS, jnp.float32)[:, None] * jnp.ones(2)
    make = jax.jit(lambda key: make_partition(key, 11, block=4, kind=kind, labels=LABELS, outputs=outputs))
    first, second = np.asarray(make(jax.random.key(0))), np.asarray(make(jax.random.key(1)))
    for partition in (first, second):
        assert partition.shape == (3, 4)
        assert sorted(partition.ravel()[:11]) == list(range(11)) and partition[-1, -1] == -1
    assert (first != second).any()
    if kind == "random":
        assert switches(first, LABELS) > 2
    else:
        assert switches(first, LABELS) == 2


def test_order_of_and_within_classes_is_random():
    made = jax.jit(jax.vmap(lambda key: make_partition(key, 11, block=11, kind="label", labels=LABELS)))
    orders = np.asarray(made(jax.random.split(jax.random.key(0), 60)))[:, 0]
    assert set(LABELS[orders[:, 0]]) == {2, 7, 9}
    sevens = {tuple(order[LABELS[order] == 7]) for order in orders}
    assert len(sevens) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, "block is 0"),
        ({"block": 12}, "block is 12; it must be at least 1 and at most 11"),
        ({"block": 4, "kind": "sorted"}, "kind is 'sorted'"),
        ({"block": 4, "kind": "label"}, "labels is None"),
        ({"block": 4, "kind": "label", "labels": LABELS[:3]}, "labels is of shape"),
        ({"block": 4, "kind": "cluster"}, "outputs is None"),
        ({"block": 4, "kind": "cluster", "outputs": np.ones((3, 2))}, "outputs has 3 rows"),
        ({"block": 4, "kind": "cluster", "outputs": np.ones(11)}, "outputs has shape"),
    ],
)
def test_wrong_input_is_named(options, message):
    with pytest.raises(InputError, match=message):
        make_partition(jax.random.key(0), 11, **options)
    with pytest.raises(InputError, match="size is 0"):
        make_partition(jax.random.key(0), 0, block=1)


def test_random_blocks_are_uniform_sets_of_different_examples():
    draw = jax.jit(jax.vmap(lambda key: random_block(key, 5, block=3)))
    blocks = np.sort(np.asarray(draw(jax.random.split(jax.random.key(0), 4000))), axis=1)
    assert (np.diff(blocks, axis=1) > 0).all() and blocks.min() == 0 and blocks.max() == 4
    _, counts = np.unique(blocks, axis=0, return_counts=True)
    assert len(counts) == 10  # all of the 5 choose 3
    assert stats.chisquare(counts).pvalue > 1e-3
    everything = np.asarray(random_block(jax.random.key(1), 6, block=6))
    assert sorted(everything) == list(range(6))
    with pytest.raises(InputError, match="block is 7; it must be at least 1 and at most 6"):
        random_block(jax.random.key(1), 6, block=7)
