"""Shorter runs, and how much shorter: a share of the recipe, or what some minutes allow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from ...errors import InvalidInput
from ..checkpoint import read_json
from ..config import RunConfig, override
from ..data import Splits

MEASURING = 0.35
"""The share of a budget that is kept for measuring what was trained."""
EXACT = 10
"""What logits in float64, equilibria to rounding, cost: images of training per image measured."""
PER_CLASS, ATTACKED_PER_CLASS = 10, 2
"""Images that are left at least, as far as there are some; of those attacked fewer."""
WARM, PROBED = 3, 10
"""Steps before a step's time is taken, and steps that it is taken from."""
LEAST = 0.25
"""The share of a budget that is left for training, however long measuring took so far."""
PROBING = 0.05
"""The share of a budget after which no further step is timed."""
LONG = 600.0
"""Seconds that the verification of one network does not take."""
LENGTHS = {
    "train": ("epochs", "of_epochs", "train_images"),
    "evaluate": ("images", "attack_images", "time_limit"),
}


def shrink(config: RunConfig, scale: float) -> RunConfig:
    """The same run with a share of its epochs, at least one; it keeps the full number.

    Raises InvalidInput for a scale outside (0, 1].
    """
    if not 0 < scale <= 1:
        raise InvalidInput(f"scale is {scale}, but must lie in (0, 1].")
    full = config.train.of_epochs or config.train.epochs
    epochs = max(1, round(scale * full))
    return override(config, epochs=epochs, of_epochs=None if epochs == full else full)


class Budget:
    """Runs shortened so that all of them, measuring included, take about `minutes`.

    Every run gets the same time; what one leaves over goes to the others. With `each`, `minutes`
    are those of the training of each. A run that cannot finish one epoch gets fewer images, evenly
    from all classes; where measuring would take longer than its share, fewer test images are
    measured, or attacked, and verification ends in time, with looser bounds. Before every run the
    time left is shared anew, by what those before have taken. Runs that were begun in their
    `folders` keep their length.
    """

    def __init__(
        self,
        configs: dict[str, RunConfig],
        splits: Splits,
        minutes: float,
        device: str = "auto",
        *,
        each: bool = False,
        folders: Mapping[str, Path] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not (math.isfinite(minutes) and minutes > 0):
            raise InvalidInput(f"budget is {minutes}, but must be a positive number of minutes.")
        self.splits, self.seconds, self.each = splits, 60 * minutes, each
        self.left, self.folders, self.clock = dict(configs), folders or {}, clock
        self.began = clock()
        patience = self.seconds * PROBING / (1 if each else len(configs))
        self.cost = {k: _epoch_seconds(c, splits, device, patience) for k, c in configs.items()}
        self.earlier = 0.0
        self.trained = self.foreseen = 0.0
        self.measured: list[float] = []

    def plan(self) -> dict[str, RunConfig]:
        """The runs that have not finished, as long as the time left allows."""
        count = len(self.left)
        if self.each:
            whole = self.seconds * count / (1 - MEASURING)
        else:
            whole = self.seconds - (self.clock() - self.began) - self.earlier
        kept, left = whole * MEASURING / count, whole * (1 - MEASURING)
        if self.measured and not self.each:
            left = max(whole * LEAST, whole - count * fmean(self.measured))
        pace = self.trained / self.foreseen if self.trained else 1.0
        found = {}
        # The cheapest first: what they cannot use is the others'.
        order = sorted(self.left, key=lambda name: self.cost[name] * self.left[name].train.epochs)
        for k, name in enumerate(order):
            share = self.seconds if self.each else left / (count - k)
            config, cost = self.left[name], pace * self.cost[name]
            full, epochs, available = config.train.epochs, 1, _images(config, self.splits)
            images = available
            if cost <= share:
                epochs = min(full, int(share / cost))
            else:
                least = min(images, PER_CLASS * self.splits.num_classes)
                images = max(least, int(images * share / cost))
            shorter = (epochs, images) < (full, available)
            config = override(
                config,
                epochs=epochs,
                of_epochs=(config.train.of_epochs or full) if shorter else None,
                train_images=images if images < len(self.splits.train[0]) else None,
            )
            found[name] = _measured_within(config, self.splits, kept, cost / available)
            if name in self.folders:
                found[name] = settled(found[name], self.folders[name])
            left -= epochs * cost * images / available
        return {name: found[name] for name in self.left}

    def begin(self, name: str) -> RunConfig:
        """The run as it is to be, now that it begins."""
        config = self.plan()[name]
        self.mark, self.running = self.clock(), (name, config)
        return config

    def end(self, training: float | None, already: bool) -> None:
        """Count the run that began last, whose training took so many seconds, None where it failed;
        in earlier commands, where it had finished `already`, or in part."""
        (name, run), here = self.running, self.clock() - self.mark
        share = _images(run, self.splits) / _images(self.left.pop(name), self.splits)
        if training is None:
            return
        if already:
            self.earlier += training / (1 - MEASURING)
            return
        self.earlier += max(0.0, training - here)
        self.trained += training
        self.foreseen += run.train.epochs * share * self.cost[name]
        self.measured.append(max(0.0, here - training))


def _measured_within(
    config: RunConfig, splits: Splits, seconds: float, per_image: float
) -> RunConfig:
    """With so few test images that half of `seconds` are for accuracies, half for attacks, when
    an image of training takes `per_image`; and no more than `seconds` for verification."""
    settings, there = config.evaluate, len(splits.test[0])
    images = min(settings.images or there, there)
    affordable = max(
        min(images, PER_CLASS * splits.num_classes), int(seconds / 2 / (EXACT * per_image))
    )
    radii = settings.radii + (settings.linf_radii if settings.linf else ())
    searched = max(1, len(radii) * settings.steps * settings.restarts)
    attacked = min(settings.attack_images or images, images, affordable)
    attackable = max(
        min(attacked, ATTACKED_PER_CLASS * splits.num_classes),
        int(seconds / 2 / (searched * per_image)),
    )
    return override(
        config,
        images=affordable if affordable < images else None,
        attack_images=attackable if attackable < attacked else None,
        time_limit=max(1.0, round(seconds, 1)) if settings.verify and seconds < LONG else None,
    )


def _images(config: RunConfig, splits: Splits) -> int:
    return config.train.train_images or len(splits.train[0])


def _epoch_seconds(config: RunConfig, splits: Splits, device: str, patience: float) -> float:
    """Seconds of an epoch, from a few steps of a model that is thrown away."""
    from ..fit import steps

    chosen = splits.first(config.train.train_images)
    batches = -(-len(chosen.train[0]) // config.train.batch_size)
    times = [time.perf_counter()]
    for _ in steps(config, chosen, device):
        times.append(time.perf_counter())
        if len(times) > WARM + PROBED or times[-1] - times[0] > patience:
            break
    taken = [after - before for before, after in pairwise(times)]
    taken = sorted(taken[min(WARM, len(taken) - 1) :])
    return batches * taken[len(taken) // 2]


def settled(config: RunConfig, folder: Path) -> RunConfig:
    """`config` with the length of the run that `folder` holds, where that is all that differs.

    A budget is measured anew by every command; what was begun must go on as it began.
    """
    if not (folder / "config.json").is_file():
        return config
    try:
        stored = RunConfig.from_dict(read_json(folder / "config.json"))
    except InvalidInput:
        return config
    parts = {
        part: replace(
            getattr(config, part), **{name: getattr(getattr(stored, part), name) for name in names}
        )
        for part, names in LENGTHS.items()
    }
    same = replace(config, **parts)
    return same if same == stored else config
