"""Encoders and projectors against torch modules with the same weights, in both modes."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from jaxlab.errors import InputError
from jaxlab.selfsupervised import ConvNet, Perceptron, ResNet18, networks

IMAGES = np.random.default_rng(0).uniform(size=(4, 16, 16, 3)).astype(np.float32)


def conv(ours):
    kernel = np.asarray(ours.kernel[...]).transpose(3, 2, 0, 1)
    twin = nn.Conv2d(*kernel.shape[1::-1], kernel.shape[2], ours.strides, kernel.shape[2] // 2, bias=False)
    twin.weight.data = torch.tensor(kernel)
    return twin


def norm(ours, kind=nn.BatchNorm2d):
    twin = kind(len(ours.scale[...]))
    # Weights that differ from their start, so that a mix-up would show.
    for leaf, own, start in ((ours.scale, twin.weight, 0.5), (ours.bias, twin.bias, -0.5)):
        values = np.linspace(start, start + 1, len(leaf[...]), dtype=np.float32)
        leaf[...] = jax.numpy.asarray(values)
        own.data = torch.tensor(values)
    twin.twin = ours
    return twin


class TorchBlock(nn.Module):
    def __init__(self, ours):
        super().__init__()
        self.branch = nn.Sequential(
            conv(ours.first), norm(ours.first_norm), nn.ReLU(), conv(ours.second), norm(ours.second_norm)
        )
        self.shortcut = (
            nn.Sequential(conv(ours.shortcut), norm(ours.shortcut_norm)) if ours.shortcut else nn.Identity()
        )

    def forward(self, x):
        return torch.relu(self.branch(x) + self.shortcut(x))


def torch_resnet(ours):
    pool = nn.Identity() if ours.small_images else nn.MaxPool2d(3, 2, 1)
    blocks = [TorchBlock(block) for block in ours.blocks]
    return nn.Sequential(
        conv(ours.stem), norm(ours.stem_norm), nn.ReLU(), pool, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def torch_convnet(ours):
    layers = []
    for convolution, own in zip(ours.convolutions, ours.norms, strict=True):
        layers += [conv(convolution), norm(own), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def torch_perceptron(ours):
    layers = []
    for number, layer in enumerate(ours.layers):
        kernel = np.asarray(layer.kernel[...]).T
        twin = nn.Linear(*kernel.shape[::-1], bias=layer.bias is not None)
        twin.weight.data = torch.tensor(kernel)
        if layer.bias is not None:
            twin.bias.data = torch.tensor(np.asarray(layer.bias[...]))
        layers += [
            twin,
            *([norm(ours.norms[number], nn.BatchNorm1d), nn.ReLU()] if number < len(ours.norms) else []),
        ]
    return nn.Sequential(*layers)


def assert_equal(ours, theirs, inputs, torch_inputs):
    for training in (True, False):
        ours.train() if training else ours.eval()
        theirs.train(training)
        with torch.no_grad():
            expected = theirs(torch.tensor(torch_inputs)).numpy()
        np.testing.assert_allclose(ours(inputs), expected, atol=1e-4, rtol=1e-4)
        # Running variances are of the sample in torch, of the population in flax.
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                own = module.twin
                np.testing.assert_allclose(own.mean[...], module.running_mean.numpy(), atol=1e-4)
                module.running_var = torch.tensor(np.asarray(own.var[...]))


@pytest.mark.parametrize("small_images", [True, False])
def test_resnet18_equals_torch(small_images):
    ours = ResNet18(width=8, small_images=small_images, rngs=nnx.Rngs(0))
    assert ours.features == 64
    assert_equal(ours, torch_resnet(ours), IMAGES, IMAGES.transpose(0, 3, 1, 2))


def test_the_whole_resnet18_has_the_published_number_of_parameters():
    shapes = nnx.eval_shape(lambda: ResNet18(rngs=nnx.Rngs(0)))
    number = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))
    # 11,689,512 with the large stem and 1000 classes (arXiv:1512.03385, torchvision), less what differs.
    assert number == 11_689_512 - 513 * 1000 - 64 * 3 * (49 - 9)


def test_the_small_network_equals_torch():
    ours = ConvNet(channels=3, widths=(4, 8), rngs=nnx.Rngs(0))
    assert ours.features == 8
    assert_equal(ours, torch_convnet(ours), IMAGES, IMAGES.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("pixels", "stride"), [((4, 3), 2), ((2, 2), 1), ((1, 1), 1), ((5, 5), 2)])
def test_convolutions_of_few_pixels_and_their_gradients_equal_torchs(pixels, stride):
    """Fewer places than the kernel spans take a way of their own; the last case does not."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, *pixels, 5)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 5, 6)).astype(np.float32)
    theirs = [
        torch.tensor(array, requires_grad=True)
        for array in (images.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1))
    ]
    expected = nn.functional.conv2d(*theirs, stride=stride, padding=1)
    weights = rng.normal(size=expected.shape).astype(np.float32)
    expected.backward(torch.tensor(weights))
    layer = nnx.Conv(
        5, 6, (3, 3), strides=stride, padding=((1, 1), (1, 1)), use_bias=False,
        conv_general_dilated=networks._convolve, rngs=nnx.Rngs(0),
    )  # fmt: skip
    graph, params = nnx.split(layer)

    def apply(images, kernel):
        return nnx.merge(graph, jax.tree.map(lambda _: kernel, params))(images)

    found, pull = jax.vjp(apply, images, kernel)
    np.testing.assert_allclose(found, expected.detach().numpy().transpose(0, 2, 3, 1), atol=1e-4)
    for own, other, order in zip(
        pull(weights.transpose(0, 2, 3, 1)), theirs, ((0, 2, 3, 1), (2, 3, 1, 0)), strict=True
    ):
        np.testing.assert_allclose(own, other.grad.numpy().transpose(order), atol=1e-4)


@pytest.mark.parametrize("last_bias", [True, False])
def test_projectors_equal_torch(last_bias):
    ours = Perceptron((6, 9, 7, 5), last_bias=last_bias, rngs=nnx.Rngs(0))
    rows = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    assert_equal(ours, torch_perceptron(ours), rows, rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvNet(widths=(), rngs=nnx.Rngs(0)), r"widths is \(\)"),
        (lambda: ResNet18(width=0, rngs=nnx.Rngs(0)), r"width is \(0,\)"),
        (lambda: Perceptron((4,), rngs=nnx.Rngs(0)), "at least an input and an output width"),
    ],
)
def test_sizes_out_of_range_are_input_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()
