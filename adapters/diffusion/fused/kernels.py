"""Kernels in Triton. Feature maps lie with the channels innermost; sums are in float32.

Imported where a GPU is used, or Triton's interpreter stands in for one.

A group's channels are few (10 to 80) and no power of two. So a tile is a stretch of ``BLOCK``
numbers, cut into rows of ``depth`` channels by multiplication with ``1 / depth``: exact for
stretches this short, quicker than a division, and one compiled kernel serves every depth.
"""

import triton
import triton.language as tl

_ANY_SIZE = ["pixels", "channels", "groups", "depth", "rows", "shift_stride"]
"""Compiled once for all sizes: nothing is won by knowing that one is a multiple of 16."""


@triton.jit
def _tile(
    unit,
    chunk,
    pixels,
    channels,
    groups,
    depth,
    inverse,
    rows,
    BLOCK: tl.constexpr,
):
    """Where a chunk of one picture's group lies: offsets, channels, and which of them count."""
    picture = unit // groups
    index = tl.arange(0, BLOCK)
    row = ((index + 0.5) * inverse).to(tl.int32)
    channel = (unit % groups) * depth + index - row * depth
    pixel = chunk * rows + row
    inside = (row < rows) & (pixel < pixels)
    offset = (picture * pixels + pixel).to(tl.int64) * channels + channel
    return offset, channel, inside


