"""Random networks of convolutions for the tests."""

import numpy as np

from sdplip.convolutional import Activate, Add, Convolve, ConvSystem, Head, Pool


def kernel(rng, *shape):
    return rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))


def random_network(rng, mode="zeros"):
    """A few stages of every kind on small images, with any padding that the mode allows."""
    size = (int(rng.integers(4, 7)), int(rng.integers(4, 7)))
    c = int(rng.integers(1, 3))
    if mode == "circular":
        size = (4 * int(rng.integers(1, 3)), 4)
    stages, channels, shape = [], c, size

    def convolve(rows, sides=(1, 2, 3), padding=None):
        k = rng.choice(sides, 2)
        if mode == "circular":
            padding = "same"
        elif padding is None:
            padding = [(k[0] - 1) // 2, k[0] // 2, (k[1] - 1) // 2, k[1] // 2]
            padding = [int(p + rng.integers(0, 2)) for p in padding]
        bias = rng.normal(size=rows)
        return Convolve(kernel(rng, rows, channels, *k), bias, padding=padding, padding_mode=mode)

    def activate():
        return [
            Activate("relu"),
            Activate("leaky_relu(0.3)"),
            Activate("tanh"),
            Activate("relu", -0.2, [1.0] * channels),
        ][rng.integers(4)]

    for _ in range(int(rng.integers(1, 4))):
        match rng.integers(5):
            case 0 | 1:
                rows = int(rng.integers(1, 3))
                stages.append(convolve(rows))
                channels = rows
                if rng.random() < 0.8:
                    stages.append(activate())
            case 2:
                body = (activate(), convolve(channels, padding="same"), activate())
                skip = () if rng.random() < 0.5 else (convolve(channels, padding="same"),)
                stages.append(Add(body, skip))
            case 3 if min(shape) >= 4:
                stages.append(Pool(2))
            case 4 if min(shape) >= 4:
                weight = kernel(rng, channels, channels, 2, 2)
                stages.append(Convolve(weight, stride=2, padding="valid"))
                stages.append(activate())
        _, *shape = ConvSystem((*stages, Activate("relu")), c, size).shapes[-1]
    ending = rng.integers(4)
    network = ConvSystem((*stages, Activate("relu")), c, size)
    if ending == 0:
        stages.append(Head(kernel(rng, 2, network.outputs)))
    elif ending == 1:
        pixels = shape[0] * shape[1]
        stages.append(Head(np.repeat(kernel(rng, 2, channels), pixels, 1) / pixels))
    else:
        stages.append(convolve(int(rng.integers(1, 3))))
    return ConvSystem(tuple(stages), c, size)
