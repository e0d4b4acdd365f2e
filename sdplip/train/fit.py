"""The training loop, on Lightning."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import os
import signal
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch import Tensor, nn

from ..errors import InvalidInput
from .config import RunConfig
from .data import Splits, pixels
from .data.augment import Augmentation
from .loss import lipschitz_margin, margin_cross_entropy, multi_margin
from .models import build, linf_bounds, logit_scale, norm_product
from .optim import optimizer, schedule
from .processes import launched, together
from .state import (
    CHECKED,
    Average,
    Batches,
    Files,
    KeepState,
    OnEpoch,
    Recorder,
    check_finite,
)

# Lightning sets it for the sake of forks, of which there are none; with it, torch asks the driver
# for its devices at every step of an optimiser.
os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)

_TRAININGS = itertools.count()
_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16-mixed": "bf16-mixed"}


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
    tensorboard: Path | None = None,
) -> RunResult:
    """Train the model that `config` describes on `splits.train`.

    With `resume_dir`, the state is kept there after every epoch and when interrupted, and a run
    found there continues where it stopped, to the same result. `on_epoch(epoch, metrics)` is called
    after each epoch. `tensorboard` is a directory for TensorBoard's records. Under torchrun every
    batch is shared by the processes, to the result of one process, up to rounding (and to what
    augmentation draws); all of them must see `resume_dir`.

    Raises NotConverged when the loss stops being finite, KeyboardInterrupt when interrupted: a
    first SIGINT or SIGTERM lets the batch finish. InvalidInput for a state in `resume_dir` of
    another model or recipe, and where states cannot be written.
    """
    processes, nodes = together()
    target = _own(pick_device(device), processes)
    chosen = splits.first(config.train.train_images)
    model = build(config.model, seed=config.train.seed)
    module = _Classifier(model, config, tuple(t.to(target) for t in chosen.train))
    keep = None if resume_dir is None else KeepState(resume_dir)
    recorder = Recorder(module, on_epoch, keep)
    average = Average(model, config.train.ema) if config.train.ema else None
    callbacks: list[Callback] = [c for c in (average, recorder, keep) if c is not None]
    resume = None if keep is None else keep.latest(module.run)
    logger = None
    if tensorboard is not None:
        logger = TensorBoardLogger(tensorboard.parent, name="", version=tensorboard.name)
    started = time.perf_counter()
    with _quiet():
        trainer = pl.Trainer(
            accelerator="gpu" if target.type == "cuda" else "cpu",
            devices=_devices(target, processes),
            num_nodes=nodes,
            strategy="ddp" if processes * nodes > 1 else "auto",
            use_distributed_sampler=False,
            accumulate_grad_batches=config.train.accumulate,
            max_epochs=config.train.epochs,
            precision=_PRECISIONS[config.train.precision],
            reload_dataloaders_every_n_epochs=1,
            callbacks=callbacks,
            # Not what Lightning makes of a cluster's variables.
            plugins=[TorchElasticEnvironment() if launched() else LightningEnvironment(), Files()],
            enable_checkpointing=resume_dir is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=logger or False,
            default_root_dir=resume_dir,
        )
        with recorder.on_interrupt(), _group(target, processes * nodes):
            _fit(trainer, module, recorder, resume)
    if recorder.interrupted:
        raise KeyboardInterrupt
    if average is not None:
        average.give(model)
    return RunResult(
        model.cpu().eval(),
        recorder.history,
        statistics.median(recorder.step_ms) if recorder.step_ms else math.nan,
        recorder.earlier_seconds + time.perf_counter() - started,
        str(target),
    )


def _own(target: torch.device, processes: int) -> torch.device:
    """The device of this process, one of several."""
    if target.type == "cpu" or processes == 1:
        return target
    count = torch.cuda.device_count()
    if target.index is not None or count < processes:
        raise InvalidInput(
            f"device {str(target)!r} is for {processes} processes, but there are {count} CUDA "
            "devices, of which each takes one. Use cuda and fewer processes, or cpu."
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def _devices(target: torch.device, processes: int) -> list[int] | int:
    if target.type == "cuda" and processes == 1:
        return [target.index or 0]
    return processes


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


def _fit(
    trainer: pl.Trainer, module: pl.LightningModule, recorder: Recorder, resume: Path | None
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=resume, weights_only=True)
    except SystemExit:
        # Lightning turns Ctrl-C into exit code 1 and switches the signal off.
        raise KeyboardInterrupt from None
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        if resume is None or recorder.began:
            raise
        raise InvalidInput(
            f"{resume} is no state of this run: {error!r}. Remove it, to go on from the one before "
            "it or from the start."
        ) from error
    finally:
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _group(target: torch.device, processes: int) -> Iterator[None]:
    """The group of `processes` processes, which is left in whatever way training ends."""
    if processes == 1:
        yield
        return
    torchs, rank, world = next(torch.distributed.rendezvous("env://"))
    # In torchrun's store the addresses of a former training still stand.
    store = torch.distributed.PrefixStore(f"training {next(_TRAININGS)}", torchs)
    backend, device = ("nccl", target) if target.type == "cuda" else ("gloo", None)
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world, device_id=device
    )
    try:
        yield
    finally:
        # What still refers to the group would keep its threads to the interpreter's end, which
        # they may not survive.
        gc.collect()
        torch.distributed.destroy_process_group()


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


class _Classifier(pl.LightningModule):
    def __init__(self, model: nn.Sequential, config: RunConfig, data: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.model, self.config, self.data = model, config.train, data
        whole = config.to_dict()
        self.run = {name: whole[name] for name in ("model", "train")} | {"images": len(data[0])}
        self.losses: list[Tensor] = []
        self.hits = torch.zeros((), dtype=torch.int64, device=data[0].device)
        self.seen = 0
        self.scale = logit_scale(model, config.model)
        self.augment = Augmentation(
            config.train.augment, config.model.input_shape, config.model.mean
        )

    def train_dataloader(self) -> Batches:
        # The order depends on seed and epoch alone, so that a resumed run sees the same batches.
        x, y = self.data
        seed = self.config.seed * 100_003 + self.current_epoch
        return Batches((x, y), self.config.batch_size, seed, self.seen, *self._part())

    def _part(self) -> tuple[int, int]:
        """This process, and how many share every batch."""
        trainer = self._trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def training_step(self, batch: tuple[Tensor, Tensor, int, float], index: int) -> Tensor:
        x, y, seed, share = batch
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
            check_finite(float(loss.detach()), self.current_epoch + 1)
        loss = share * loss
        self.losses.append(loss.detach())
        self.hits += (logits.detach().argmax(-1) == y).sum() * bool(share)
        self.seen += 1
        return loss

    def epoch_metrics(self) -> dict[str, float]:
        """Mean loss and accuracy since the last call; NEMON's ℓ∞ bound, for normalised input."""
        loss, hits = torch.stack(self.losses).double().mean(), self.hits.double()
        if self._part()[1] > 1:
            loss = self.trainer.strategy.reduce(loss, reduce_op="mean")
            hits = self.trainer.strategy.reduce(hits, reduce_op="sum")
        self.losses, self.hits, self.seen = [], torch.zeros_like(self.hits), 0
        metrics = {"loss": float(loss), "accuracy": float(hits) / len(self.data[0])}
        with torch.no_grad():
            bounds = linf_bounds(self.model)
        return metrics | ({"linf_bound": float(sum(bounds))} if bounds else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        losses = torch.stack(self.losses) if self.losses else torch.zeros(0)
        checkpoint["epoch_so_far"] = {"seen": self.seen, "losses": losses, "hits": self.hits}
        checkpoint["run"] = self.run

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        so_far = checkpoint["epoch_so_far"]
        self.seen, self.losses = so_far["seen"], list(so_far["losses"].to(self.hits.device))
        self.hits = so_far["hits"].to(self.hits.device)

    def configure_optimizers(self) -> Any:
        chosen = optimizer(self.model.parameters(), self.config)
        batches = -(-len(self.data[0]) // self.config.batch_size)
        steps = -(-batches // self.config.accumulate) * self.config.epochs
        return {
            "optimizer": chosen,
            "lr_scheduler": {
                "scheduler": schedule(chosen, self.config, steps),
                "interval": "step",
            },
        }
