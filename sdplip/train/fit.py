"""The training loop, on Lightning."""

from __future__ import annotations

import logging
import math
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from .._arrays import write_atomically
from ..errors import InvalidInput, NotConverged
from ..layers import lipschitz_bound
from .config import RunConfig, TrainConfig
from .data import Splits
from .loss import margin_cross_entropy
from .models import build, linf_bounds, norm_of, promises

RESUME_FILE = "last.ckpt"
OnEpoch = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class RunResult:
    """A trained model, in eval mode on the CPU, and how it came about.

    `history` has one entry per epoch (loss and accuracy on the training batches); `step_ms` is
    the median time of a training step.
    """

    model: nn.Sequential
    history: list[dict[str, float]]
    step_ms: float
    seconds: float
    device: str


def pick_device(device: str = "auto") -> torch.device:
    """The device that "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1" means.

    Raises InvalidInput for what is no device or is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InvalidInput(f"device {device!r} is not one. Use auto, cpu or cuda.") from error
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise InvalidInput(
            f"device {device!r} is not there: {count} CUDA devices. Use auto or cpu."
        )
    if chosen.type not in ("cpu", "cuda"):
        raise InvalidInput(f"device {device!r} is not supported. Use auto, cpu or cuda.")
    return chosen


def train(
    config: RunConfig,
    splits: Splits,
    *,
    device: str = "auto",
    resume_dir: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> RunResult:
    """Train the model that `config` describes on `splits.train`.

    With `resume_dir`, the state is kept there after every epoch, and a run found there continues
    where it stopped, to the same result. `on_epoch(epoch, metrics)` is called after each epoch.

    Raises NotConverged when the loss stops being finite, KeyboardInterrupt when interrupted.
    """
    target = pick_device(device)
    model = build(config.model, seed=config.train.seed)
    module = _Classifier(model, config, tuple(t.to(target) for t in splits.train))
    recorder = _Recorder(module, on_epoch)
    callbacks: list[Callback] = [recorder]
    resume = None
    if resume_dir is not None:
        callbacks.append(_KeepState(resume_dir / RESUME_FILE))
        resume = resume_dir / RESUME_FILE if (resume_dir / RESUME_FILE).is_file() else None
    started = time.perf_counter()
    with _quiet():
        trainer = pl.Trainer(
            accelerator="gpu" if target.type == "cuda" else "cpu",
            devices=[target.index or 0] if target.type == "cuda" else 1,
            max_epochs=config.train.epochs,
            reload_dataloaders_every_n_epochs=1,
            callbacks=callbacks,
            enable_checkpointing=resume_dir is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            default_root_dir=resume_dir,
        )
        _fit(trainer, module, resume)
    return RunResult(
        model.cpu().eval(),
        recorder.history,
        statistics.median(recorder.step_ms) if recorder.step_ms else math.nan,
        recorder.earlier_seconds + time.perf_counter() - started,
        str(target),
    )


def _fit(trainer: pl.Trainer, module: pl.LightningModule, resume: Path | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=resume, weights_only=True)
    except SystemExit:
        # Lightning turns Ctrl-C into exit code 1 and switches the signal off.
        raise KeyboardInterrupt from None
    finally:
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning announces hardware, tips and worker counts; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Batches:
    """Shuffled batches of tensors that already lie on the device; the order is the seed's."""

    def __init__(self, data: tuple[Tensor, Tensor], size: int, seed: int) -> None:
        self.data, self.size, self.seed = data, size, seed

    def __len__(self) -> int:
        return -(-len(self.data[0]) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.data
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
        for part in order.to(x.device).split(self.size):
            yield x[part], y[part]


class _Classifier(pl.LightningModule):
    def __init__(self, model: nn.Module, config: RunConfig, data: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.model, self.config, self.data = model, config.train, data
        layer = config.model.layer
        self.accuracy = MulticlassAccuracy(num_classes=int(data[1].max()) + 1, average="micro")
        self.losses: list[Tensor] = []
        promised = promises(layer) and norm_of(layer) == 2
        self.lipschitz = lipschitz_bound(model) if promised else 1.0

    def train_dataloader(self) -> _Batches:
        # The order depends on seed and epoch alone, so that a resumed run sees the same batches.
        x, y = self.data
        return _Batches(
            (x, y), self.config.batch_size, self.config.seed * 100_003 + self.current_epoch
        )

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        logits = self.model(x)
        if self.config.loss == "margin":
            loss = margin_cross_entropy(
                logits,
                y,
                offset=self.config.offset,
                temperature=self.config.temperature,
                lipschitz=self.lipschitz,
            )
        else:
            loss = F.cross_entropy(logits, y)
        if self.config.linf_penalty:
            loss = loss + self.config.linf_penalty * sum(linf_bounds(self.model))
        self.losses.append(loss.detach())
        self.accuracy.update(logits.detach(), y)
        return loss

    def epoch_metrics(self) -> dict[str, float]:
        """Mean loss and accuracy since the last call."""
        metrics = {
            "loss": float(torch.stack(self.losses).double().mean()),
            "accuracy": float(self.accuracy.compute()),
        }
        self.losses.clear()
        self.accuracy.reset()
        return metrics

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config.lr)
        steps = len(self.train_dataloader()) * self.config.epochs
        scheduler = _schedule(optimizer, self.config, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps)
    factor: Callable[[float], float] = {
        "constant": lambda t: 1.0,
        # [ARAUJO]: up to the rate at 40 % of the steps, down to a twentieth at 80 %, then to zero.
        "piecewise": lambda t: float(np.interp(t, [0, 0.4, 0.8, 1], [0, 1, 0.05, 0])),
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
        # [LBEN]: a tenth after each third of the epochs.
        "step": lambda t: 0.1 ** math.floor(3 * t),
    }[config.schedule]
    # The first step of a warm-up must not be lost at rate zero.
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: factor((k + 0.5) / steps))


class _Recorder(Callback):
    """Epoch metrics and step times; part of the saved state, so that a resumed run keeps them."""

    def __init__(self, module: _Classifier, on_epoch: OnEpoch | None) -> None:
        self.module, self.on_epoch = module, on_epoch
        self.history: list[dict[str, float]] = []
        self.step_ms: list[float] = []
        self.earlier_seconds = 0.0
        self._started = time.perf_counter()
        self._step = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self._step = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        self.step_ms.append(1e3 * (time.perf_counter() - self._step))

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        metrics = self.module.epoch_metrics()
        epoch = len(self.history) + 1
        if not math.isfinite(metrics["loss"]):
            raise NotConverged(
                f"training: the loss is {metrics['loss']} in epoch {epoch}. "
                "Lower --lr, or for an equilibrium layer raise the solver's max_steps."
            )
        self.history.append(metrics)
        if self.on_epoch is not None:
            self.on_epoch(epoch, metrics)

    def state_dict(self) -> dict[str, Any]:
        seconds = self.earlier_seconds + time.perf_counter() - self._started
        return {"history": self.history, "step_ms": self.step_ms[-1000:], "seconds": seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = [dict(entry) for entry in state["history"]]
        self.step_ms = list(state["step_ms"])
        self.earlier_seconds = state["seconds"]


class _KeepState(Checkpoint):
    """The whole training state after every epoch; Lightning runs a `Checkpoint` last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        write_atomically(self.path, trainer.save_checkpoint)
