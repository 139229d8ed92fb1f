"""Each augmentation against another library's, and how often and how strongly views change."""

import colorsys
import dataclasses

import jax
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from jaxlab.errors import InputError
from jaxlab.selfsupervised import Views, augmentations, random_view

IMAGE = np.random.default_rng(0).uniform(size=(12, 14, 3)).astype(np.float32)
SQUARE = IMAGE[:, :12]
STILL = Views(crop_area=(1, 1), crop_aspect=(1, 1), flip=0, jitter=0, greyscale=0, solarise=0)
KEYS = jax.random.split(jax.random.key(0), 400)
GREY = np.random.default_rng(1).uniform(size=(8, 8, 1)).astype(np.float32)


@pytest.mark.parametrize("box", [(0, 0, 12, 14), (2, 3, 5, 7), (1, 0, 11, 4), (6, 6, 1, 1)])
def test_a_resized_crop_equals_torchs_antialiased_resize_of_the_box(box):
    top, left, height, width = box
    cut = torch.tensor(IMAGE[top : top + height, left : left + width]).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(cut, size=(12, 14), mode="bilinear", antialias=True)[0]
    found = augmentations.resized_crop(IMAGE, *box)
    np.testing.assert_allclose(found, expected.permute(1, 2, 0).numpy(), atol=1e-5)


@pytest.mark.parametrize("turns", [0.0, 0.1, -0.3, 0.5])
def test_hue_equals_colorsys(turns):
    expected = np.empty_like(IMAGE)
    for place in np.ndindex(*IMAGE.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, IMAGE[place]))
        expected[place] = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
    np.testing.assert_allclose(augmentations.adjust_hue(IMAGE, turns), expected, atol=2e-6)
    grey = np.full((2, 2, 3), 0.4, np.float32)
    np.testing.assert_allclose(augmentations.adjust_hue(grey, turns), grey, atol=1e-6)


def test_contrast_and_saturation_blend_with_greys():
    grey = IMAGE @ np.array([0.299, 0.587, 0.114], np.float32)
    contrast = np.clip(1.3 * IMAGE - 0.3 * grey.mean(), 0, 1)
    np.testing.assert_allclose(augmentations.adjust_contrast(IMAGE, 1.3), contrast, atol=1e-5)
    saturation = np.clip(0.6 * IMAGE + 0.4 * grey[..., None], 0, 1)
    np.testing.assert_allclose(augmentations.adjust_saturation(IMAGE, 0.6), saturation, atol=1e-5)
    np.testing.assert_allclose(
        augmentations.adjust_saturation(IMAGE, 0.0), grey[..., None].repeat(3, 2), atol=1e-5
    )


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_equals_scipy(sigma):
    expected = IMAGE
    for axis in (0, 1):
        expected = gaussian_filter1d(expected, sigma, axis=axis, mode="mirror", radius=6)
    np.testing.assert_allclose(augmentations.gaussian_blur(IMAGE, sigma), expected, atol=1e-5)


@pytest.fixture(scope="module")
def many():
    """400 views of one image, by settings."""

    def make(image, **changes):
        views = dataclasses.replace(STILL, **changes)
        return np.asarray(jax.jit(jax.vmap(lambda key: random_view(key, image, views)))(KEYS))

    return make


def test_without_changes_a_view_is_the_image(many):
    np.testing.assert_allclose(many(SQUARE), np.broadcast_to(SQUARE, (400, *SQUARE.shape)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("flip", lambda x: x[:, ::-1]),
        ("solarise", lambda x: np.where(x >= 0.5, 1 - x, x)),
        ("greyscale", lambda x: np.repeat((x @ np.array([0.299, 0.587, 0.114]))[..., None], 3, -1)),
    ],
)
def test_changes_come_as_often_as_asked(many, name, change):
    views = many(SQUARE, **{name: 0.3})
    changed = np.abs(views - SQUARE).max((1, 2, 3)) > 1e-3
    assert changed.mean() == pytest.approx(0.3, abs=0.08)
    np.testing.assert_allclose(
        views[changed], np.broadcast_to(change(SQUARE), views[changed].shape), atol=1e-5
    )


def test_crops_keep_to_their_areas_and_aspects():
    # Of an image that holds its own coordinates, a crop shows where it was taken.
    rows, columns = np.meshgrid(np.arange(100.0), np.arange(100.0), indexing="ij")
    image = (np.stack([rows, columns], -1) / 100).astype(np.float32)

    def crop(key):
        return augmentations.random_resized_crop(key, image, area=(0.2, 0.6), aspect=(0.75, 4 / 3))

    crops = np.asarray(jax.jit(jax.vmap(crop))(KEYS[:200]))
    heights = 100 * (crops[:, -1, 0, 0] - crops[:, 0, 0, 0])
    widths = 100 * (crops[:, 0, -1, 1] - crops[:, 0, 0, 1])
    area, aspect = heights * widths / 1e4, widths / heights
    assert 0.18 < area.min() < 0.24 and 0.55 < area.max() < 0.61
    assert 0.74 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.36
    assert area.mean() == pytest.approx(0.4, abs=0.03)


def test_grey_images_keep_one_channel_and_all_views_lie_between_0_and_1(many):
    settings = {
        "jitter": 1.0,
        "greyscale": 0.5,
        "solarise": 0.2,
        "blur": 0.5,
        "flip": 0.5,
        "crop_area": (0.2, 1),
    }
    for image in (GREY, IMAGE):
        views = many(image, **settings)
        assert views.shape[1:] == image.shape and views.min() >= 0 and views.max() <= 1 + 1e-6
        assert len(np.unique(views.reshape(400, -1)[:, 0])) > 300


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"flip": 1.5}, "flip is 1.5"),
        ({"contrast": -0.1}, "contrast is -0.1"),
        ({"hue": 0.6}, "hue is 0.6; it must lie between 0 and 0.5"),
        ({"crop_area": (0.5, 0.2)}, r"crop_area is \(0.5, 0.2\)"),
        ({"blur_sigma": (0.1, 3.0)}, "blur_sigma"),
    ],
)
def test_options_out_of_range_are_input_errors(option, message):
    with pytest.raises(InputError, match=message):
        Views(**option)
