"""The inner loops of the sparse engine, compiled by numba: an activation's samples lie side by
side, so one surviving weight is one multiply-add of a run of samples.

An array of activations is [block, floats of a block]. A block holds ``lanes`` samples as
[channel][row][column][lane], with margins around the rows and columns that stay 0; ``plane`` and
``pitch`` are the floats from one channel and from one row to the next, ``origin`` is the place of
the first number inside the margins, ``run`` the floats of a row without them. The package's
docstring has a drawing.
"""

from __future__ import annotations

import numpy as np

try:
    import numba
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic, models, register_model

    from .cache import jit

    primitive = intrinsic(prefer_literal=True)
except ImportError:
    numba = None
    jit = primitive = lambda function: function

#: pixels and samples that are transposed together
NARROW = 8
#: floats of an activation from which a gradient is added up at a time, so that they stay in the
#: nearest cache
STRETCH = 512
#: floats of a vector: one AVX-512 register, two AVX2 registers; every run is a multiple
STEP = 16
FLAGS = ("contract", "reassoc", "nsz")


# --- vectors in registers -------------------------------------------------------------------------

if numba:

    class Vector(types.Type):
        """``lanes`` float32 in registers; numba has no such type, and would keep a sum over many
        samples in memory."""

        def __init__(self, lanes: int):
            self.lanes = lanes
            super().__init__(f"Vector({lanes})")

    @register_model(Vector)
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager, kind):
            super().__init__(manager, kind, ir.VectorType(ir.FloatType(), kind.lanes))


def _pointer(context, builder, kind, array, index, lanes):
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(
        builder.gep(data, [index]), ir.VectorType(ir.FloatType(), lanes).as_pointer()
    )


def _splat(builder, number, kind):
    vector = ir.VectorType(ir.FloatType(), kind.lanes)
    first = builder.insert_element(
        ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0)
    )
    return builder.shuffle_vector(
        first,
        ir.Constant(vector, ir.Undefined),
        ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), [0] * kind.lanes),
    )


@primitive
def load(typing, array, index, lanes):
    """``array[index:index + lanes]``."""

    def lower(context, builder, signature, values):
        return builder.load(
            _pointer(context, builder, array, values[0], values[1], lanes.literal_value), align=4
        )

    return Vector(lanes.literal_value)(array, types.intp, lanes), lower


@primitive
def store(typing, array, index, vector):
    """``array[index:index + lanes] = vector``."""

    def lower(context, builder, signature, values):
        builder.store(
            values[2],
            _pointer(context, builder, array, values[0], values[1], vector.lanes),
            align=4,
        )

    return types.void(array, types.intp, vector), lower


@primitive
def fill(typing, number, lanes):
    """The vector whose every lane is ``number``."""

    def lower(context, builder, signature, values):
        return _splat(builder, values[0], signature.return_type)

    return Vector(lanes.literal_value)(types.float32, lanes), lower


@primitive
def madd(typing, vector, factor, other):
    """``vector + factor * other``; ``factor`` is a number or a vector."""
    scalar = not isinstance(factor, Vector)

    def lower(context, builder, signature, values):
        factors = _splat(builder, values[1], vector) if scalar else values[1]
        return builder.fadd(values[0], builder.fmul(factors, values[2], flags=FLAGS), flags=FLAGS)

    return vector(vector, types.float32 if scalar else factor, other), lower


@primitive
def total(typing, vector):
    """The sum over all lanes."""

    def lower(context, builder, signature, values):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), values[0].type])
        add = cgutils.get_or_insert_function(
            builder.module, kind, f"llvm.vector.reduce.fadd.v{vector.lanes}f32"
        )
        return builder.call(add, [ir.Constant(ir.FloatType(), -0.0), values[0]], fastmath=FLAGS)

    return types.float32(vector), lower


@primitive
def repeat(typing, vector, times):
    """``vector`` so many times, one behind the other."""

    def lower(context, builder, signature, values):
        kind = ir.VectorType(ir.IntType(32), signature.return_type.lanes)
        return builder.shuffle_vector(
            values[0], values[0], ir.Constant(kind, list(range(vector.lanes)) * times.literal_value)
        )

    return Vector(vector.lanes * times.literal_value)(vector, times), lower


