"""draft"""
from __future__ import annotations
import numpy as np, torch, math
from .torus import Torus, torus
from .blocks import Blocks, minimise, _holds

def symbols(data, index=slice(None)):
    c, s = data.waves(data.frequencies()[index])
    T = len(data.taps)
    flat = data.weights.mid.reshape(T, -1)
    shape = (-1, *data.weights.mid.shape[1:])
    return (c.mid @ flat + 1j * (s.mid @ flat)).reshape(shape)

def prepare(data, device="cpu"):
    m, n = data.inputs, data.units
    live = data.live()
    W = torch.as_tensor(symbols(data), device=device)
    size = torch.ones(n, dtype=torch.float64, device=device)
    for layer in data.layers:
        rows = W[:, layer].clone()
        rows[:, :, m:] *= size
        size[layer] = float(rows.abs().square().sum((1,2)).max().sqrt()) or 1.0
    W[:, :, m:] *= size
    W[:, :n] /= size[:, None]
    gain = float(torch.linalg.matrix_norm(W[:, n:]).max()) or 1.0
    W[:, n:] /= gain
    return W, size, gain

def peel(W, data):
    """start"""
    m, n = data.inputs, data.units
    Fo = W[:, n:]
    Q = Fo.mH @ Fo
    lam = torch.zeros(n, dtype=torch.float64, device=W.device)
    for layer in reversed(data.layers):
        a, b = m + layer.start, m + layer.stop
        Qgg = Q[:, a:b, a:b]
        size = 1.5 * max(float(torch.linalg.eigvalsh(Qgg)[:, -1].max()), 1e-200)
        lam[layer] = size
        al = torch.as_tensor(data.alpha[layer])[:, None]; be = torch.as_tensor(data.beta[layer])[:, None]
        c = W[:, layer, :a]
        cross = size * (al + be) * c + Q[:, a:b, :a]
        inner = 2 * size * torch.eye(b - a, dtype=W.dtype) - Qgg
        Q = Q[:, :a, :a] + cross.mH @ torch.linalg.solve(inner, cross) - 2 * size * c.mH @ (al * be * c)
    return 1.5 * float(torch.linalg.eigvalsh(Q)[:, -1].max()), lam

def family(W, data):
    m, n = data.inputs, data.units
    d = m + n
    V = W[:, :n]
    units = torch.zeros(n, d, dtype=W.dtype); units[:, m:] = torch.eye(n)
    al = torch.as_tensor(data.alpha)[:, None]; be = torch.as_tensor(data.beta)[:, None]
    P = units - al * V; Q = units - be * V
    Fo = W[:, n:]
    e = torch.zeros(1 + n, d, dtype=torch.float64); e[0, :m] = 1
    return Blocks(e, P, Q, Fo.mH @ Fo, slice(1, 1 + n), 0 if data.alpha.any() else n)
