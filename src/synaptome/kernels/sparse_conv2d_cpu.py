"""Sparse convolutions on the CPU, by Numba: the vector loops of `sparse_cpu`, with an offset for each connection.

Some images at a time are laid out so that a shift of the image is a shift in memory. The rows of all these images
follow one another, apart by as many zeros as the padding needs, which serve the end of one row and the start of the
next. With strides s and t, an input channel becomes s t planes, one for each remainder of its rows and columns. A
connection then adds its value times a plane, from a constant offset on, to an output channel, for all positions of all
these images at once, and nothing is unfolded. What falls between the images is left behind when results are copied out.
The gradient by the input subtracts the offsets, over the connections in the order of planes; that by the values sums
products of two such rows. There are so many images at a time as fit into the second-level cache, but at least one.

Threads take ranges of images; for the gradient by the values, ranges of outputs with equal numbers of connections. Each
number is summed by one thread in one order, so the bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from synaptome.kernels.compiled import compiled
from synaptome.kernels.sparse_cpu import dots, permuted_row_sum, plain_row_sum, row_at
from synaptome.kernels.threads import in_threads
from synaptome.kernels.vectors import MOST, REGISTER_BYTES

LAID_OUT_BYTES = 2**18  # of the images of a time, as inputs or as outputs
LINE_BYTES = 64  # of the cache
SPAN = 512  # positions over which products are summed at a time: their rows stay in the first-level cache

Sizes = Sequence[int]


class Side(NamedTuple):
    """How the pixels of images lie in planes: pixel (i stride_y + r - top, j stride_x + q - left) at row i, column j.

    There is a plane for each channel and pair of remainders (r, q); of it take part so many rows and columns.
    """

    stride_y: int
    stride_x: int
    top: int
    left: int
    rows: int
    columns: int


class Grid(NamedTuple):
    """Where the planes of some images lie, in numbers of elements.

    Attributes:
        pitch: from a row to the next.
        image: from an image to the next.
        together: how many images there are at a time.
        margin: the largest offset within a plane.
        length: from a plane to the next.
    """

    pitch: int
    image: int
    together: int
    margin: int
    length: int


class Geometry:
    """What the kernels must know of a convolution.

    Attributes:
        inputs, outputs: the two sides.
        grid: of both.
        planes: how many there are on the side of the inputs.
    """

    def __init__(self, x: Sizes, y: Sizes, convolution: tuple[Any, ...], itemsize: int, parts: int) -> None:
        """Of images of shape x and results of shape y; the images are taken in at least so many parts."""
        kernel, stride, padding, dilation, groups = convolution
        batch, channels, *size = x
        phases, group_channels = stride[0] * stride[1], channels // groups
        offsets = [np.arange(taps) * spread for taps, spread in zip(kernel, dilation, strict=True)]
        seen, apart = [], []
        for axis in range(2):
            seen.append(y[axis + 2] + int(offsets[axis][-1]) // stride[axis])
            after = max(0, seen[axis] - -(-(padding[axis] + size[axis]) // stride[axis]))
            shared = min(padding[axis] // stride[axis], after)  # zeros that every plane has before and behind
            apart.append(max(y[axis + 2], seen[axis] - shared))
        (shift_y, phase_y), (shift_x, phase_x) = (np.divmod(o, s) for o, s in zip(offsets, stride, strict=True))
        shift = shift_y[:, None] * apart[1] + shift_x
        plane = np.arange(group_channels)[:, None, None] * phases + phase_y[:, None] * stride[1] + phase_x
        self.inputs, self.outputs = Side(*stride, *padding, *seen), Side(1, 1, 0, 0, *y[2:])
        self.planes = channels * phases
        # Of each column of the weight its plane within the group, and its offset within that plane.
        self._columns = plane.reshape(-1), np.broadcast_to(shift, plane.shape).reshape(-1)
        self._group = y[1] // groups, group_channels * phases  # rows of the weight, and planes
        image, margin = apart[0] * apart[1], int(shift[-1, -1])
        fitting = LAID_OUT_BYTES // (itemsize * image * max(self.planes, y[1]))
        together = max(1, min(fitting, -(-batch // parts)))
        lines = -(-(together * image + margin) * itemsize // LINE_BYTES)
        # An odd number of lines lets the starts of the planes fall on all sets of the cache.
        self.grid = Grid(apart[1], image, together, margin, (lines | 1) * LINE_BYTES // itemsize)

    def offsets(self, crow: Any, col: Any) -> tuple[Any, Any]:
        """Where each connection reads, int64 `[nnz]`, and which planes are read at all, bool `[planes]`."""
        offset, used = np.empty(len(col), np.int64), np.zeros(self.planes, np.bool_)
        _offsets(crow, col, *self._columns, *self._group, self.grid.length, used, offset)
        return offset, used

    def by_planes(self, crow: Any, col: Any) -> tuple[Any, Any, Any]:
        """The transposed structure: where each plane begins, and of its connections the places and the offsets."""
        starts = np.zeros(self.planes + 1, np.int64)
        place, offset = np.empty(len(col), np.int64), np.empty(len(col), np.int64)
        _by_planes(crow, col, *self._columns, *self._group, self.grid, starts, place, offset)
        return starts, place, offset


def product(values: Tensor, x: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, y: Sizes, *how: Any) -> Tensor:
    """The convolution of x `[batch, in_channels, height, width]`, whose result has the shape y."""
    result = x.new_empty(y)
    geometry = Geometry(x.shape, y, how, x.element_size(), torch.get_num_threads())
    starts, *arrays = _arrays(crow, col, x, values, values if bias is None else bias)
    offset, used = geometry.offsets(starts, arrays.pop(0))
    operands = *arrays, starts, offset, used, result.numpy(), bias is not None
    _over_images(_product, geometry, x, len(offset) * result[:, 0].numel(), operands)
    return result


def input_grad(values: Tensor, grad: Tensor, crow: Tensor, col: Tensor, x: Sizes, *how: Any) -> Tensor:
    """Its gradient by the images, whose shape is x."""
    geometry = Geometry(x, grad.shape, how, grad.element_size(), torch.get_num_threads())
    # With a stride there may be pixels that nothing sees.
    by_x = grad.new_empty(x) if geometry.inputs[:2] == (1, 1) else grad.new_zeros(x)
    starts, cols, *arrays = _arrays(crow, col, grad, values)
    operands = *arrays, *geometry.by_planes(starts, cols), by_x.numpy()
    _over_images(_input_grad, geometry, grad, len(cols) * grad[:, 0].numel(), operands)
    return by_x


def values_grad(grad: Tensor, x: Tensor, crow: Tensor, col: Tensor, *how: Any) -> Tensor:
    """Its gradient by the values `[nnz]`."""
    by_values = grad.new_zeros(col.shape[0])
    geometry = Geometry(x.shape, grad.shape, how, x.element_size(), 1)
    starts, cols, *arrays = _arrays(crow, col, grad, x)
    operands = *arrays, starts, *geometry.offsets(starts, cols), by_values.numpy()
    rest = geometry.inputs, geometry.outputs, geometry.grid, REGISTER_BYTES // x.element_size()
    units, work = len(cols) + len(starts) - 1, len(cols) * grad[:, 0].numel()
    in_threads(lambda begin, end: _values_grad(*operands, *rest, begin, end), units, work)
    return by_values


def _over_images(kernel: Any, geometry: Geometry, images: Tensor, work: int, operands: tuple[Any, ...]) -> None:
    rest = geometry.inputs, geometry.outputs, geometry.grid, REGISTER_BYTES // images.element_size()
    times = -(-len(images) // geometry.grid.together)
    in_threads(lambda begin, end: kernel(*operands, *rest, begin, end), times, work)


def _arrays(crow: Tensor, *tensors: Tensor) -> list[Any]:
    """All as arrays; where rows begin in int64, so that the large kernels are compiled for one kind of index."""
    return [tensor.detach().contiguous().numpy() for tensor in (crow.long(), *tensors)]


@compiled
def _offsets(crow, col, plane_of, shift_of, group_rows, group_planes, length, used, offset):  # type: ignore[no-untyped-def]
    for row in range(len(crow) - 1):
        for k in range(crow[row], crow[row + 1]):
            plane = row // group_rows * group_planes + plane_of[col[k]]
            used[plane] = True
            offset[k] = plane * length + shift_of[col[k]]


@compiled
def _by_planes(crow, col, plane_of, shift_of, group_rows, group_planes, grid, starts, place, offset):  # type: ignore[no-untyped-def]
    for row in range(len(crow) - 1):
        for k in range(crow[row], crow[row + 1]):
            starts[row // group_rows * group_planes + plane_of[col[k]] + 1] += 1
    for plane in range(len(starts) - 1):
        starts[plane + 1] += starts[plane]
    ends = starts.copy()
    for row in range(len(crow) - 1):
        for k in range(crow[row], crow[row + 1]):
            plane = row // group_rows * group_planes + plane_of[col[k]]
            place[ends[plane]] = k
            offset[ends[plane]] = row * grid.length + grid.margin - shift_of[col[k]]
            ends[plane] += 1


@intrinsic
def _move(typing, target, to, source, at, count):  # type: ignore[no-untyped-def]
    """Copy so many numbers; Numba's loops spend more on the short rows of images."""

    def generate(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        arrays = [context.make_array(signature.args[i])(context, build, arguments[i]) for i in (0, 2)]
        places = [build.gep(array.data, [arguments[i]]) for array, i in zip(arrays, (1, 3), strict=True)]
        cgutils.raw_memcpy(build, *places, arguments[4], arrays[0].itemsize)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), generate