@primitive
def collect(typing, array, start, places, k, count):
    """``array[start + place:][:STEP]`` for ``count`` places from ``places[k]`` on, one behind the
    other."""

    def lower(context, builder, signature, values):
        table = context.make_array(places)(context, builder, values[2]).data
        where = [
            builder.gep(table, [builder.add(values[3], ir.Constant(values[3].type, i))])
            for i in range(count.literal_value)
        ]
        where = [
            context.cast(builder, builder.load(place), places.dtype, types.intp) for place in where
        ]
        parts = [
            builder.load(
                _pointer(context, builder, array, values[0], builder.add(values[1], place), STEP),
                align=4,
            )
            for place in where
        ]
        while len(parts) > 1:
            mask = ir.Constant(
                ir.VectorType(ir.IntType(32), 2 * parts[0].type.count),
                list(range(2 * parts[0].type.count)),
            )
            parts = [builder.shuffle_vector(*pair, mask) for pair in zip(parts[::2], parts[1::2])]
        return parts[0]

    return Vector(STEP * count.literal_value)(array, types.intp, places, types.intp, count), lower


@primitive
def add_totals(typing, array, index, vector, count):
    """``array[index + i] += `` the sum over the i-th of ``count`` parts of the vector."""

    def lower(context, builder, signature, values):
        sums, width = values[2], vector.lanes // count.literal_value
        while width > 1:  # halves every part
            width //= 2
            lanes = [
                2 * width * part + lane
                for part in range(count.literal_value)
                for lane in range(width)
            ]
            kind = ir.VectorType(ir.IntType(32), len(lanes))
            halves = (
                builder.shuffle_vector(
                    sums, sums, ir.Constant(kind, [lane + shift for lane in lanes])
                )
                for shift in (0, width)
            )
            sums = builder.fadd(*halves, flags=FLAGS)
        place = _pointer(context, builder, array, values[0], values[1], count.literal_value)
        builder.store(builder.fadd(builder.load(place, align=4), sums), place, align=4)

    return types.void(array, types.intp, vector, count), lower


@primitive
def larger(typing, vector, other):
    """The larger of two vectors, lane by lane; ``vector`` where either is nan."""

    def lower(context, builder, signature, values):
        return builder.select(builder.fcmp_ordered("<", *values), values[1], values[0])

    return vector(vector, other), lower


@primitive
def where_positive(typing, vector, other):
    """``vector`` in the lanes where ``other`` is above 0, else 0."""

    def lower(context, builder, signature, values):
        zero = ir.Constant(values[0].type, None)
        return builder.select(builder.fcmp_ordered(">", values[1], zero), values[0], zero)

    return vector(vector, other), lower


@primitive
def take(typing, vector, other, where):
    """``vector`` in the lanes where ``other`` equals ``where``, else 0."""

    def lower(context, builder, signature, values):
        zero = ir.Constant(values[0].type, None)
        return builder.select(builder.fcmp_ordered("==", values[1], values[2]), values[0], zero)

    return vector(vector, other, where), lower


@primitive
def exponent(typing, n):
    """2 ** n for a whole number n from -126 to 127."""

    def lower(context, builder, signature, values):
        bits = builder.shl(
            builder.add(values[0], ir.Constant(ir.IntType(32), 127)),
            ir.Constant(ir.IntType(32), 23),
        )
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.int32), lower


@primitive
def transpose(typing, target, here, down, source, there, step):
    """``target[here + i * down + j] = source[there + j * step + i]`` for i, j < ``NARROW``."""

    def lower(context, builder, signature, values):
        def place(array, kind, start, stride, number):
            offset = builder.mul(stride, ir.Constant(stride.type, number))
            return _pointer(context, builder, kind, array, builder.add(start, offset), NARROW)

        rows = [
            builder.load(place(values[3], source, values[4], values[5], i), align=4)
            for i in range(NARROW)
        ]
        for distance in (1, 2, 4):  # swaps the off-diagonal squares of this size
            low = [lane + NARROW - distance if lane & distance else lane for lane in range(NARROW)]
            for i in range(NARROW):
                if not i & distance:
                    pair = rows[i], rows[i + distance]
                    lanes = ([lane + shift for lane in low] for shift in (0, distance))
                    masks = (
                        ir.Constant(ir.VectorType(ir.IntType(32), NARROW), mask) for mask in lanes
                    )
                    rows[i], rows[i + distance] = (
                        builder.shuffle_vector(*pair, mask) for mask in masks
                    )
        for i, row in enumerate(rows):
            builder.store(row, place(values[0], target, values[1], values[2], i), align=4)

    return types.void(target, types.intp, types.intp, source, types.intp, types.intp), lower