@triton.jit
def _value(x, shift, unit, groups, offset, channel, inside, shift_stride, SHIFTED: tl.constexpr):
    """A tile of the feature map, shifted."""
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    if SHIFTED:
        own = shift + (unit // groups) * shift_stride
        value += tl.load(own + channel, mask=inside, other=0.0).to(tl.float32)
    return value


@triton.jit(do_not_specialize=_ANY_SIZE)
def moments(
    x,
    shift,
    partial,
    pixels,
    channels,
    groups,
    depth,
    inverse,
    rows,
    shift_stride,
    SHIFTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mean and summed squared deviation of each chunk: (units, chunks, 2)."""
    chunk, unit = tl.program_id(0), tl.program_id(1)
    offset, channel, inside = _tile(
        unit, chunk, pixels, channels, groups, depth, inverse, rows, BLOCK
    )
    value = _value(x, shift, unit, groups, offset, channel, inside, shift_stride, SHIFTED)
    count = tl.minimum(rows, pixels - chunk * rows) * depth
    mean = tl.sum(value, axis=0) / count
    deviation = tl.where(inside, value - mean, 0.0)
    at = partial + (unit * tl.num_programs(0) + chunk) * 2
    tl.store(at, mean)
    tl.store(at + 1, tl.sum(deviation * deviation, axis=0))


@triton.jit(do_not_specialize=_ANY_SIZE)
def normalise(
    x,
    shift,
    weight,
    bias,
    partial,
    stats,
    y,
    pixels,
    channels,
    groups,
    depth,
    inverse,
    rows,
    shift_stride,
    epsilon,
    SHIFTED: tl.constexpr,
    ACTIVATED: tl.constexpr,
    BLOCK: tl.constexpr,
    MOST: tl.constexpr,
):
    """The normalised feature map; each unit's mean and inverse deviation into ``stats``."""
    chunk, unit, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    # Chan, Golub and LeVeque, 1979: moments of parts to moments of the whole.
    each = tl.arange(0, MOST)
    some = each < chunks
    at = partial + (unit * chunks + each) * 2
    counts = tl.where(some, tl.minimum(rows, pixels - each * rows) * depth, 0).to(tl.float32)
    means = tl.load(at, mask=some, other=0.0)
    squares = tl.load(at + 1, mask=some, other=0.0)
    count = (pixels * depth).to(tl.float32)
    mean = tl.sum(counts * means, axis=0) / count
    apart = means - mean
    spread = tl.sum(squares + counts * apart * apart, axis=0) / count
    scale = 1.0 / tl.sqrt(spread + epsilon)
    if chunk == 0:
        tl.store(stats + unit * 2, mean)
        tl.store(stats + unit * 2 + 1, scale)
    offset, channel, inside = _tile(
        unit, chunk, pixels, channels, groups, depth, inverse, rows, BLOCK
    )
    value = _value(x, shift, unit, groups, offset, channel, inside, shift_stride, SHIFTED)
    gain = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    value = (value - mean) * scale * gain
    value += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATED:
        value = value * tl.sigmoid(value)
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_inside(
    dy,
    x,
    shift,
    weight,
    bias,
    stats,
    unit,
    groups,
    offset,
    channel,
    inside,
    shift_stride,
    SHIFTED: tl.constexpr,
    ACTIVATED: tl.constexpr,
):
    """The normalised value, and the gradient of it."""
    value = _value(x, shift, unit, groups, offset, channel, inside, shift_stride, SHIFTED)
    value = (value - tl.load(stats + unit * 2)) * tl.load(stats + unit * 2 + 1)
    gain = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dy + offset, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATED:
        before = value * gain + tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
        gate = tl.sigmoid(before)
        gradient *= gate * (1.0 + before * (1.0 - gate))
    return value, gradient * gain


@triton.jit(do_not_specialize=_ANY_SIZE)
def gradient_sums(
    dy,
    x,
    shift,
    weight,
    bias,
    stats,
    partial,
    pixels,
    channels,
    groups,
    depth,
    inverse,
    rows,
    shift_stride,
    SHIFTED: tl.constexpr,
    ACTIVATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over each chunk of the gradient, and of its product with the normalised value."""
    chunk, unit = tl.program_id(0), tl.program_id(1)
    offset, channel, inside = _tile(
        unit, chunk, pixels, channels, groups, depth, inverse, rows, BLOCK
    )
    value, gradient = _gradient_inside(
        dy, x, shift, weight, bias, stats, unit, groups, offset, channel, inside,
        shift_stride, SHIFTED, ACTIVATED,
    )  # fmt: skip
    at = partial + (unit * tl.num_programs(0) + chunk) * 2
    # Outside, the gradient is 0.
    tl.store(at, tl.sum(gradient, axis=0))
    tl.store(at + 1, tl.sum(gradient * value, axis=0))


@triton.jit(do_not_specialize=_ANY_SIZE)
def gradient_through(
    dy,
    x,
    shift,
    weight,
    bias,
    stats,
    partial,
    other,
    dx,
    pixels,
    channels,
    groups,
    depth,
    inverse,
    rows,
    shift_stride,
    SHIFTED: tl.constexpr,
    ACTIVATED: tl.constexpr,
    SKIPPED: tl.constexpr,
    BLOCK: tl.constexpr,
    MOST: tl.constexpr,
):
    """The gradient of the feature map, with that of its other use."""
    chunk, unit, chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    each = tl.arange(0, MOST)
    at = partial + (unit * chunks + each) * 2
    count = (pixels * depth).to(tl.float32)
    level = tl.sum(tl.load(at, mask=each < chunks, other=0.0), axis=0) / count
    slope = tl.sum(tl.load(at + 1, mask=each < chunks, other=0.0), axis=0) / count
    offset, channel, inside = _tile(
        unit, chunk, pixels, channels, groups, depth, inverse, rows, BLOCK
    )
    value, gradient = _gradient_inside(
        dy, x, shift, weight, bias, stats, unit, groups, offset, channel, inside,
        shift_stride, SHIFTED, ACTIVATED,
    )  # fmt: skip
    gradient = (gradient - level - value * slope) * tl.load(stats + unit * 2 + 1)
    if SKIPPED:
        gradient += tl.load(other + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + offset, gradient.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _rows(rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Some whole rows: their numbers, the columns, which of both count, and offsets."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    within = column < width
    inside = (row < rows)[:, None] & within[None, :]
    offset = row.to(tl.int64)[:, None] * width + column[None, :]
    return row, column, within, inside, offset


@triton.jit
def layer_norm(
    a,
    b,
    weight,
    bias,
    total,
    y,
    stats,
    rows,
    width,
    epsilon,
    ADDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``a + b`` where there is a b, and its rows normalised; their moments into ``stats``."""
    row, column, within, inside, offset = _rows(rows, width, ROWS, BLOCK)
    value = tl.load(a + offset, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        value += tl.load(b + offset, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + offset, value.to(total.dtype.element_ty), mask=inside)
    mean = tl.sum(value, axis=1) / width
    deviation = tl.where(inside, value - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(deviation * deviation, axis=1) / width + epsilon)
    tl.store(stats + row * 2, mean, mask=row < rows)
    tl.store(stats + row * 2 + 1, scale, mask=row < rows)
    gain = tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
    level = tl.load(bias + column, mask=within, other=0.0).to(tl.float32)
    value = deviation * scale[:, None] * gain[None, :] + level[None, :]
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_gradient(
    dy,
    other,
    x,
    weight,
    stats,
    dx,
    rows,
    width,
    SKIPPED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of the rows, with that of their other use."""
    row, column, within, inside, offset = _rows(rows, width, ROWS, BLOCK)
    mean = tl.load(stats + row * 2, mask=row < rows, other=0.0)[:, None]
    scale = tl.load(stats + row * 2 + 1, mask=row < rows, other=0.0)[:, None]
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    value = (value - mean) * scale
    gradient = tl.load(dy + offset, mask=inside, other=0.0).to(tl.float32)
    gradient *= tl.load(weight + column, mask=within, other=0.0).to(tl.float32)[None, :]
    level = tl.sum(gradient, axis=1) / width
    slope = tl.sum(gradient * value, axis=1) / width
    gradient = (gradient - level[:, None] - value * slope[:, None]) * scale
    if SKIPPED:
        gradient += tl.load(other + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + offset, gradient.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def gate(x, y, width, BLOCK: tl.constexpr):
    """``a * gelu(b)`` of rows (a, b)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = x + row * 2 * width + column
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    value = a * b * 0.5 * (1.0 + tl.erf(b * 0.7071067811865476))
    tl.store(y + row * width + column, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gate_gradient(dy, x, dx, width, BLOCK: tl.constexpr):
    """The gradients of a and b."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    at = row * 2 * width + column
    a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + at + width, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dy + row * width + column, mask=inside, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(b * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * b * b)
    of_a = gradient * b * below
    of_b = gradient * a * (below + b * density)
    tl.store(dx + at, of_a.to(dx.dtype.element_ty), mask=inside)
    tl.store(dx + at + width, of_b.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def add(
    a,
    b,
    bias,
    y,
    numbers,
    channels,
    inverse,
    BLOCK: tl.constexpr,
):
    """``a + b`` and a number for each channel."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    index = tl.arange(0, BLOCK)
    position = (first % channels).to(tl.int32) + index
    channel = position - ((position + 0.5) * inverse).to(tl.int32) * channels
    inside = first + index < numbers
    value = tl.load(a + first + index, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(b + first + index, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + first + index, value.to(y.dtype.element_ty), mask=inside)
