"""Triton kernels. Feature maps are stored with channels innermost; sums are in float32.

Imported only if a GPU is used, or Triton's interpreter in place of one.

A group has few channels (10 to 80), and their number is not a power of two. So a program of the
group norm handles a block of adjacent whole groups: it reads wide and in order, sums per channel,
and combines the channels of a group at the end. Its grid is (chunks, blocks, images).
"""

import triton
import triton.language as tl

_ANY_SIZE = ["pixels", "strips", "span", "groups", "depth", "each", "tiles", "shift_stride"]
"""Compiled once for all values of these. Channels are passed as a number of strips of ``ALIGN``
channels, so that the compiler knows the alignment and one read loads a whole strip."""


@triton.jit
def _block(strips, span, BLOCK: tl.constexpr, ALIGN: tl.constexpr):
    """The program's channels: columns, mask of the valid ones, and number of the first."""
    first = tl.program_id(1) * span
    column = tl.arange(0, BLOCK)
    return column, column < tl.minimum(span, strips - first) * ALIGN, first * ALIGN


@triton.jit
def _image(pixels, strips, first, ALIGN: tl.constexpr):
    """Offset of the program's first channel in its image's first pixel."""
    return (tl.program_id(2) * pixels).to(tl.int64) * (strips * ALIGN) + first


@triton.jit
def _tile(tile, tiles, pixels, strips, column, within, ROWS: tl.constexpr, ALIGN: tl.constexpr):
    """Some pixels of the program's chunk: offsets in the image, and mask of the valid ones."""
    pixel = (tl.program_id(0) * tiles + tile) * ROWS + tl.arange(0, ROWS)
    inside = (pixel < pixels)[:, None] & within[None, :]
    return pixel[:, None] * (strips * ALIGN) + column[None, :], inside


@triton.jit
def _numbers(x, column, within):
    """One value per channel."""
    return tl.load(x + column, mask=within, other=0.0).to(tl.float32)


@triton.jit
def _shift(shift, first, shift_stride, column, within, SHIFTED: tl.constexpr):
    """The value added to each channel of the image."""
    if SHIFTED:
        return _numbers(shift + tl.program_id(2) * shift_stride + first, column, within)
    return tl.zeros(column.shape, tl.float32)


@triton.jit
def _members(column, within, depth, SLOTS: tl.constexpr):
    """Mask (channels, slots) of the channels that belong to each of the program's groups."""
    return ((column // depth)[:, None] == tl.arange(0, SLOTS)[None, :]) & within[:, None]


@triton.jit
def _of_groups(by_channel, members):
    """Sums over the channels of each group."""
    return tl.sum(tl.where(members, by_channel[:, None], 0.0), axis=0)


@triton.jit
def _at_channels(by_group, members):
    """Each group's value at all of its channels."""
    return tl.sum(tl.where(members, by_group[None, :], 0.0), axis=1)


@triton.jit
def _groups(groups, each, SLOTS: tl.constexpr):
    """The program's groups: their numbers in the batch, and mask of the slots with a group."""
    slot = tl.arange(0, SLOTS)
    own = tl.program_id(1) * each + slot
    return tl.program_id(2) * groups + own, (slot < each) & (own < groups)


@triton.jit
def _store_two(partial, groups, each, one, other, SLOTS: tl.constexpr):
    """Store two values of the program's chunk for each group: (groups, chunks, 2)."""
    group, real = _groups(groups, each, SLOTS)
    at = partial + (group * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(at, one, mask=real)
    tl.store(at + 1, other, mask=real)


@triton.jit
def _load_two(partial, groups, each, SLOTS: tl.constexpr, MOST: tl.constexpr):
    """Load the two values of every chunk: (slots, chunks) each."""
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
    # A channel's first value approximates its mean: squared differences lose few digits.
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
    """Normalise the feature map; store each group's mean and inverse deviation in ``stats``."""
    # Chan, Golub and LeVeque, 1979: combine the moments of parts.
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
    """The gradient before SiLU."""
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
    """For each group in each chunk: sum of the gradient, and sum of its product with the
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
        # Outside the valid range the gradient is 0.
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
    """The gradient of the feature map, plus the gradient of its other use."""
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
    """Some whole rows: their numbers, the columns, mask of the valid ones, and offsets."""
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
    """``a + b``, or ``a`` if there is no b, and its normalised rows; moments go to ``stats``."""
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
    """The gradient of the rows, plus the gradient of their other use."""
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
    """Some columns of some rows: mask of the valid ones, offsets of the first half in double-width
    rows, and offsets in single-width rows."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    of_one = row[:, None] * width + column[None, :]
    return inside, of_one + row[:, None] * width, of_one


@triton.jit
def gate(x, y, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """``a * gelu(b)`` for rows (a, b)."""
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
def add(a, b, bias, y, numbers, channels, inverse, BLOCK: tl.constexpr):
    """``a + b`` plus one value per channel."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    index = tl.arange(0, BLOCK)
    position = (first % channels).to(tl.int32) + index
    channel = position - ((position + 0.5) * inverse).to(tl.int32) * channels
    inside = first + index < numbers
    value = tl.load(a + first + index, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(b + first + index, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + first + index, value.to(y.dtype.element_ty), mask=inside)