# --- convolutions ---------------------------------------------------------------------------------


def _strip(lanes: int):
    """``lanes`` neighbouring floats of every channel of y; all channels together, because they read
    the same x."""

    @jit
    def strip(
        y, x, gate, here, there, plane, weights, biases, places, starts, low, high, positive, add
    ):
        zero = fill(np.float32(0), lanes)
        for tile in range(len(starts)):
            last = tile == len(starts) - 1
            for r in range(starts.shape[1]):
                result = load(y, here + r * plane, lanes) if add or tile else fill(biases[r], lanes)
                for k in range(starts[tile, r, low], starts[tile, r, high]):
                    result = madd(result, weights[k], load(x, there + places[k], lanes))
                if last and positive:
                    result = larger(result, zero)
                if last and len(gate):
                    result = where_positive(result, load(gate, here + r * plane, lanes))
                store(y, here + r * plane, result)

    return strip


_widest, _wide, _half, _narrow = (_strip(times * STEP) for times in (8, 4, 2, 1))


@jit
def gather(
    y,
    x,
    gate,
    weights,
    biases,
    places,
    starts,
    lows,
    highs,
    run,
    origin,
    plane,
    pitch,
    x_pitch,
    positive,
    add,
):
    """``y = biases + weights * x``, or ``y += weights * x`` with ``add``; then 0 where negative, if
    ``positive``, or where ``gate`` is.

    Weight k reads the row of x that lies ``places[k]`` behind the row of y. Channel r of y has, in
    each tile of the input channels, the weights from ``starts[tile, r, 0]`` to ``starts[tile, r,
    -1]``, sorted by the row of the kernel; row i of y needs rows ``lows[i]`` to ``highs[i]`` of it,
    the others would only read margins. Geometry without a prefix is y's.
    """
    for block in range(len(y)):
        for i in range(len(lows)):
            here, there = block * y.shape[1] + origin + i * pitch, block * x.shape[1] + i * x_pitch
            rest = plane, weights, biases, places, starts, lows[i], highs[i], positive, add
            t = 0
            while t + 8 * STEP <= run:
                _widest(y, x, gate, here + t, there + t, *rest)
                t += 8 * STEP
            if t + 4 * STEP <= run:
                _wide(y, x, gate, here + t, there + t, *rest)
                t += 4 * STEP
            if t + 2 * STEP <= run:
                _half(y, x, gate, here + t, there + t, *rest)
                t += 2 * STEP
            if t < run:
                _narrow(y, x, gate, here + t, there + t, *rest)


def _group(count: int):
    """The gradients of ``count`` weights of one output from one stretch of a batch; together,
    because they share what is read of dy."""
    lanes = count * STEP

    @jit
    def group(dweights, dy, x, places, k, here, there, rows, run, dy_step, x_step):
        sums = fill(np.float32(0), lanes)
        for i in range(rows):
            for t in range(0, run, STEP):
                gradient = repeat(load(dy, here + i * dy_step + t, STEP), count)
                sums = madd(sums, gradient, collect(x, there + i * x_step + t, places, k, count))
        add_totals(dweights, k, sums, count)

    return group


_eight, _four, _two, _one = (_group(count) for count in (8, 4, 2, 1))


