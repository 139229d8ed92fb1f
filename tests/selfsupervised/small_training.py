"""A small network on real digits, for tests of training."""

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from jaxlab.selfsupervised import ConvNet, Networks, Perceptron, Views, init_training, train_step

STILL = Views(crop_area=(1, 1), crop_aspect=(1, 1), flip=0, jitter=0, greyscale=0, solarise=0)
IMAGES = (load_digits().images[:64, :, :, None] / 16).astype(np.float32)


def networks(axis_name=None, seed=0):
    rngs = nnx.Rngs(seed)
    encoder = ConvNet(widths=(8, 16), axis_name=axis_name, rngs=rngs)
    projector = Perceptron((16, 24, 12), axis_name=axis_name, rngs=rngs)
    predictor = Perceptron((12, 24, 12), last_bias=True, axis_name=axis_name, rngs=rngs)
    return Networks(encoder, projector, predictor)


def begin(method, optimiser=None, views=STILL, **options):
    optimiser = optax.sgd(0.1) if optimiser is None else optimiser
    graph, state = init_training(networks(options.get("axis_name")), optimiser, method)
    return graph, state, train_step(graph, optimiser, method, views, **{"steps": 10, **options})
