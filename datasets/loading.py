"""From an index of labelled images to batches: samples by epoch and position, the loaders.

What is drawn for an image is a function of the seed, the epoch, the position of the image in its index and of how many
times it came before in that epoch, and of nothing else: not of the worker that happens to load it, of how many there
are, of the batch size, or of what was drawn before. So a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from effdense.datasets.collate import collate
from effdense.datasets.fast_decode import small_reader
from effdense.datasets.images import JPEG_SUFFIXES, ReadImage
from effdense.datasets.sampling import BalancedSampler, Composition, EpochSampler, Key, Labels, checked_seed
from effdense.errors import UserError
from effdense.transforms import Transform
from effdense.types import Batch, Bool, Sample

log = logging.getLogger(__name__)

_IMAGE = 2
"""Tells what is drawn for an image from what is drawn for an order."""


class SampleSource(Protocol):
    """What is asked of an index: how many images, and each of them."""

    def __len__(self) -> int: ...

    def sample(self, position: int, /) -> Sample:
        """Read the image at a position, with its labels."""
        ...


class ReadingSource(SampleSource, Protocol):
    """An index that can be told how to read the image file, as all are that this package opens."""

    def sample(self, position: int, /, read: ReadImage = ...) -> Sample:
        """Read the image at a position by a function, with its labels."""
        ...

    def path(self, position: int, /) -> Path:
        """Return the file of an image."""
        ...


class LabelSource(SampleSource, Protocol):
    """An index whose images carry boxes, a mask or both."""

    @property
    def has_boxes(self) -> Bool:
        """Which images have boxes, be they none, (n,)."""
        ...

    @property
    def has_masks(self) -> Bool:
        """Which images have a mask, (n,)."""
        ...


class SampleData(Dataset[Sample]):
    """Transformed samples of an index, addressed by (epoch, position) or (epoch, position, draw, labels)."""

    def __init__(self, index: SampleSource, transform: Transform, seed: int = 0, *, fast_decode: bool = False) -> None:
        """Hold index and transform.

        Args:
            index: a `ReadingSource` with ``fast_decode``.
            transform: given each sample.
            seed: decides what is drawn.
            fast_decode: decode a JPEG at a half, a quarter or an eighth where the scale jitter that is drawn for it
                resizes it to no more, and shrink by INTER_LINEAR down to a half; has no effect on a
                transform that does not begin with `RandomScaleCrop`.

        Raises:
            UserError: a negative seed.
        """
        self.index = index
        self.fast_decode = fast_decode
        self.transform = transform
        self.seed = checked_seed(seed)
        if fast_decode:
            _say_without_jpegs(cast(ReadingSource, index))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Key) -> Sample:
        """Return the sample that this epoch makes of the image at this position, another at each draw.

        Raises:
            UserError: the image cannot be read; the message names its file.
        """
        epoch, position = key[:2]
        seeds = (self.seed, epoch, position, _IMAGE, *key[2:3])
        try:
            sample = self._read_small(position, seeds) if self.fast_decode else self.index.sample(position)
        except OSError as error:
            raise UserError(f"image {position} of the data set cannot be read: {error}") from error
        labels: Labels = "all" if len(key) == 2 else key[3]
        return self.transform(_with_labels(sample, labels), np.random.default_rng(seeds))

    def _read_small(self, position: int, seeds: tuple[int, ...]) -> Sample:
        """Read an image no larger than need be for the size that the transform is going to draw."""
        source = cast(ReadingSource, self.index)
        sample = source.sample(position, small_reader(self.transform, seeds))
        if sample.image.shape[:2] == sample.original_size_hw:
            return sample
        return sample.replace(labels_size_hw=sample.original_size_hw)


def _say_without_jpegs(index: ReadingSource) -> None:
    """Log that nothing can be decoded small where no file is called a JPEG; each is opened later, not here."""
    if not any(index.path(position).suffix.lower() in JPEG_SUFFIXES for position in range(len(index))):
        log.warning(
            "--fast-decode: no image to train on is a JPEG, so none is decoded any faster; all it does here is to "
            "shrink images by bilinear interpolation"
        )


def _with_labels(sample: Sample, labels: Labels) -> Sample:
    """Return a sample with these of its labels, and nothing known of the others."""
    if labels == "boxes":
        return sample.replace(mask=None)
    if labels == "masks":
        none = {name: getattr(sample, name)[:0] for name in ("boxes_xyxy", "labels", "crowd", "difficult")}
        return sample.replace(**none, has_boxes=False)
    return sample


class BatchLoader:
    """Batches of one epoch per pass, loaded by worker processes that live as long as the loader.

    A UserError raised in a worker arrives here as it was raised; PyTorch's own loader would wrap it in a traceback.
    """

    def __init__(
        self,
        data: SampleData,
        sampler: EpochSampler | BalancedSampler,
        *,
        batch_size: int,
        workers: int,
        device: torch.device | str,
        drop_last: bool,
    ) -> None:
        """Build the PyTorch loader; workers start with the first pass.

        Args:
            data: what is loaded.
            sampler: in which order.
            batch_size: images per batch and process.
            workers: worker processes; 0 loads in this one.
            device: where the batches will go; for a CUDA device they come in page-locked memory.
            drop_last: leave out an incomplete last batch.

        Raises:
            UserError: a batch size below 1 or a negative number of workers.
        """
        if batch_size < 1:
            raise UserError(f"the batch size is at least 1, got {batch_size}")
        if workers < 0:
            raise UserError(f"the number of workers is 0 or more, got {workers}")
        self.sampler = sampler
        self.batch_size = batch_size
        self._arguments: dict[str, Any] = {
            "dataset": _Batches(data),
            "batch_size": batch_size,
            "sampler": sampler,
            "num_workers": workers,
            "drop_last": drop_last,
            "collate_fn": _as_it_is,
            "generator": torch.Generator(),  # its own, so as not to draw from the one that the model draws from
            "pin_memory": torch.device(device).type == "cuda",
            "worker_init_fn": init_worker,
            "persistent_workers": workers > 0,
            # Forked workers share the index's columns and the imports. Elsewhere fork is unsafe or absent: the default.
            "multiprocessing_context": "fork" if workers > 0 and sys.platform == "linux" else None,
        }
        self._loader = self._new_loader()

    def _new_loader(self) -> DataLoader[Any]:
        return DataLoader(**self._arguments)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Say which epoch the next pass is, and how many of its images to skip; without it, passes count up from 0."""
        self.sampler.set_epoch(epoch, start)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the next epoch.

        Raises:
            UserError: an image cannot be read; the message names its file.
        """
        batches = iter(self._loader)
        while (batch := next(batches, None)) is not None:
            if isinstance(batch, UserError):
                # End the workers now. Left to a traceback that holds them, they may fall to the garbage collector; it
                # takes apart their queues first, and PyTorch then waits five seconds for each of them.
                del batches
                self._loader = self._new_loader()
                raise UserError(*batch.args)
            yield batch


def train_loader(
    index: SampleSource,
    transform: Transform,
    *,
    batch_size: int,
    workers: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    fast_decode: bool = False,
) -> BatchLoader:
    """Return shuffled batches of equal size.

    What does not fill a last batch is left out of that epoch, as a batch of one or two would unsettle BatchNorm; the
    order is new in each, so no image is left out for good. Fewer images than one batch make one smaller batch.

    Args:
        index: the images.
        transform: augments each sample, all to one size.
        batch_size: images per batch and process.
        workers: worker processes; 0 loads in this one, with the same result.
        seed: decides order and augmentation of every epoch.
        device: where the batches will go; for a CUDA device they come in page-locked memory.
        rank: this process, 0..world_size - 1.
        world_size: processes of the run; each gets as many batches as the others.
        fast_decode: as for `SampleData`.

    Raises:
        UserError: an empty index, or a value out of range.
    """
    sampler = EpochSampler(len(index), seed=seed, shuffle=True, rank=rank, world_size=world_size)
    data = SampleData(index, transform, seed, fast_decode=fast_decode)
    drop_last = len(sampler) >= batch_size
    return BatchLoader(data, sampler, batch_size=batch_size, workers=workers, device=device, drop_last=drop_last)


def balanced_train_loader(
    index: LabelSource,
    transform: Transform,
    *,
    batch_size: int,
    mask_share: float = 0.5,
    workers: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    fast_decode: bool = False,
) -> tuple[BatchLoader, Composition]:
    """Return shuffled batches that have images of both labels, as `BalancedSampler` draws them, and of how many.

    Where every image has the same labels, be it both or one, there is nothing to balance: the batches are those of
    `train_loader`.

    Args:
        index: the images.
        transform: augments each sample, all to one size.
        batch_size: images per batch.
        mask_share: share of a batch that is drawn for its masks, above 0 and below 1; has no effect where there is
            nothing to balance.
        workers: worker processes; 0 loads in this one, with the same result.
        seed: decides order and augmentation of every epoch.
        device: where the batches will go; for a CUDA device they come in page-locked memory.
        fast_decode: as for `SampleData`.

    Raises:
        UserError: an empty index, a value out of range, or batches of one image where there is something to balance.
    """
    has_boxes, has_masks = index.has_boxes, index.has_masks
    if all(has.all() or not has.any() for has in (has_boxes, has_masks)):
        loader = train_loader(
            index,
            transform,
            batch_size=batch_size,
            workers=workers,
            seed=seed,
            device=device,
            fast_decode=fast_decode,
        )
        size = min(batch_size, len(index))
        composition = Composition(
            batch_size=size, boxes=size * bool(has_boxes.any()), masks=size * bool(has_masks.any())
        )
        return loader, composition
    sampler = BalancedSampler(has_boxes, has_masks, batch_size=batch_size, mask_share=mask_share, seed=seed)
    data = SampleData(index, transform, seed, fast_decode=fast_decode)
    loader = BatchLoader(data, sampler, batch_size=batch_size, workers=workers, device=device, drop_last=True)
    return loader, sampler.composition


def eval_loader(
    index: SampleSource,
    transform: Transform,
    *,
    batch_size: int,
    workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> BatchLoader:
    """Return every image once, in the order of the index, the last batch as small as it comes.

    Args:
        index: the images.
        transform: brings each sample to one size.
        batch_size: images per batch and process.
        workers: worker processes; 0 loads in this one.
        device: where the batches will go; for a CUDA device they come in page-locked memory.
        rank: this process, 0..world_size - 1; it gets every world_size-th image, and none is repeated.
        world_size: processes of the run.

    Raises:
        UserError: an empty index, or a value out of range.
    """
    sampler = EpochSampler(len(index), shuffle=False, rank=rank, world_size=world_size, equal_length=False)
    data = SampleData(index, transform)
    return BatchLoader(data, sampler, batch_size=batch_size, workers=workers, device=device, drop_last=False)


def init_worker(worker: int) -> None:
    """Prepare a worker process: one thread for OpenCV and PyTorch each, and Ctrl-C left to the main process."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Batches:
    """The data set that PyTorch's loader sees: whole batches, or the error that kept one from being made."""

    def __init__(self, data: SampleData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, keys: Sequence[Key]) -> Batch | UserError:
        try:
            return collate([self.data[key] for key in keys])
        except UserError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch
