"""Random networks, for tests of what is done with systems."""

import itertools

import numpy as np

from sdplip.system import System


def mlp(rng, *sizes, activation="relu", change=lambda W, k: W):
    """A perceptron of layers of these sizes, whose weights keep lengths about as they are."""
    weights = [
        change(rng.normal(size=(b, a)) / np.sqrt(a), k)
        for k, (a, b) in enumerate(itertools.pairwise(sizes))
    ]
    biases = [0.3 * rng.normal(size=len(W)) for W in weights]
    return System.feedforward(weights, biases, activation)
