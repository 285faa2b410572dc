"""The exact savings: what K decoders of one encoder have in common is computed once.

    a   conv(concat(h, skip)) = conv_h(h) + conv_skip(skip): the skip half of a decoder ResNet's
        first convolution and of its 1x1 shortcut. GroupNorm stands before the convolution and is
        taken over the concatenation, so a skip channel is shared where its whole group lies in the
        skip half; a group that straddles the border stays with h.
    b   cross-attention keys and values; all K timesteps' queries meet them in one attention.
    c   conv_out is linear: the weighted sum of the features first, then one convolution.
    d   the time embeddings of the K timesteps: a table.
    e   nearest-neighbour doubling, then a 3x3 convolution = a 2x2 convolution to four times the
        channels at the small size, interleaved.

The prediction is the same, up to rounding: 1e-15 relative in float64. ``SharedUNet`` stands where
a ``SplitUNet`` stands. Where a layer carries something that cannot be looked through (a hook, a
replaced forward, FreeU, an adapter other than LoRA) that layer runs as it is, and says so once.
"""

from .unet import SharedUNet, shared

__all__ = ["SharedUNet", "shared"]