@numba.njit(inline="always")
def _copy(images, first, count, planes, front, begin, end, side, grid, back):  # type: ignore[no-untyped-def]
    """Lay out planes, from begin to end, of some images, or copy them back."""
    phases = side.stride_y * side.stride_x
    channels, height, width = images.shape[1:]
    pixels, places = images.reshape(-1), planes.reshape(-1)
    for plane in range(begin, end):
        r, q = divmod(plane % phases, side.stride_x)
        top, left = r - side.top, q - side.left
        # The rows and columns with pixels of the image: the others are padding.
        first_row, last_row = max(0, -(top // side.stride_y)), min(side.rows, -((top - height) // side.stride_y))
        first_col, last_col = max(0, -(left // side.stride_x)), min(side.columns, -((left - width) // side.stride_x))
        if first_col >= last_col:
            continue
        for number in range(count):
            for i in range(first_row, last_row):
                row = ((first + number) * channels + plane // phases) * height + i * side.stride_y + top
                pixel = row * width + first_col * side.stride_x + left
                place = plane * grid.length + front + number * grid.image + i * grid.pitch + first_col
                columns = last_col - first_col
                if side.stride_x > 1:
                    for j in range(columns):
                        if back:
                            pixels[pixel + j * side.stride_x] = places[place + j]
                        else:
                            places[place + j] = pixels[pixel + j * side.stride_x]
                elif back:
                    _move(pixels, pixel, places, place, columns)
                else:
                    _move(places, place, pixels, pixel, columns)


@numba.njit(inline="always")
def _copy_used(images, first, count, planes, used, side, grid):  # type: ignore[no-untyped-def]
    """Lay out the planes that are read."""
    for plane in range(len(used)):
        if used[plane]:
            _copy(images, first, count, planes, 0, plane, plane + 1, side, grid, False)


@compiled
def _product(x, values, bias, starts, offset, used, y, biased, inputs, outputs, grid, lanes, begin, end):  # type: ignore[no-untyped-def]
    zero = x.dtype.type(0)
    sources, targets = np.zeros((len(used), grid.length), x.dtype), np.empty((y.shape[1], grid.length), x.dtype)
    for first in range(begin * grid.together, min(end * grid.together, len(x)), grid.together):
        count = min(grid.together, len(x) - first)
        _copy_used(x, first, count, sources, used, inputs, grid)
        total = count * grid.image
        width = lanes if total >= lanes else 1
        for left in range(0, total, width * MOST):
            right = min(left + width * MOST, total)
            vectors = (right - left + width - 1) // width
            for row in range(y.shape[1]):
                start = bias[row] if biased else zero
                place = row * grid.length, 1, left, right, starts[row], starts[row + 1], start, width, vectors
                plain_row_sum(targets, sources, values, offset, offset, *place)
        _copy(y, first, count, targets, 0, 0, y.shape[1], outputs, grid, True)


@compiled
def _input_grad(grad, values, starts, places, offset, by_x, inputs, outputs, grid, lanes, begin, end):  # type: ignore[no-untyped-def]
    zero = grad.dtype.type(0)
    planes = len(starts) - 1
    sources, targets = np.zeros((grad.shape[1], grid.length), grad.dtype), np.empty((planes, grid.length), grad.dtype)
    for first in range(begin * grid.together, min(end * grid.together, len(grad)), grid.together):
        count = min(grid.together, len(grad) - first)
        _copy(grad, first, count, sources, grid.margin, 0, grad.shape[1], outputs, grid, False)
        total = count * grid.image
        width = lanes if total >= lanes else 1
        for left in range(0, total, width * MOST):
            right = min(left + width * MOST, total)
            vectors = (right - left + width - 1) // width
            for plane in range(planes):
                place = plane * grid.length, 1, left, right, starts[plane], starts[plane + 1], zero, width, vectors
                permuted_row_sum(targets, sources, values, places, offset, *place)
        _copy(by_x, first, count, targets, 0, 0, planes, inputs, grid, True)


@compiled
def _values_grad(grad, x, starts, offset, used, by_values, inputs, outputs, grid, lanes, begin, end):  # type: ignore[no-untyped-def]
    first_row, last_row = row_at(starts, begin), row_at(starts, end)
    factors, sources = np.zeros((len(starts) - 1, grid.length), x.dtype), np.zeros((len(used), grid.length), x.dtype)
    for first in range(0, len(x), grid.together):
        count = min(grid.together, len(x) - first)
        _copy_used(x, first, count, sources, used, inputs, grid)
        _copy(grad, first, count, factors, 0, first_row, last_row, outputs, grid, False)
        total = count * grid.image
        width = lanes if total >= lanes else 1
        for left in range(0, total, SPAN):
            right = min(left + SPAN, total)
            for row in range(first_row, last_row):
                for k in range(starts[row], starts[row + 1], MOST):
                    most = min(MOST, starts[row + 1] - k)
                    dots(by_values, factors, sources, offset, row * grid.length, 1, left, right, k, width, most)
