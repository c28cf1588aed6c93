"""Which boxes of a detector stay."""

from __future__ import annotations

import torch
from torch import Tensor

from peregrine.compiler.torch_ops.arithmetic import wide
from peregrine.compiler.torch_ops.registry import Call, operator


@operator("ai.onnx.NonMaxSuppression", since=10, host=(2, 3, 4))
def non_max_suppression(
    call: Call,
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    overlap: Tensor | None = None,
    least: Tensor | None = None,
) -> Tensor:
    """boxes (N, B, 4), scores (N, C, B) -> (picked, 3): image, class, box; greedily, best first.

    It is done on the CPU: how many boxes stay is known only after each was looked at."""
    limit = 0 if most is None else int(most)
    threshold = 0.0 if overlap is None else float(overlap)
    lowest = None if least is None else float(least)
    corners = _corners(wide(boxes).cpu(), bool(call.get("center_point_box", 0)))
    rows = [
        (image, kind, box)
        for image, classes in enumerate(wide(scores).cpu())
        for kind, of_class in enumerate(classes)
        for box in _picked(corners[image], of_class, limit, threshold, lowest)
    ]
    return torch.tensor(rows, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, centred: bool) -> Tensor:
    """(..., 4): y1, x1, y2, x2 with the lower ones first."""
    if centred:
        x, y, width, height = boxes.unbind(-1)
        tops, lefts, bottoms, rights = y - height / 2, x - width / 2, y + height / 2, x + width / 2
        return torch.stack((tops, lefts, bottoms, rights), -1)
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat((torch.minimum(first, second), torch.maximum(first, second)), -1)


def _picked(
    boxes: Tensor, scores: Tensor, limit: int, threshold: float, lowest: float | None
) -> list[int]:
    """boxes (B, 4), scores (B). Of equal scores the first box is first."""
    order = torch.argsort(scores, descending=True, stable=True)
    if lowest is not None:
        order = order[scores[order] > lowest]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    picked: list[int] = []
    while len(picked) < limit and order.numel():
        best, order = order[0], order[1:]
        picked.append(int(best))
        upper = torch.maximum(boxes[best, :2], boxes[order, :2])
        lower = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (lower - upper).clamp(min=0).prod(1)
        union = areas[best] + areas[order] - shared
        order = order[~((shared > 0) & (shared / union > threshold))]
    return picked
