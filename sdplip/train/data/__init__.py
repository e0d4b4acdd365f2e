"""Data sets: known ones, folders of images, and random changes while training."""

from .datasets import DATASETS, FOLDER, Splits, data_root, known, load, pixels, short_name

__all__ = [
    "DATASETS",
    "FOLDER",
    "Splits",
    "data_root",
    "known",
    "load",
    "pixels",
    "short_name",
]
