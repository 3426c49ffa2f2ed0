"""A nested state, taken apart into named tensors and a JSON tree, and put together again. Nothing is ever executed.

Python's values map to JSON as they are, except what JSON cannot hold, which is written as an object with one marked
key: a tensor `{"$tensor": name}`, a tuple `{"$tuple": [...]}`, a dictionary whose keys are not plain strings
`{"$pairs": [[key, value], ...]}`, and a float that is not finite `{"$float": "nan"}`.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from synaptome.errors import RunError


def take_apart(state: Any, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A JSON tree and the tensors that it names; tensors are detached copies on the CPU.

    Raises:
        RunError: a value that is neither a tensor nor something JSON can hold; its place is named.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().clone().contiguous()
            return {"$tensor": path}
        if isinstance(value, float) and not math.isfinite(value):
            return {"$float": repr(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, dict):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: walk(inner, f"{path}/{key}".lstrip("/")) for key, inner in value.items()}
            return {"$pairs": [[walk(k, f"{path}/key"), walk(v, f"{path}/{k}".lstrip("/"))] for k, v in value.items()]}
        if isinstance(value, (list, tuple)):
            items = [walk(inner, f"{path}/{index}".lstrip("/")) for index, inner in enumerate(value)]
            return {"$tuple": items} if isinstance(value, tuple) else items
        raise RunError(
            f"{path} is a {type(value).__name__}, which a checkpoint cannot hold; "
            f"a state_dict may hold tensors, numbers, strings, None, lists, tuples and dictionaries of them"
        )

    return walk(state, path), tensors


def put_together(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The state that `take_apart` was given.

    Raises:
        RunError: the tree names a tensor that is not there, or holds a mark that is not known.
    """
    if isinstance(tree, list):
        return [put_together(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    marks = [key for key in tree if key.startswith("$")]
    if not marks:
        return {key: put_together(value, tensors) for key, value in tree.items()}
    content = tree[marks[0]]
    if marks == ["$tensor"] and content in tensors:
        return tensors[content]
    if marks == ["$tensor"]:
        raise RunError(f"the checkpoint names a tensor {content!r} that it does not hold")
    if marks == ["$float"]:
        return float(content)
    if marks == ["$tuple"]:
        return tuple(put_together(item, tensors) for item in content)
    if marks == ["$pairs"]:
        return {put_together(key, tensors): put_together(value, tensors) for key, value in content}
    raise RunError(f"the checkpoint holds an unknown mark {marks}; it was written by another version of synaptome")
