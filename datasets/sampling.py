"""In which order images are drawn: every image once an epoch, or so that every batch has images of both labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from effdense.errors import UserError
from effdense.types import Bool, Int64

Labels = Literal["all", "boxes", "masks"]
"""Which of an image's labels come with it."""

Key = tuple[int, int] | tuple[int, int, int, Labels]
"""An epoch and the position of an image in its index; where the image may come again in one epoch, also how often it
came and which of its labels come with it this time."""

_ORDER = 1
"""Tells what is drawn for an order from what is drawn for an image."""


def spread(num_images: int, most: int) -> Int64:
    """Return positions of no more than ``most`` images, evenly over the index, the first and the last included.

    Args:
        num_images: of the index.
        most: 1 or more.
    """
    positions: Int64 = np.linspace(0, num_images - 1, min(num_images, most)).round().astype(np.int64)
    return positions


class EpochSampler(Sampler[Key]):
    """Yields (epoch, position), in an order that is a function of the seed and the epoch.

    Each pass is one epoch and moves on to the next by itself, so that forgetting ``set_epoch`` cannot repeat an epoch's
    augmentations; ``set_epoch`` is for resuming. In a distributed run each rank takes every world_size-th position.
    """

    def __init__(
        self,
        num_images: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        equal_length: bool = True,
    ) -> None:
        """Start before epoch 0.

        Args:
            num_images: length of the index.
            seed: decides the order of every epoch.
            shuffle: a new order each epoch; else the order of the index.
            rank: this process, 0..world_size - 1.
            world_size: processes of the run.
            equal_length: give every rank as many images as the others, by repeating some; a gradient needs it, an
                evaluation must not have it.

        Raises:
            UserError: no image at all, or a negative seed.
        """
        if num_images < 1:
            raise UserError("there is no image to load: the data set is empty")
        assert 0 <= rank < world_size
        self.num_images = num_images
        self.seed = checked_seed(seed)
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.equal_length = equal_length
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Say which epoch the next pass is, and how many of this rank's images it leaves out at its beginning."""
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        """Count the images of a whole pass of this rank."""
        if self.equal_length:
            return -(-self.num_images // self.world_size)
        return len(range(self.rank, self.num_images, self.world_size))

    def __iter__(self) -> Iterator[Key]:
        """Return the keys of this epoch, and make the next pass the next epoch."""
        epoch, start = self.epoch, self.start
        self.set_epoch(epoch + 1)
        order: npt.NDArray[np.int64] = np.arange(self.num_images)
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch, 0, _ORDER)).permutation(self.num_images)
        if self.equal_length:
            order = np.resize(order, len(self) * self.world_size)
        return iter([(epoch, position) for position in order[self.rank :: self.world_size][start:].tolist()])


@dataclass(frozen=True)
class Composition:
    """What a batch is made of; ``str`` says it in a sentence for the log.

    Attributes:
        batch_size: images in a batch.
        boxes: of these, images that have boxes, at least.
        masks: of these, images that have a mask, at least.
        epoch: where the two are balanced, how an epoch draws them, as a sentence.
    """

    batch_size: int
    boxes: int
    masks: int
    epoch: str = ""

    def __str__(self) -> str:
        if self.epoch:
            least = f"{self.masks} images with masks and {self.boxes} with boxes at least"
            return f"each batch of {self.batch_size} has {least}; {self.epoch}"
        labels = [name for name, count in (("boxes", self.boxes), ("masks", self.masks)) if count]
        return f"each batch of {self.batch_size} has the {' and '.join(labels)} of every image"


