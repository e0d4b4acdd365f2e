"""What a training run goes through: its batches, what is recorded, and what is kept on disk."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .._arrays import write_atomically
from ..errors import InvalidInput, NotConverged
from .checkpoint import STATES

NEXT_FILE, RESUME_FILE, PREVIOUS_FILE = STATES
OnEpoch = Callable[[int, dict[str, float]], None]

CHECKED = 50
"""Every so many steps the loss is looked at, which waits for the device."""


class Batches:
    """Shuffled batches of tensors that already lie on the device; the order is the seed's.

    `first` batches are left out, because a resumed run has seen them. Of every batch, process
    `rank` of `world` gets each world-th image.
    """

    def __init__(
        self,
        data: tuple[Tensor, Tensor],
        size: int,
        seed: int,
        first: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.data, self.size, self.seed = data, size, seed
        self.first, self.rank, self.world = first, rank, world

    def __len__(self) -> int:
        return -(-len(self.data[0]) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int, float]]:
        """Images, labels, a seed for what is random about this batch, and a factor for the mean
        loss with which the mean over processes is that of the whole batch."""
        x, y = self.data
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(x), generator=generator).to(x.device)
        seeds = torch.randint(2**62, (len(self),), generator=generator).tolist()
        for part, seed in list(zip(order.split(self.size), seeds, strict=True))[self.first :]:
            mine = part[self.rank :: self.world]
            share = len(mine) * self.world / len(part)
            # Every process must take every step, even where a last batch has too few images.
            mine = mine if len(mine) else part[:1]
            # For rows, index_select is several times faster than x[mine].
            yield x.index_select(0, mine), y.index_select(0, mine), seed + self.rank, share


def check_finite(loss: float, epoch: int) -> None:
    """Raise NotConverged for a loss that is not finite."""
    if not math.isfinite(loss):
        raise NotConverged(
            f"training: the loss is {loss} in epoch {epoch}. "
            "Lower --lr, or for an equilibrium layer raise the solver's max_steps."
        )


class Files(CheckpointIO):
    """States in files as torch writes them.

    Lightning's way leads through memory and the folder of temporary files, which may be smaller,
    and takes some paths for addresses on the network.
    """

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, *options: Any, **more: Any) -> Any:
        """No code in the file is run."""
        return torch.load(path, map_location="cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class KeepState(Checkpoint):
    """The whole training state after every epoch, in `folder`, and the one before it.

    Lightning runs a `Checkpoint` last.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.save(trainer)

    def save(self, trainer: Any) -> None:
        """Raises InvalidInput where the state cannot be written; those before it are kept."""
        last, following = self.folder / RESUME_FILE, self.folder / NEXT_FILE
        if not trainer.is_global_zero:
            # Every process takes part in gathering the state; one of them writes it.
            trainer.save_checkpoint(following)
            return
        try:
            write_atomically(following, trainer.save_checkpoint)
        except (OSError, RuntimeError) as error:
            # Torch turns a full disk into a RuntimeError.
            reason = error if isinstance(error, OSError) else error.__context__ or error
            raise InvalidInput(
                f"{self.folder}: the training state cannot be written ({reason}). "
                "Make room and run again, to go on from the one before it."
            ) from error
        if last.is_file():
            os.replace(last, self.folder / PREVIOUS_FILE)
        os.replace(following, last)

    def latest(self, run: dict[str, Any]) -> Path | None:
        """The newest state that can be read.

        Raises InvalidInput for the state of another run than `run`, what `train` says of its own.
        """
        self._tidy()
        for name in STATES:
            path = self.folder / name
            if not path.is_file():
                continue
            try:
                found = Files().load_checkpoint(path)["run"]
            except Exception as error:
                warnings.warn(
                    f"{path} is no training state that can be read ({type(error).__name__}); going "
                    "on from the one before it, without one from the start.",
                    stacklevel=2,
                )
                continue
            if found != run:
                raise InvalidInput(
                    f"{path} is the state of another run: another model, recipe or number of "
                    "images. Give another directory, or remove the states in it."
                )
            return path
        return None

    def clear(self) -> None:
        """Remove every kept state."""
        self._tidy()
        for name in STATES:
            (self.folder / name).unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Remove what a process left behind that was killed while it wrote."""
        for name in STATES:
            for left in self.folder.glob(f".{name}.*.tmp*"):
                left.unlink(missing_ok=True)


class Recorder(Callback):
    """Epoch metrics and step times; part of the saved state, so that a resumed run keeps them.

    The module's `epoch_metrics()` gives an epoch's loss and accuracy.
    """

    def __init__(self, module: Any, on_epoch: OnEpoch | None, keep: KeepState | None) -> None:
        self.module, self.on_epoch, self.keep = module, on_epoch, keep
        self.history: list[dict[str, float]] = []
        self.step_ms: list[float] = []
        self.earlier_seconds = 0.0
        self.began = self.interrupted = False
        self._started = self._step = time.perf_counter()
        self._steps = 0

    @contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """A first SIGINT or SIGTERM lets the batch finish and its state be saved, a second does
        not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _note(self, number: int, frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def _stops(self, trainer: Any) -> bool:
        """Whether some process was interrupted: all must stop after the same batch."""
        return bool(trainer.strategy.reduce_boolean_decision(self.interrupted, all=False))

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.began = True
        if signal.getsignal(signal.SIGINT) == self._note:
            # Lightning's own handler, which it removes in the end, talks to the other processes,
            # and these may be gone.
            signal.signal(signal.SIGTERM, self._note)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        # The state was saved as the epoch before ended.
        if self._stops(trainer):
            raise KeyboardInterrupt
        self._step, self._steps = time.perf_counter(), 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if module.device.type == "cpu":
            self._step = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        self._time(module.device, trainer.is_last_batch)
        # The end of an epoch saves by itself; gradients that pile up cannot be saved.
        between = (index + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch
        if between and self._stops(trainer):
            if self.keep is not None:
                self.keep.save(trainer)
            raise KeyboardInterrupt

    def _time(self, device: torch.device, last: bool) -> None:
        """A graphics card is waited for every so many steps only, and their mean taken."""
        self._steps += 1
        if device.type != "cpu":
            if self._steps < CHECKED and not last:
                return
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        self.step_ms.append(1e3 * (now - self._step) / self._steps)
        self._step, self._steps = now, 0

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        metrics = self.module.epoch_metrics()
        epoch = len(self.history) + 1
        check_finite(metrics["loss"], epoch)
        self.history.append(metrics)
        if trainer.logger is not None:
            trainer.logger.log_metrics(metrics, step=epoch)
        if self.on_epoch is not None and trainer.is_global_zero:
            self.on_epoch(epoch, metrics)

    def state_dict(self) -> dict[str, Any]:
        seconds = self.earlier_seconds + time.perf_counter() - self._started
        return {"history": self.history, "step_ms": self.step_ms[-1000:], "seconds": seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = [dict(entry) for entry in state["history"]]
        self.step_ms = list(state["step_ms"])
        self.earlier_seconds = state["seconds"]


class Average(Callback):
    """An exponential moving average of the parameters, `decay` per step of the optimiser."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.steps = 0

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.averaged.to(module.device).update_parameters(self.model)

    def give(self, model: nn.Module) -> None:
        """Put the averages in place of the parameters."""
        with torch.no_grad():
            for p, q in zip(model.parameters(), self.averaged.module.parameters(), strict=True):
                p.copy_(q)

    def state_dict(self) -> dict[str, Any]:
        return {"averaged": self.averaged.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.averaged.load_state_dict(state["averaged"])
        self.steps = state["steps"]
