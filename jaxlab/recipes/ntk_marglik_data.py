"""What the ntk-marglik recipe trains on: Fashion-MNIST as it is, turned or shifted; digits; diabetes."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.data import Images, fashion_mnist
from jaxlab.errors import InputError
from jaxlab.evidence import affine_matrices, resample
from jaxlab.recipes.options import optional_module

Transform = Literal["none", "r90", "r180", "translated"]
_PIXELS = 8
_TRAIN_SEED, _TEST_SEED = 1, 0
_CHUNK = 1000


class Dataset(NamedTuple):
    """Inputs [count, height, width, 1] with values 0 to 1, or [count, features]; classes, or values [count, 1]."""

    train: np.ndarray
    train_targets: np.ndarray
    test: np.ndarray
    test_targets: np.ndarray
    unit: float = 1.0
    """Of the targets, where they are standardised values."""


def load_data(data: str, transform: Transform, *, images: int = 0, seed: int = 0) -> Dataset:
    """A data set, every image turned or shifted by an amount of its own that no other seed changes.

    Args:
      data: "fashion-mnist", "digits", "diabetes", or a folder with the four IDX files of a data set like MNIST.
      transform: see `transformed`; "none" for diabetes.
      images: use so many training examples only, drawn at random, and at most as many test images; 0 takes all.
      seed: of the draw, and of the split of data that come without one (a quarter is held out).

    Raises:
      InputError: fewer examples than asked for, a folder that lacks files, or a transform of a table.
      ResourceError: the images cannot be fetched, or scikit-learn is missing.
    """
    rng = np.random.default_rng(seed)
    if data == "diabetes":
        if transform != "none":
            raise InputError(f"transform is {transform!r}; diabetes is a table, it must be 'none'")
        found = _diabetes(rng)
    elif data == "digits":
        loaded = optional_module("sklearn.datasets", extra="evidence").load_digits()
        pixels = (loaded.images[..., None] / 16).astype(np.float32)
        found = _held_out(pixels, loaded.target.astype(np.int32), rng)
    else:
        train, test = fashion_mnist(None if data == "fashion-mnist" else data)
        found = Dataset(_scaled(train), train.classes, _scaled(test), test.classes)
    if images:
        if images > len(found.train):
            raise InputError(f"images is {images}, but there are {len(found.train)} training examples")
        some = rng.permutation(len(found.train))[:images]
        few = rng.permutation(len(found.test))[:images]
        found = found._replace(
            train=found.train[some],
            train_targets=found.train_targets[some],
            test=found.test[few],
            test_targets=found.test_targets[few],
        )
    if transform == "none":
        return found
    return found._replace(
        train=transformed(found.train, transform, seed=_TRAIN_SEED),
        test=transformed(found.test, transform, seed=_TEST_SEED),
    )


def validation_split(data: Dataset, *, share: float, seed: int) -> Dataset:
    """Training examples alone: some of them stand where the test examples were."""
    split = _held_out(data.train, data.train_targets, np.random.default_rng(seed), share)
    return split._replace(unit=data.unit)


def transformed(images: np.ndarray, transform: Transform, *, seed: int) -> np.ndarray:
    """Images turned by a uniform angle or shifted by uniform amounts, bilinear, zero outside.

    Args:
      images: [count, height, width, channels].
      transform: "r90" turns by up to 90 degrees either way, "r180" by up to 180, "translated" shifts by up to 8 of 28
        pixels (the same share of other sizes) along both axes, "none" does nothing.
      seed: of the draws; 1 for training images, 0 for test images in the published experiments.
    """
    if transform == "none":
        return images
    count = len(images)
    draws = np.random.default_rng(seed).uniform(-1, 1, (count, 2))
    coefficients = np.zeros((count, 6), np.float32)
    if transform == "translated":
        # Half a width is 1 between the centres of the outer pixels.
        coefficients[:, :2] = draws * 2 * _PIXELS / 27
    else:
        coefficients[:, 2] = draws[:, 0] * (math.pi if transform == "r180" else math.pi / 2)
    turn = jax.jit(jax.vmap(lambda image, own: resample(image, affine_matrices(own))))
    parts = [
        np.asarray(turn(jnp.asarray(images[at : at + _CHUNK]), coefficients[at : at + _CHUNK]))
        for at in range(0, count, _CHUNK)
    ]
    return np.concatenate(parts)


def _scaled(images: Images) -> np.ndarray:
    return (images.pixels[..., None] / 255).astype(np.float32)


def _diabetes(rng: np.random.Generator) -> Dataset:
    """Standardised by the training examples."""
    inputs, targets = optional_module("sklearn.datasets", extra="evidence").load_diabetes(return_X_y=True)
    split = _held_out(inputs, targets[:, None], rng)
    mean, spread = split.train.mean(0), split.train.std(0)
    middle, unit = split.train_targets.mean(), split.train_targets.std()
    return Dataset(
        ((split.train - mean) / spread).astype(np.float32),
        ((split.train_targets - middle) / unit).astype(np.float32),
        ((split.test - mean) / spread).astype(np.float32),
        ((split.test_targets - middle) / unit).astype(np.float32),
        float(unit),
    )


def _held_out(
    inputs: np.ndarray, targets: np.ndarray, rng: np.random.Generator, share: float = 0.25
) -> Dataset:
    order = rng.permutation(len(inputs))
    train, test = np.split(order, [round((1 - share) * len(inputs))])
    return Dataset(inputs[train], targets[train], inputs[test], targets[test])
