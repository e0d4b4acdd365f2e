"""Files: trained models as safetensors with JSON metadata, and everything written atomically."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._arrays import write_atomically
from .._json import to_json
from ..errors import InvalidInput
from .models import ModelConfig, build

FORMAT = "sdplip-model-1"
MODEL_FILE = "model.safetensors"
STATES = ("next.ckpt", "last.ckpt", "previous.ckpt")
"""Training states of an unfinished run, newest first."""


def write_json(path: Path, document: Any) -> None:
    """Write `document` atomically, ending in a newline."""
    text = to_json(document) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Parse a JSON file; InvalidInput names the file when it is missing or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInput(f"{path} is not a readable JSON file: {error}.") from error


def save_model(path: Path, model: nn.Module, config: ModelConfig) -> None:
    """Write the weights and what rebuilds the model around them, atomically."""
    from safetensors.torch import save

    tensors = {
        key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()
    }
    metadata = {
        "format": FORMAT,
        "model": config.to_dict(),
        "versions": {name: version(name) for name in ("sdplip", "torch")},
    }
    content = save(tensors, metadata={"sdplip": json.dumps(metadata)})
    write_atomically(path, lambda p: p.write_bytes(content))


def model_file(path: str | Path) -> Path:
    """The model file at `path`: the file itself, or the one in a run directory."""
    path = Path(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        inside = f": it holds no {MODEL_FILE}" if path.is_dir() else ""
        raise InvalidInput(
            f"no trained model at {path}{inside}. Give a run directory that sdplip train or "
            "sdplip compare has finished, or its model.safetensors."
        )
    return file


def load_model(path: str | Path) -> tuple[nn.Sequential, ModelConfig]:
    """Rebuild a trained model, in eval mode on the CPU, from a run directory or model file.

    Only families in LAYERS and the two baselines are ever built, by name. Raises InvalidInput
    when the file is damaged, was written by something else, or its tensors do not fit the
    configuration it states: keys, shapes, dtypes, finiteness.
    """
    from safetensors import SafetensorError, safe_open

    file = model_file(path)
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"{file} is not a readable safetensors file: {error}.") from error
    config = _config(file, metadata.get("sdplip"))
    model = build(config, seed=0)
    _check_tensors(file, tensors, model.state_dict())
    try:
        model.load_state_dict(tensors)
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error}") from error
    return model.eval(), config


def _config(file: Path, text: str | None) -> ModelConfig:
    try:
        metadata = json.loads(text or "null")
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{file}: its metadata is not JSON: {error}.") from error
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != FORMAT:
        raise InvalidInput(
            f"{file} has format {found!r}, but this version reads {FORMAT!r}. "
            "Train the model again, or use the version of sdplip that wrote it."
        )
    try:
        return ModelConfig.from_dict(metadata.get("model"))
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error}") from error


def _check_tensors(file: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or unexpected:
        raise InvalidInput(
            f"{file} does not fit the model it states: missing {sorted(missing)}, "
            f"unexpected {sorted(unexpected)}. The file was changed or is damaged."
        )
    for key, tensor in found.items():
        wanted = expected[key]
        # A layer's options and what its solver has learned: text of any length, which it reads.
        free = key.endswith("_extra_state") and tensor.ndim == 1
        if (tensor.shape != wanted.shape and not free) or tensor.dtype != wanted.dtype:
            raise InvalidInput(
                f"{file}: {key} is {tensor.dtype} {tuple(tensor.shape)}, but the model has "
                f"{wanted.dtype} {tuple(wanted.shape)}. The file was changed or is damaged."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InvalidInput(
                f"{file}: {key} holds {int((~tensor.isfinite()).sum())} values that are not "
                "finite. The training diverged or the file was changed; train again."
            )
