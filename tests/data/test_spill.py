"""Intermediate files: arrays and groups come back as they were given."""

import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from tfrecords import spill

DTYPES = [np.dtype(code) for code in ("?", "u1", "u2", "i4", "i8", "u8", "f4", "f8", "c16")]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hypothesis_numpy.arrays(dtype, st.integers(0, 5))
)


@given(st.lists(ARRAYS, max_size=5))
def test_arrays_come_back(arrays: list[np.ndarray]) -> None:
    """Bit for bit, also those without elements and those that are not finite."""
    found = spill.unpack(spill.pack(arrays))
    assert [(each.dtype, each.tobytes()) for each in found] == [
        (each.dtype, each.tobytes()) for each in arrays
    ]


@given(
    groups=st.lists(st.binary(max_size=2000), max_size=6),
    summary=st.dictionaries(st.text(), st.integers() | st.text() | st.none()),
)
@pytest.mark.parametrize("remote", [False, True])
def test_groups_come_back(
    tmp_path_factory: pytest.TempPathFactory, remote: bool, groups: list[bytes], summary: dict
) -> None:
    """Each by its number, and the summary by -1; TensorFlow's own file object reads remote ones."""
    folder = tmp_path_factory.getbasetemp()
    path = f"ram://{folder.name}/spill" if remote else folder / "spill"
    spill.write(path, groups, summary)
    assert [spill.read(path, number) for number in range(len(groups))] == groups
    assert spill.summary(path) == summary
    if not remote:
        stored = pathlib.Path(path).read_bytes()
        assert stored.startswith(b"".join(groups) + spill.read(path, -1))