@jit
def correlate(
    dweights, dbiases, dy, x, places, starts, outer, inner, run, plane, origin, dy_steps, x_steps
):
    """Adds to the gradients of the weights of ``gather``, and of its biases, which may be none.

    Rows are counted by ``outer`` and ``inner``, ``*_steps`` floats apart.
    """
    most, one = max(1, STRETCH // run), fill(np.float32(1), STEP)
    for o in range(outer):
        for start in range(0, inner, most):
            rows = min(most, inner - start)
            origin_dy, there = (
                o * dy_steps[0] + start * dy_steps[1] + origin,
                o * x_steps[0] + start * x_steps[1],
            )
            for r in range(len(dbiases)):
                a = fill(np.float32(0), STEP)
                for i in range(rows):
                    for t in range(0, run, STEP):
                        a = madd(
                            a, one, load(dy, origin_dy + r * plane + i * dy_steps[1] + t, STEP)
                        )
                dbiases[r] += total(a)
            for tile in range(len(starts)):
                for r in range(starts.shape[1]):
                    here, k, end = origin_dy + r * plane, starts[tile, r, 0], starts[tile, r, -1]
                    rest = here, there, rows, run, dy_steps[1], x_steps[1]
                    while k + 8 <= end:
                        _eight(dweights, dy, x, places, k, *rest)
                        k += 8
                    if k + 4 <= end:
                        _four(dweights, dy, x, places, k, *rest)
                        k += 4
                    if k + 2 <= end:
                        _two(dweights, dy, x, places, k, *rest)
                        k += 2
                    if k < end:
                        _one(dweights, dy, x, places, k, *rest)


@jit
def moments(sums, squares, z, height, run, origin, plane, pitch):
    """Adds to [channel] sums of z and of its squares."""
    one = fill(np.float32(1), STEP)
    for block in range(len(z)):
        for c in range(len(sums)):
            a = b = p = q = fill(np.float32(0), STEP)
            for i in range(height):
                start = block * z.shape[1] + origin + c * plane + i * pitch
                for t in range(0, run - STEP, 2 * STEP):
                    first, second = load(z, start + t, STEP), load(z, start + t + STEP, STEP)
                    a, b = madd(a, one, first), madd(b, one, second)
                    p, q = madd(p, first, first), madd(q, second, second)
                if run % (2 * STEP):
                    first = load(z, start + run - STEP, STEP)
                    a, p = madd(a, one, first), madd(p, first, first)
            sums[c] += total(a) + total(b)
            squares[c] += total(p) + total(q)


@jit
def arrange(found, bounds, row_keys, column_keys, row_places, column_places, values, size, falling):
    """Sorts the surviving weights of a matrix by ``row_keys + column_keys``, which are below
    ``size``, in linear time.

    Those of one key stay in the order of their rows and, within a row, of their columns, or in the
    opposite one if ``falling``.

    Args:
        found: [weights] where they are in the flat matrix, ascending; row r has those from
            ``bounds[r]`` to ``bounds[r + 1]``.
        values: [weights] int32, one for each; becomes the new place of each.

    Returns:
        ``values`` and ``row_places + column_places`` in the new order, and how many weights have a
        key below k [size + 1].
    """
    starts, columns = np.zeros(size + 1, np.int64), len(column_keys)
    for row in range(len(row_keys)):
        for k in range(bounds[row], bounds[row + 1]):
            starts[row_keys[row] + column_keys[found[k] - row * columns] + 1] += 1
    for key in range(size):
        starts[key + 1] += starts[key]
    moved, places, free = np.empty_like(values), np.empty_like(values), starts.copy()
    for row in range(len(row_keys)):
        first, last = bounds[row], bounds[row + 1] - 1
        for i in range(first, last + 1):
            k = first + last - i if falling else i
            column = found[k] - row * columns
            key = row_keys[row] + column_keys[column]
            rank = free[key]
            free[key] = rank + 1
            moved[rank], places[rank], values[k] = (
                values[k],
                row_places[row] + column_places[column],
                rank,
            )
    return moved, places, starts


@jit
def pick(y, x, index):
    for k in range(len(index)):
        y[k] = x[index[k]]


# --- between convolutions -------------------------------------------------------------------------


@jit
def fetch(y, x, turned, groups, y_index, x_index, lanes):
    """Images x [n, pixels] into blocks: pixel ``x_index[f]`` to ``y_index[f]`` of y.

    Each block is transposed to ``turned`` first, ``NARROW`` pixels together, from each of
    ``groups`` on.
    """
    for block in range(len(y)):
        start = block * lanes
        samples = min(len(x) - start, lanes)
        whole = samples // NARROW * NARROW if x.shape[1] >= NARROW else 0
        for first in groups:
            for sample in range(0, whole, NARROW):
                transpose(
                    turned,
                    first * lanes + sample,
                    lanes,
                    x,
                    (start + sample) * x.shape[1] + first,
                    x.shape[1],
                )
            for sample in range(whole, samples):
                for pixel in range(first, min(first + NARROW, x.shape[1])):
                    turned[pixel * lanes + sample] = x[start + sample, pixel]
        for f in range(len(y_index)):
            for lane in range(0, lanes, NARROW):
                store(
                    y,
                    block * y.shape[1] + y_index[f] + lane,
                    load(turned, x_index[f] * lanes + lane, NARROW),
                )


@jit
def relayout(y, x, y_index, x_index, y_lanes, x_lanes, n, add):
    """Copies (or adds) ``x_index[f]`` of ``n`` samples of x to ``y_index[f]`` of y, for every f;
    lanes without a sample become 0."""
    lanes, one, zero = max(y_lanes, x_lanes), np.float32(1), fill(np.float32(0), STEP)
    end = (n + y_lanes - 1) // y_lanes * y_lanes
    for start in range(0, end, lanes):
        stop = min(start + lanes, end)
        for sample in range(start, stop, STEP):
            here = sample // y_lanes * y.shape[1] + sample % y_lanes
            there = sample // x_lanes * x.shape[1] + sample % x_lanes
            for f in range(len(y_index)):
                value = load(x, there + x_index[f], STEP) if sample < n else zero
                store(
                    y,
                    here + y_index[f],
                    madd(value, one, load(y, here + y_index[f], STEP)) if add else value,
                )


@jit
def pool(y, x, window, corners, lanes):
    """The largest x of each window: ``corners[f, 0]`` of y reads ``corners[f, 1] + window``."""
    for block in range(len(y)):
        for f in range(len(corners)):
            for lane in range(0, lanes, STEP):
                there = block * x.shape[1] + corners[f, 1] + lane
                best = load(x, there, STEP)
                for step in window:
                    best = larger(best, load(x, there + step, STEP))
                store(y, block * y.shape[1] + corners[f, 0] + lane, best)


@jit
def unpool(dx, dy, x, y, window, corners, lanes):
    """Gives the gradient of each window to its first largest x, and 0 to the others."""
    for block in range(len(y)):
        for f in range(len(corners)):
            for lane in range(0, lanes, STEP):
                here = block * y.shape[1] + corners[f, 0] + lane
                there = block * x.shape[1] + corners[f, 1] + lane
                rest, best = load(dy, here, STEP), load(y, here, STEP)
                for step in window:
                    given = take(rest, load(x, there + step, STEP), best)
                    store(dx, there + step, given)
                    rest = madd(rest, np.float32(-1), given)


@jit
def average(y, x, window, corners, lanes):
    """The mean x of each window; places as in ``pool``."""
    for block in range(len(y)):
        for f in range(len(corners)):
            for lane in range(0, lanes, STEP):
                mean = fill(np.float32(0), STEP)
                for step in window:
                    mean = madd(
                        mean,
                        np.float32(1 / len(window)),
                        load(x, block * x.shape[1] + corners[f, 1] + lane + step, STEP),
                    )
                store(y, block * y.shape[1] + corners[f, 0] + lane, mean)


@jit
def unaverage(dx, dy, window, corners, lanes):
    """Gives every x of a window its share of the gradient."""
    for block in range(len(dy)):
        for f in range(len(corners)):
            for lane in range(0, lanes, STEP):
                share = madd(
                    fill(np.float32(0), STEP),
                    np.float32(1 / len(window)),
                    load(dy, block * dy.shape[1] + corners[f, 0] + lane, STEP),
                )
                for step in window:
                    store(dx, block * dx.shape[1] + corners[f, 1] + lane + step, share)


@jit
def relu(y):
    for j in range(y.size):
        y[j] = np.float32(0.5) * (
            y[j] + abs(y[j])
        )  # exact; a comparison would become slow masked stores


@jit
def unrelu(dy, y):
    for j in range(y.size):
        dy[j] = dy[j] if y[j] > 0 else np.float32(0)


# --- batch normalisation --------------------------------------------------------------------------
# z is normalised to y: ``y = scale * z + shift``, plus ``other`` if there is one, through a ReLU if
# ``positive``.


@jit
def normalise(
    y, z, other, scale, shift, positive, height, run, y_geometry, z_geometry, other_geometry
):
    """A geometry is (origin, plane, pitch); ``other`` is empty if there is none."""
    for block in range(len(y)):
        for c in range(len(scale)):
            factor, offset = scale[c], shift[c]
            for i in range(height):
                start = z_geometry[0] + c * z_geometry[1] + i * z_geometry[2]
                source = z[block, start : start + run]
                start = y_geometry[0] + c * y_geometry[1] + i * y_geometry[2]
                target = y[block, start : start + run]
                if len(other):
                    start = other_geometry[0] + c * other_geometry[1] + i * other_geometry[2]
                    more = other[block, start : start + run]
                    for j in range(run):
                        target[j] = factor * source[j] + offset + more[j]
                else:
                    for j in range(run):
                        target[j] = factor * source[j] + offset
                if positive:
                    for j in range(run):
                        target[j] = np.float32(0.5) * (target[j] + abs(target[j]))


@jit
def unnormalise(
    dy,
    y,
    z,
    dother,
    mean,
    sums,
    products,
    positive,
    add,
    height,
    run,
    y_geometry,
    z_geometry,
    other_geometry,
):
    """Stops dy where the ReLU did, adds up dy and dy * (z - mean) [channel], and hands dy on to
    ``dother``."""
    for block in range(len(dy)):
        for c in range(len(mean)):
            middle = mean[c]
            for i in range(height):
                start = z_geometry[0] + c * z_geometry[1] + i * z_geometry[2]
                source = z[block, start : start + run]
                start = y_geometry[0] + c * y_geometry[1] + i * y_geometry[2]
                gradient, value = dy[block, start : start + run], y[block, start : start + run]
                if positive:
                    for j in range(run):
                        gradient[j] = gradient[j] if value[j] > 0 else np.float32(0)
                part = product = np.float32(0)
                for j in range(run):
                    part += gradient[j]
                    product += gradient[j] * (source[j] - middle)
                sums[c] += part
                products[c] += product
                if len(dother):
                    start = other_geometry[0] + c * other_geometry[1] + i * other_geometry[2]
                    more = dother[block, start : start + run]
                    for j in range(run):
                        more[j] = gradient[j] + more[j] if add else gradient[j]


@jit
def centre(dz, dy, z, a, b, c, height, run, z_geometry, y_geometry):
    """``dz = a * dy + b * z + c`` with [channel] a, b and c."""
    for block in range(len(dz)):
        for channel in range(len(a)):
            p, q, s = a[channel], b[channel], c[channel]
            for i in range(height):
                start = z_geometry[0] + channel * z_geometry[1] + i * z_geometry[2]
                source, target = z[block, start : start + run], dz[block, start : start + run]
                start = y_geometry[0] + channel * y_geometry[1] + i * y_geometry[2]
                gradient = dy[block, start : start + run]
                for j in range(run):
                    target[j] = p * gradient[j] + q * source[j] + s


# --- learning -------------------------------------------------------------------------------------


@jit
def _exp(x):
    """exp of x <= 0, so written that the compiler makes vectors of it: 2**n * 2**f, |f| <= 1/2,
    Taylor's series of the second."""
    scaled = max(x, np.float32(-87)) * np.float32(1.4426950408889634)
    n = np.floor(scaled + np.float32(0.5))
    f = (scaled - n) * np.float32(0.6931471805599453)
    power = np.float32(1)
    for k in (7, 6, 5, 4, 3, 2, 1):
        power = power * f * np.float32(1 / k) + np.float32(1)
    return power * exponent(np.int32(n))


@jit
def cross_entropy(dy, y, labels, batch, temperature):
    """The summed loss for scores y [block, class, lane] / temperature; dy becomes the gradient of
    the mean over ``batch`` by y / temperature."""
    loss, scale, heat, lanes = 0.0, np.float32(1 / batch), np.float32(temperature), y.shape[2]
    top, summed = np.empty((2, lanes), np.float32)
    for block in range(len(y)):
        samples = min(len(labels) - block * lanes, lanes)
        scores, gradient = y[block], dy[block]
        top[:] = scores[0]
        for c in range(1, len(scores)):
            for lane in range(lanes):
                top[lane] = max(top[lane], scores[c, lane])
        summed[:] = 0
        for c in range(len(scores)):
            for lane in range(lanes):
                gradient[c, lane] = _exp((scores[c, lane] - top[lane]) / heat)
                summed[lane] += gradient[c, lane]
        for lane in range(lanes):
            top[lane] = top[lane] / heat + np.log(summed[lane])
            summed[lane] = scale / summed[lane]
        for c in range(len(scores)):
            for lane in range(lanes):
                gradient[c, lane] *= summed[lane]
            gradient[c, samples:] = 0
        for lane in range(samples):
            label = labels[block * lanes + lane]
            if not 0 <= label < len(scores):
                raise ValueError("a label is outside the classes of the network")
            gradient[label, lane] -= scale
            loss += top[lane] - scores[label, lane] / heat
    return loss


@jit
def descend(weights, gradients, velocity, lr, momentum, weight_decay, nesterov):
    """One step of ``torch.optim.SGD``."""
    lr, momentum, weight_decay = np.float32(lr), np.float32(momentum), np.float32(weight_decay)
    for k in range(len(weights)):
        gradient = gradients[k] + weight_decay * weights[k]
        velocity[k] = step = momentum * velocity[k] + gradient
        weights[k] -= lr * (gradient + momentum * step if nesterov else step)
