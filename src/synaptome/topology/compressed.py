"""Graphs in compressed sparse rows that come from elsewhere, such as a checkpoint, and may be corrupt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def what_is_wrong(crow: Any, col: Any, values: Any, out_features: int, in_features: int) -> str | None:
    """What keeps the graph of a layer from being one, in words; None if nothing does.

    Args:
        crow: to be int32 or int64 `[out_features + 1]`, ascending from 0 to nnz.
        col: to be int32 or int64 `[nnz]`, from 0 to `in_features - 1`, ascending within each row.
        values: to be `[nnz]`.
        out_features, in_features: sides of the weight.
    """
    for name, part in (("crow", crow), ("col", col), ("values", values)):
        if not isinstance(part, Tensor):
            return f"there is no tensor {name}"
    whole = (torch.int32, torch.int64)
    if crow.dtype not in whole or col.dtype not in whole:
        return f"indices are int32 or int64; given {crow.dtype} and {col.dtype}"
    if crow.shape != (out_features + 1,):
        return f"crow is [{out_features + 1}], one more than the outputs; given {list(crow.shape)}"
    if col.dim() != 1 or values.shape != col.shape:
        return f"col and values are [nnz]; given {list(col.shape)} and {list(values.shape)}"
    if crow[0] != 0 or crow[-1] != len(col) or (crow.diff() < 0).any():
        return f"crow does not ascend from 0 to {len(col)}, the number of connections"
    if ((col < 0) | (col >= in_features)).any():
        return f"col leaves the range from 0 to {in_features - 1}"
    ascends = col.diff() > 0
    starts = crow[1:-1].long()
    ascends[starts[(starts > 0) & (starts < len(col))] - 1] = True  # from one row to the next
    if not ascends.all():
        return "col does not ascend within each row (a connection is out of order, or there twice)"
    return None
