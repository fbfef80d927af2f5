"""Kernels in Triton. Feature maps lie with the channels innermost; sums are in float32.

Imported where a GPU is used, or Triton's interpreter stands in for one.

A group's channels are few (10 to 80) and no power of two. So a program of the group norm takes a
block of whole groups that lie side by side: it reads wide and in order, sums by the channel, and
brings the channels of a group together at the end. Its grid is (chunks, blocks, images).
"""

import triton
import triton.language as tl

_ANY_SIZE = ["pixels", "strips", "span", "groups", "depth", "each", "tiles", "shift_stride"]
"""Compiled once for all sizes. That channels are multiples of ``ALIGN``, which lets a thread read
so many at once, shows by their being given as strips of so many."""


@triton.jit
def _block(strips, span, BLOCK: tl.constexpr, ALIGN: tl.constexpr):
    """The program's channels: columns, which of them count, and the number of the first."""
    first = tl.program_id(1) * span
    column = tl.arange(0, BLOCK)
    return column, column < tl.minimum(span, strips - first) * ALIGN, first * ALIGN


@triton.jit
def _image(pixels, strips, first, ALIGN: tl.constexpr):
    """Offset of the program's first channel in its image's first pixel."""
    return (tl.program_id(2) * pixels).to(tl.int64) * (strips * ALIGN) + first


@triton.jit
def _tile(tile, tiles, pixels, strips, column, within, ROWS: tl.constexpr, ALIGN: tl.constexpr):
    """Some pixels of the program's chunk: offsets in the image, and which count."""
    pixel = (tl.program_id(0) * tiles + tile) * ROWS + tl.arange(0, ROWS)
    inside = (pixel < pixels)[:, None] & within[None, :]
    return pixel[:, None] * (strips * ALIGN) + column[None, :], inside


@triton.jit
def _numbers(x, column, within):
    """One for each channel."""
    return tl.load(x + column, mask=within, other=0.0).to(tl.float32)


@triton.jit
def _shift(shift, first, shift_stride, column, within, SHIFTED: tl.constexpr):
    """What is added to each channel of the image."""
    if SHIFTED:
        return _numbers(shift + tl.program_id(2) * shift_stride + first, column, within)
    return tl.zeros(column.shape, tl.float32)


