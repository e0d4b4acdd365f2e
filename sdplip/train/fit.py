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
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from .._arrays import write_atomically
from ..errors import InvalidInput, NotConverged
from .augment import Augmentation
from .config import RunConfig
from .data import Splits, pixels
from .loss import lipschitz_margin, margin_cross_entropy, multi_margin
from .models import build, linf_bounds, logit_scale, norm_product
from .optim import optimizer, schedule

RESUME_FILE = "last.ckpt"
CHECKED = 50
"""Every so many steps the loss is looked at, which waits for the device."""

_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16-mixed": "bf16-mixed"}
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
    chosen = splits.first(config.train.train_images)
    model = build(config.model, seed=config.train.seed)
    module = _Classifier(model, config, tuple(t.to(target) for t in chosen.train))
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
            precision=_PRECISIONS[config.train.precision],
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


def steps(config: RunConfig, splits: Splits, device: str = "auto") -> Iterator[None]:
    """The optimiser's steps of one epoch, on a model that is thrown away: to see what they take."""
    target = pick_device(device)
    model = build(config.model, seed=config.train.seed).to(target)
    module = _Classifier(model, config, tuple(t.to(target) for t in splits.train)).to(target)
    chosen = optimizer(model.parameters(), config.train)
    for index, batch in enumerate(module.train_dataloader()):
        chosen.zero_grad()
        module.training_step(batch, index).backward()
        chosen.step()
        yield


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

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Images, labels and a seed for what is random about this batch."""
        x, y = self.data
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(x), generator=generator).to(x.device)
        seeds = torch.randint(2**62, (len(self),), generator=generator).tolist()
        for part, seed in zip(order.split(self.size), seeds, strict=True):
            yield x[part], y[part], seed


class _Classifier(pl.LightningModule):
    def __init__(self, model: nn.Sequential, config: RunConfig, data: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.model, self.config, self.data = model, config.train, data
        self.accuracy = MulticlassAccuracy(num_classes=config.model.num_classes, average="micro")
        self.losses: list[Tensor] = []
        self.scale = logit_scale(model, config.model)
        self.augment = Augmentation(
            config.train.augment, config.model.input_shape, config.model.mean
        )

    def train_dataloader(self) -> _Batches:
        # The order depends on seed and epoch alone, so that a resumed run sees the same batches.
        x, y = self.data
        return _Batches(
            (x, y), self.config.batch_size, self.config.seed * 100_003 + self.current_epoch
        )

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def training_step(self, batch: tuple[Tensor, Tensor, int], index: int) -> Tensor:
        x, y, seed = batch
        logits = self.model(self.augment(pixels(x), seed)).float()
        config = self.config
        if config.loss == "margin":
            loss = margin_cross_entropy(
                logits,
                y,
                offset=config.offset,
                temperature=config.temperature,
                lipschitz=self.scale,
            )
        elif config.loss == "lipschitz_margin":
            bound = norm_product(self.model)
            loss = lipschitz_margin(logits, y, bound, weight=config.offset)
        elif config.loss == "multi_margin":
            loss = multi_margin(logits, y, offset=config.offset, lipschitz=self.scale)
        else:
            loss = F.cross_entropy(logits, y)
        if config.linf_penalty:
            loss = loss + config.linf_penalty * sum(linf_bounds(self.model))
        if index % CHECKED == 0:
            _check_finite(float(loss.detach()), self.current_epoch + 1)
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
        chosen = optimizer(self.model.parameters(), self.config)
        steps = len(self.train_dataloader()) * self.config.epochs
        return {
            "optimizer": chosen,
            "lr_scheduler": {
                "scheduler": schedule(chosen, self.config, steps),
                "interval": "step",
            },
        }


def _check_finite(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise NotConverged(
            f"training: the loss is {loss} in epoch {epoch}. "
            "Lower --lr, or for an equilibrium layer raise the solver's max_steps."
        )


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
        if self.module.device.type == "cuda":
            torch.cuda.synchronize(self.module.device)
        self.step_ms.append(1e3 * (time.perf_counter() - self._step))

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        metrics = self.module.epoch_metrics()
        epoch = len(self.history) + 1
        _check_finite(metrics["loss"], epoch)
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