class BalancedSampler(Sampler[Key]):
    """Yields (epoch, position, draw, labels): every batch has a fixed number of images with masks, and with boxes.

    The rule: a batch of n takes round(n * mask_share) images, one at least and n - 1 at most, from a pool of images
    with masks, and the rest from a pool of images with boxes. In an epoch an image with both labels is in one of the
    pools, drawn by lot, so that the pools last for the same number of batches as nearly as may be. The
    epoch ends when every image was drawn; the pool that is exhausted sooner is drawn again, as often as it takes, in a
    new order each time. So within a pool the numbers of draws differ by one at most.

    The first time in an epoch an image comes with all its labels. Drawn again, it comes with the label that its pool is
    for and no other: else a few images with masks, drawn a hundred times for these, would bring their boxes as often
    and be half of what the detection learns from.

    Order and draws are a function of the seed and the epoch, as `EpochSampler`'s are, and passes count the epochs in
    the same way.
    """

    def __init__(
        self, has_boxes: Bool, has_masks: Bool, *, batch_size: int, mask_share: float = 0.5, seed: int = 0
    ) -> None:
        """Start before epoch 0.

        Args:
            has_boxes: which images have boxes, (n,).
            has_masks: which images have a mask, (n,). Each image has a label, each label has an image, and there are
                two images at least.
            batch_size: images in a batch.
            mask_share: share of a batch that is drawn for its masks.
            seed: decides the order of every epoch.

        Raises:
            UserError: a batch of one image, a share that is not above 0 and below 1, or a negative seed.
        """
        if batch_size < 2:
            raise UserError(
                "not all images have the same labels, and a batch needs some with boxes and some with masks: give "
                f"--batch-size 2 or more, got {batch_size}"
            )
        if not 0 < mask_share < 1:
            raise UserError(f"mask_share is a share of a batch, above 0 and below 1, got {mask_share}")
        self.seed = checked_seed(seed)
        self.epoch = 0
        self.start = 0
        self._both, self._boxes_only, self._masks_only = (
            np.flatnonzero(which) for which in (has_boxes & has_masks, has_boxes & ~has_masks, has_masks & ~has_boxes)
        )
        self.masks_per_batch = min(max(round(batch_size * mask_share), 1), batch_size - 1)
        self.boxes_per_batch = batch_size - self.masks_per_batch
        self._shared_for_masks = self._share()
        self._sizes = (
            len(self._masks_only) + self._shared_for_masks,
            len(self._boxes_only) + len(self._both) - self._shared_for_masks,
        )
        assert min(self._sizes) > 0
        counts = (self.masks_per_batch, self.boxes_per_batch)
        self.num_batches = max(-(-size // count) for size, count in zip(self._sizes, counts, strict=True))

    def _share(self) -> int:
        """Return how many of the images with both labels serve for their masks in an epoch.

        That is where masks_only + x and boxes_only + both - x are as masks_per_batch to boxes_per_batch, if it can be.
        """
        masks, boxes, both = len(self._masks_only), len(self._boxes_only), len(self._both)
        of_masks, of_boxes = self.masks_per_batch, self.boxes_per_batch
        even = round((of_masks * (boxes + both) - of_boxes * masks) / (of_masks + of_boxes))
        return min(max(even, masks == 0), both - (boxes == 0))  # neither pool may be empty

    @property
    def composition(self) -> Composition:
        """What a batch is made of."""
        counts = (self.masks_per_batch, self.boxes_per_batch)
        (masks, boxes), (mask_draws, box_draws) = self._sizes, (self.num_batches * count for count in counts)
        epoch = (
            f"an epoch of {self.num_batches} batches draws {masks} images {mask_draws / masks:.1f} times for their "
            f"masks and {boxes} images {box_draws / boxes:.1f} times for their boxes; an image drawn again brings that "
            "label alone"
        )
        return Composition(sum(counts), boxes=self.boxes_per_batch, masks=self.masks_per_batch, epoch=epoch)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Say which epoch the next pass is, and how many images it leaves out at its beginning."""
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        """Count the draws of a whole pass; it has whole batches only."""
        return self.num_batches * (self.masks_per_batch + self.boxes_per_batch)

    def __iter__(self) -> Iterator[Key]:
        """Return the keys of this epoch, batch by batch, and make the next pass the next epoch."""
        epoch, start = self.epoch, self.start
        self.set_epoch(epoch + 1)
        rng = np.random.default_rng((self.seed, epoch, 0, _ORDER))
        shared = rng.permutation(self._both)
        with_masks = np.concatenate([self._masks_only, shared[: self._shared_for_masks]])
        with_boxes = np.concatenate([self._boxes_only, shared[self._shared_for_masks :]])
        batches = [
            _drawn(pool, self.num_batches * count, rng).reshape(self.num_batches, count, 2)
            for pool, count in ((with_masks, self.masks_per_batch), (with_boxes, self.boxes_per_batch))
        ]
        draws = np.concatenate(batches, axis=1).reshape(-1, 2)
        numbered = enumerate(draws[start:].tolist(), start)
        return iter([(epoch, position, draw, self._labels(number, draw)) for number, (position, draw) in numbered])

    def _labels(self, number: int, draw: int) -> Labels:
        """Return which labels come with an image that is the epoch's ``number``-th, and came ``draw`` times before."""
        if draw == 0:
            return "all"
        return "masks" if number % (self.masks_per_batch + self.boxes_per_batch) < self.masks_per_batch else "boxes"


def _drawn(pool: Int64, count: int, rng: np.random.Generator) -> Int64:
    """Return positions from a pool and how often each came before, (count, 2), in a new order for each pass over it."""
    passes = -(-count // len(pool))
    positions = np.concatenate([rng.permutation(pool) for _ in range(passes)])
    draws = np.repeat(np.arange(passes), len(pool))
    return np.stack([positions, draws], axis=1)[:count].astype(np.int64)


def checked_seed(seed: int) -> int:
    """Return a seed.

    Raises:
        UserError: it is negative.
    """
    if seed < 0:
        raise UserError(f"the seed is a whole number from 0 on, got {seed}")
    return seed
