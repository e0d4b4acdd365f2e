"""For checker.py: reading networks that are files of layers, dense ones or convolutions.

It imports the standard library and NumPy.
"""

# mypy: ignore-errors
import hashlib
import json
from itertools import pairwise
from math import prod
from types import SimpleNamespace

import numpy as np

WIDEST = 4096
KEYS = [{"convolve", "stride", "padding", "padding_mode"}, {"activate", "name"}, {"pool"}]
KEYS += [{"add", "skip"}, {"head"}]


def need(holds, message):
    if not holds:
        raise ValueError(message)


def perceptron(arrays):
    """The system of W0 b0 W1 b1 …: [z; y] from [x; z] by a matrix with weights along its diagonal.

    These arrays are taken out."""
    count = sum(name[0] == "W" for name in arrays)
    W = [arrays.pop(f"W{i}") for i in range(count)]
    need(all(w.shape[1] == len(v) for v, w in pairwise(W)), "widths do not fit")
    # Adding 0.0 turns -0.0 into 0.0, as the products do by which sdplip composes layers.
    zero = 0.0 if len(W) > 1 else -0.0
    n, m = sum(map(len, W[:-1])), W[0].shape[1]
    need((n + len(W[-1])) * (m + n) <= 1 << 27, "the model is too large")
    full, row, column = np.zeros((n + len(W[-1]), m + n)), 0, 0
    bias = [np.broadcast_to(arrays.pop(f"b{i}", 0.0), len(w)) + zero for i, w in enumerate(W)]
    for w in W:
        full[row : row + len(w), column : column + w.shape[1]] = w + zero
        row, column = row + len(w), column + w.shape[1]
    need({*arrays} <= {"alpha", "beta", "activation"}, f"it has arrays {', '.join(arrays)}, too")
    net = {"A": full[:n, m:], "B": full[:n, :m], "C": full[n:, m:], "D": full[n:, :m]}
    return net | {"b": np.concatenate(bias)[:n], "c": np.concatenate(bias)[n:]}


def images(arrays):
    """The network in the arrays of a file and the text of its stages, or in K0 b0 K1 b1 …"""
    text = arrays.pop("stages", None)
    text, arrays = chain(arrays) if text is None else (str(text), arrays)
    content, left, found = json.loads(text), dict(arrays), []
    need({*content} == {"channels", "size", "stages"}, "the stages are no description")
    need(json.dumps(content) == text, "the stages are not as sdplip writes them")
    h = hashlib.sha256(b"sdplip convolutions 1" + text.encode())
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key], dtype="<f8")
        h.update(f"{key}{array.shape}".encode() + array.tobytes())
    shape, fine = (content["channels"], *content["size"]), strides(content["stages"])
    need(len(shape) == 3 and all(map(whole, shape)), "channels and size are no whole numbers")
    need(shape[0] * prod(fine) <= WIDEST, "its strides are too large")
    stages, last = placed(content["stages"], left, shape, fine, found)
    need(stages and not left, "the stages are not those of the arrays")
    every = [*stages]
    H = stages.pop().W if stages[-1].kind == "head" else None
    outputs = prod(last) if H is None else len(H)
    H = None if H is None else H.reshape(len(H), last[0], -1)
    mean = H is not None and H.shape[2] > 1 and (H[:, :, :1] == H).all()
    units = [stage for stage in found if stage.kind == "units"]
    return {
        **{"every": every, "stages": stages, "head": H, "mean": mean, "start": shape, "fine": fine},
        **{"linear": [stage for stage in found if stage.kind == "linear"]},
        **{"inputs": shape[0] * prod(fine), "sha256": h.hexdigest()},
        **{"sizes": [prod(shape), sum(prod(stage.shape) for stage in units), outputs]},
        **{
            "names": [stage.name for stage in units for _ in stage.slopes[0]],
            "kind": "convolution",
        },
        **{"alpha": [slope for stage in units for slope in stage.slopes[0]]},
        **{"beta": [slope for stage in units for slope in stage.slopes[1]]},
    }


