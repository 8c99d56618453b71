"""Training of a masked network that touches only the surviving weights.

A masked dense layer multiplies by its zeros; here a pruned weight costs nothing. Samples lie side
by side in memory, so one surviving weight is one multiply-add of a whole run of samples, forward
and in both gradients (``kernels``). The rest of the package knows ``Engine`` and nothing else; who
adds a method need not read on.

**Layout.** An activation [sample, channel, row, column] is kept in blocks of ``lanes`` samples
(``layout.Signal``)::

    array    [ block 0 | block 1 | ... ]             a block holds ``lanes`` samples
    block    [ channel 0 | channel 1 | ... ]         ``plane`` floats each
    channel    0  0  0  0  0  0                      a margin of zeros, if a reader pads
               0 [p00][p01][p02] 0                   a row every ``pitch`` floats
               0 [p10][p11][p12] 0
               0  0  0  0  0  0
    pixel    [ s0 s1 s2 ... ]                        that of every sample: ``lanes`` floats

    run = lanes * width: the floats of a row without margins; p00 lies ``origin`` floats from the
    beginning of its channel

    a weight w, from channel c, one row up, to channel d:  one madd of a run, whatever its width
        y[d][i][...]  +=  w * x[c][i - 1][...]                          forward
        dx[c][i - 1][...]  +=  w * dy[d][i][...]                        gradient of the input
        dw  +=  the sum of  dy[d][i][...] * x[c][i - 1][...]            gradient of the weight

There are the fewest lanes for which a row is whole cache lines and fills the registers: the fewer,
the more of an image stays in the cache. A ``Linear`` is a convolution of a 1x1 image. The margin is
also around the gradient: the gradient of a convolution's input is then a convolution too, with the
weights sorted by input. A convolution with stride s is one with stride 1 over s * s times as many
channels, one for each phase of a pixel.

**Order.** Batch normalisation needs all of a batch before it can go on. The network is cut into
levels at that point; within a level few samples at a time go through all its steps, so that what
one step writes is in the cache for the next. What only its own level reads is kept for those few
samples, and computed again on the way back::

    level 0: fetch -> taps -> moments | level 1: norm -> taps -> moments | level 2: norm -> ...

**Files**, from a model to a step of training: ``tracing`` (what a forward calls) -> ``reading`` and
``plan`` (layers become steps) -> ``layout``, ``steps``, ``taps``, ``normalisation`` (what a step
computes, and where) -> ``levels`` and ``memory`` -> ``network`` with ``inlet`` (one network) ->
``together`` (several on the same batches); ``kernels`` has the inner loops, ``cache`` keeps them on
disk.
"""

from .network import SparseNet, unsupported
from .protocol import Engine
from .together import Together

__all__ = ["Engine", "SparseNet", "Together", "unsupported"]
