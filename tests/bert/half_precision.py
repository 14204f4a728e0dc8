"""What half precision may change in a step."""

from collections.abc import Mapping

import pytest

# Of a number's fraction, the leading one included.
BITS = {"bfloat16": 8, "float16": 11}


def assert_same_norms(
    half: Mapping[str, float], full: Mapping[str, float], precision: str, *names: str
) -> None:
    """That the gradients at the same weights have the size that they have in float32.

    LANS does not see a gradient's scale, so that nothing but these norms tells a loss scale of
    2^15 that is left out, or not taken out again.

    A number passes through 20 products or so, forward and back. Each rounds it to `BITS`, by up
    to 2^-BITS and by half of that on average. Were all to err the same way the norm would be off
    by 20 of these halves: 3.9 % and 0.5 %.
    """
    assert full["step"] == half["step"]
    tolerance = 20 * 2.0 ** -(BITS[precision] + 1)
    for name in ("gradient_norm", *names):
        assert half[name] == pytest.approx(full[name], rel=tolerance), name