def chain(arrays):
    """The text and the arrays that describe K0 b0 K1 b1 … with units between."""
    size = [int(v) for v in np.ravel(arrays.pop("size", 28))]
    low, high = (arrays.pop(key, np.array(v)) for key, v in (("alpha", 0.0), ("beta", 1.0)))
    a, b = float(low), float(high)
    guess = f"leaky_relu({a!r})" if b == 1 and 0 < a < 1 else "unknown"
    name = str(arrays.pop("activation", "relu" if (a, b) == (0, 1) else guess))
    stages, kept = [], {}
    for i in range(sum(key[0] == "K" for key in arrays)):
        K, k = arrays.pop(f"K{i}"), 2 * i
        if i:
            stages.append({"activate": k - 1, "name": name})
            kept |= {f"alpha{k - 1}": low.reshape(1), f"beta{k - 1}": high.reshape(1)}
        kept |= {f"K{k}": K, f"b{k}": np.broadcast_to(arrays.pop(f"b{i}", 0.0), len(K))}
        ends = [end for side in K.shape[2:] for end in ((side - 1) // 2, side // 2)]
        plain = {"stride": [1, 1], "padding": ends, "padding_mode": "zeros"}
        stages.append({"convolve": k, **plain})
    need(not arrays, f"the model has the arrays {', '.join(arrays)}")
    content = {"channels": kept["K0"].shape[1], "size": [size[0], size[-1]], "stages": stages}
    return json.dumps(content), kept


def whole(value, least=1):
    return type(value) is int and least <= value < 1 << 20


def strides(packed):
    """The product of the strides per axis, the same on every path."""
    total = (1, 1)
    for item in packed:
        step = item.get("stride") or item.get("pool") or (1, 1)
        if "add" in item:
            step = strides(item["add"])
            need(step == strides(item["skip"]), "the strides of a sum differ")
        need(len(step) == 2 and all(map(whole, step)), "strides are no whole numbers")
        total = (total[0] * step[0], total[1] * step[1])
    return total


def placed(packed, arrays, shape, fine, found):
    """The stages with their arrays and the images that they meet; all are listed in `found`."""
    stages = []
    for item in packed:
        need({*item} in KEYS, f"{item} is no stage")
        stage = SimpleNamespace(shape=shape, fine=fine, kind="linear")
        if "pool" in item or "convolve" in item:
            if "pool" in item:
                step, pads, mode = item["pool"], [0, 0, 0, 0], "zeros"
                taps = np.full(step, 1 / (step[0] * step[1]))
                K, b = np.eye(shape[0])[:, :, None, None] * taps, np.zeros(shape[0])
            else:
                K, b = (arrays.pop(f"{key}{item['convolve']}") for key in "Kb")
                step, pads, mode = item["stride"], item["padding"], item["padding_mode"]
                need(b.shape == (len(K),), "a bias does not fit")
            need(K.ndim == 4 and K.shape[1] == shape[0] and K.size, "channels do not fit")
            need(len(pads) == 4 and all(whole(v, 0) for v in pads), "padding is no whole number")
            need(mode in ("zeros", "circular"), f"padding is {mode}")
            room = [shape[1 + a] + sum(pads[2 * a : 2 * a + 2]) - K.shape[2 + a] for a in (0, 1)]
            need(min(room) >= 0, "a kernel is larger than its image")
            fine = tuple(fine[a] // step[a] for a in (0, 1))
            shape = (len(K), *(room[a] // step[a] + 1 for a in (0, 1)))
            stage.K, stage.b, stage.step, stage.pads, stage.mode = K, b, step, pads[::2], mode
            stage.after, stage.coarse = shape[1:], fine
        elif "activate" in item:
            stage.kind, stage.name = "units", item["name"]
            slopes = [arrays.pop(f"{key}{item['activate']}") for key in ("alpha", "beta")]
            stage.slopes = [np.broadcast_to(slope, shape[0]) for slope in slopes]
        elif "add" in item:
            stage.kind = "add"
            stage.body, end = placed(item["add"], arrays, shape, fine, found)
            stage.skip, other = placed(item["skip"], arrays, shape, fine, found)
            need(end == other, "the two sides of a sum differ")
            step, shape = strides(item["add"]), end
            fine = tuple(fine[a] // step[a] for a in (0, 1))
        else:
            stage.kind = "head"
            stage.W, stage.b = (arrays.pop(f"{key}{item['head']}") for key in "Wb")
            fits_all = stage.W.ndim == 2 and stage.W.shape[1] == prod(shape)
            need(fits_all and stage.b.shape == stage.W.shape[:1], "head")
            need(item is packed[-1] and not arrays, "a head is not the last stage")
        stages.append(stage)
        found.append(stage)
    return stages, shape