@triton.jit
def _members(column, within, depth, SLOTS: tl.constexpr):
    """Which channel belongs to which of the program's groups: (channels, slots)."""
    return ((column // depth)[:, None] == tl.arange(0, SLOTS)[None, :]) & within[:, None]


@triton.jit
def _of_groups(by_channel, members):
    """Sums over the channels of each group."""
    return tl.sum(tl.where(members, by_channel[:, None], 0.0), axis=0)


@triton.jit
def _at_channels(by_group, members):
    """Each group's number at all of its channels."""
    return tl.sum(tl.where(members, by_group[None, :], 0.0), axis=1)


@triton.jit
def _groups(groups, each, SLOTS: tl.constexpr):
    """The program's groups: numbers in the batch, and which of the slots have one."""
    slot = tl.arange(0, SLOTS)
    own = tl.program_id(1) * each + slot
    return tl.program_id(2) * groups + own, (slot < each) & (own < groups)


@triton.jit
def _store_two(partial, groups, each, one, other, SLOTS: tl.constexpr):
    """Two numbers of the program's chunk for each group: (groups, chunks, 2)."""
    group, real = _groups(groups, each, SLOTS)
    at = partial + (group * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(at, one, mask=real)
    tl.store(at + 1, other, mask=real)


@triton.jit
def _load_two(partial, groups, each, SLOTS: tl.constexpr, MOST: tl.constexpr):
    """These two numbers of every chunk: (slots, chunks)."""
    group, real = _groups(groups, each, SLOTS)
    chunk, chunks = tl.arange(0, MOST), tl.num_programs(0)
    at = partial + (group[:, None] * chunks + chunk[None, :]) * 2
    some = real[:, None] & (chunk < chunks)[None, :]
    return tl.load(at, mask=some, other=0.0), tl.load(at + 1, mask=some, other=0.0)


@triton.jit(do_not_specialize=_ANY_SIZE)
def moments(
    x,
    shift,
    partial,
    pixels,
    strips,
    span,
    groups,
    depth,
    each,
    tiles,
    shift_stride,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Mean and summed squared deviation of each group in each chunk."""
    column, within, first = _block(strips, span, BLOCK, ALIGN)
    start = x + _image(pixels, strips, first, ALIGN)
    begin = tl.program_id(0) * tiles * ROWS
    # A channel's first value stands in for its mean: squares of what is left lose few digits.
    pivot = _numbers(start + begin * (strips * ALIGN), column, within)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tiles):
        offset, inside = _tile(tile, tiles, pixels, strips, column, within, ROWS, ALIGN)
        value = tl.load(start + offset, mask=inside, other=0.0).to(tl.float32)
        apart = tl.where(inside, value - pivot[None, :], 0.0)
        sums += apart
        squares += apart * apart
    count = tl.minimum(tiles * ROWS, pixels - begin).to(tl.float32)
    beyond = tl.sum(sums, axis=0) / count
    mean = pivot + beyond + _shift(shift, first, shift_stride, column, within, SHIFTED)
    members = _members(column, within, depth, SLOTS)
    level = _of_groups(mean, members) / depth
    apart = mean - _at_channels(level, members)
    spread = tl.sum(squares, axis=0) + count * (apart * apart - beyond * beyond)
    _store_two(partial, groups, each, level, _of_groups(spread, members), SLOTS)


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
    strips,
    span,
    groups,
    depth,
    each,
    tiles,
    shift_stride,
    epsilon,
    SHIFTED: tl.constexpr,
    ACTIVATED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
    ALIGN: tl.constexpr,
    MOST: tl.constexpr,
):
    """The normalised feature map; each group's mean and inverse deviation into ``stats``."""
    # Chan, Golub and LeVeque, 1979: moments of parts to moments of the whole.
    means, squares = _load_two(partial, groups, each, SLOTS, MOST)
    begin = tl.arange(0, MOST) * tiles * ROWS
    counts = (tl.maximum(tl.minimum(tiles * ROWS, pixels - begin), 0) * depth).to(tl.float32)
    count = (pixels * depth).to(tl.float32)
    mean = tl.sum(counts[None, :] * means, axis=1) / count
    apart = means - mean[:, None]
    spread = tl.sum(squares + counts[None, :] * apart * apart, axis=1) / count
    scale = 1.0 / tl.sqrt(spread + epsilon)
    group, real = _groups(groups, each, SLOTS)
    real = real & (tl.program_id(0) == 0)
    tl.store(stats + group * 2, mean, mask=real)
    tl.store(stats + group * 2 + 1, scale, mask=real)

    column, within, first = _block(strips, span, BLOCK, ALIGN)
    members = _members(column, within, depth, SLOTS)
    level = _shift(shift, first, shift_stride, column, within, SHIFTED)
    level -= _at_channels(mean, members)
    gain = _at_channels(scale, members) * _numbers(weight + first, column, within)
    least = _numbers(bias + first, column, within)
    start = _image(pixels, strips, first, ALIGN)
    for tile in range(tiles):
        offset, inside = _tile(tile, tiles, pixels, strips, column, within, ROWS, ALIGN)
        value = tl.load(x + start + offset, mask=inside, other=0.0).to(tl.float32)
        value = (value + level[None, :]) * gain[None, :] + least[None, :]
        if ACTIVATED:
            value = value * tl.sigmoid(value)
        tl.store(y + start + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _own_stats(stats, groups, depth, each, column, within):
    """Mean and inverse deviation at each channel."""
    group = tl.program_id(2) * groups + tl.program_id(1) * each + column // depth
    at = stats + group * 2
    return tl.load(at, mask=within, other=0.0), tl.load(at + 1, mask=within, other=0.0)


@triton.jit
def _before_activation(value, gradient, gain, least, ACTIVATED: tl.constexpr):
    """The gradient of what SiLU took."""
    if ACTIVATED:
        before = value * gain[None, :] + least[None, :]
        gate = tl.sigmoid(before)
        gradient = gradient * gate * (1.0 + before * (1.0 - gate))
    return gradient


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
    strips,
    span,
    groups,
    depth,
    each,
    tiles,
    shift_stride,
    SHIFTED: tl.constexpr,
    ACTIVATED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Of each group in each chunk: the gradient's sum, and that of its product with the
    normalised value."""
    column, within, first = _block(strips, span, BLOCK, ALIGN)
    mean, scale = _own_stats(stats, groups, depth, each, column, within)
    level = _shift(shift, first, shift_stride, column, within, SHIFTED) - mean
    gain = _numbers(weight + first, column, within)
    least = _numbers(bias + first, column, within)
    start = _image(pixels, strips, first, ALIGN)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    products = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tiles):
        offset, inside = _tile(tile, tiles, pixels, strips, column, within, ROWS, ALIGN)
        value = tl.load(x + start + offset, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dy + start + offset, mask=inside, other=0.0).to(tl.float32)
        value = (value + level[None, :]) * scale[None, :]
        # Outside, the gradient is 0.
        gradient = _before_activation(value, gradient, gain, least, ACTIVATED)
        sums += gradient
        products += gradient * value
    members = _members(column, within, depth, SLOTS)
    one = _of_groups(tl.sum(sums, axis=0) * gain, members)
    other = _of_groups(tl.sum(products, axis=0) * gain, members)
    _store_two(partial, groups, each, one, other, SLOTS)


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
    strips,
    span,
    groups,
    depth,
    each,
    tiles,
    shift_stride,
    SHIFTED: tl.constexpr,
    ACTIVATED: tl.constexpr,
    SKIPPED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
    ALIGN: tl.constexpr,
    MOST: tl.constexpr,
):
    """The gradient of the feature map, with that of its other use."""
    column, within, first = _block(strips, span, BLOCK, ALIGN)
    members = _members(column, within, depth, SLOTS)
    sums, products = _load_two(partial, groups, each, SLOTS, MOST)
    count = (pixels * depth).to(tl.float32)
    even = _at_channels(tl.sum(sums, axis=1) / count, members)
    slope = _at_channels(tl.sum(products, axis=1) / count, members)
    mean, scale = _own_stats(stats, groups, depth, each, column, within)
    level = _shift(shift, first, shift_stride, column, within, SHIFTED) - mean
    gain = _numbers(weight + first, column, within)
    least = _numbers(bias + first, column, within)
    start = _image(pixels, strips, first, ALIGN)
    for tile in range(tiles):
        offset, inside = _tile(tile, tiles, pixels, strips, column, within, ROWS, ALIGN)
        value = tl.load(x + start + offset, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dy + start + offset, mask=inside, other=0.0).to(tl.float32)
        value = (value + level[None, :]) * scale[None, :]
        gradient = _before_activation(value, gradient, gain, least, ACTIVATED) * gain[None, :]
        gradient = (gradient - even[None, :] - value * slope[None, :]) * scale[None, :]
        if SKIPPED:
            gradient += tl.load(other + start + offset, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + start + offset, gradient.to(dx.dtype.element_ty), mask=inside)


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
def _halves(rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Some columns of some rows: which count, offsets of the first half's in rows of both, and
    offsets in rows of one."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    of_one = row[:, None] * width + column[None, :]
    return inside, of_one + row[:, None] * width, of_one


@triton.jit
def gate(x, y, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """``a * gelu(b)`` of rows (a, b)."""
    inside, of_both, of_one = _halves(rows, width, ROWS, BLOCK)
    a = tl.load(x + of_both, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + of_both + width, mask=inside, other=0.0).to(tl.float32)
    value = a * b * 0.5 * (1.0 + tl.erf(b * 0.7071067811865476))
    tl.store(y + of_one, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gate_gradient(dy, x, dx, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The gradients of a and b."""
    inside, of_both, of_one = _halves(rows, width, ROWS, BLOCK)
    a = tl.load(x + of_both, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + of_both + width, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dy + of_one, mask=inside, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(b * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * b * b)
    of_a = gradient * b * below
    of_b = gradient * a * (below + b * density)
    tl.store(dx + of_both, of_a.to(dx.dtype.element_ty), mask=inside)
    tl.store(dx + of_both + width, of_b.to(dx.dtype.element_ty), mask=inside)


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
