"""Boxes as tensors: conversion, area, clipping, scaling, overlap. All are (..., 4) and in pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def xywh_from_xyxy(boxes_xyxy: Tensor) -> Tensor:
    """Corners to left, top, width, height (COCO's order)."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack((x1, y1, x2 - x1, y2 - y1), -1)


def xyxy_from_xywh(boxes_xywh: Tensor) -> Tensor:
    """Left, top, width, height (COCO's order) to corners."""
    x, y, width, height = boxes_xywh.unbind(-1)
    return torch.stack((x, y, x + width, y + height), -1)


def areas(boxes_xyxy: Tensor) -> Tensor:
    """Areas, (...,); 0 for a box without a positive width and height."""
    sides = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def clip(boxes_xyxy: Tensor, sizes_hw: Tensor) -> Tensor:
    """Move corners into the image.

    Args:
        boxes_xyxy: (..., N, 4).
        sizes_hw: (..., 2), height and width of the image that the N boxes lie in.
    """
    limits = sizes_hw.flip(-1).to(boxes_xyxy).unsqueeze(-2)  # (..., 1, 2), width and height
    return boxes_xyxy.clamp(min=0).minimum(torch.cat((limits, limits), -1))


def scale(boxes_xyxy: Tensor, from_sizes_hw: Tensor, to_sizes_hw: Tensor) -> Tensor:
    """Carry boxes from an image of one size to the same image at another size, each axis by its own factor.

    Args:
        boxes_xyxy: (..., N, 4).
        from_sizes_hw: (..., 2), size of the image that the boxes lie in.
        to_sizes_hw: (..., 2), size of the image to carry them to.
    """
    factors = (to_sizes_hw.float() / from_sizes_hw.float()).flip(-1).to(boxes_xyxy).unsqueeze(-2)  # (..., 1, 2)
    return boxes_xyxy * torch.cat((factors, factors), -1)


def pairwise_intersection(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Area that each of N boxes shares with each of M others: (..., N, 4) and (..., M, 4) to (..., N, M)."""
    x1, y1, x2, y2 = boxes_xyxy.unsqueeze(-2).unbind(-1)  # each (..., N, 1)
    u1, v1, u2, v2 = others_xyxy.unsqueeze(-3).unbind(-1)  # each (..., 1, M)
    width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(min=0)
    height = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1)).clamp_(min=0)
    return width.mul_(height)


def pairwise_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Intersection over union of each of N boxes with each of M others, (..., N, M); 0 where nothing is shared."""
    shared = pairwise_intersection(boxes_xyxy, others_xyxy)
    union = areas(boxes_xyxy).unsqueeze(-1) + areas(others_xyxy).unsqueeze(-2) - shared
    return torch.where(shared > 0, shared / union, torch.zeros_like(shared))
