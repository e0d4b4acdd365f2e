"""Configurations that train in a second."""

from sdplip.train import override, preset


def quick(layer, splits, **changes):
    small = {
        "width": 8,
        "depth": 1,
        "epochs": 2,
        "images": 30,
        "steps": 3,
        "restarts": 1,
        "pair_units": 0,
    }
    return override(preset(layer, splits), **small | changes)
