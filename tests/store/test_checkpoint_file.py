"""Checkpoints as files."""

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from qinco_core.errors import ArtifactError, UsageError
from qinco_core.store import load_checkpoint, save_checkpoint

json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
dtypes = scalar_dtypes().filter(lambda dtype: dtype.kind in "biufc")
stored = arrays(dtypes, array_shapes(min_dims=0, min_side=0, max_side=3))
names = st.text("abc.é_0", min_size=1, max_size=9).filter(lambda name: name != ".")


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(), json, max_size=3), st.dictionaries(names, stored, max_size=3))
def test_round_trip(tmp_path_factory, state, tensors):
    path = tmp_path_factory.getbasetemp() / "training.h5"
    save_checkpoint(path, config={"lr": 0.1, "state": state}, arrays=tensors, state=state)
    config, found, position = load_checkpoint(path)
    assert config == {"lr": 0.1, "state": state} and position == state
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype.newbyteorder("<") and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_bytes_and_a_long_state(tmp_path):
    path = tmp_path / "training.h5"
    words = np.array([b"ab", b"c"])
    save_checkpoint(path, config={3: (1, 2), 10: 0}, arrays={"words": words}, state={"losses": [0.5] * 50_000})
    config, arrays, state = load_checkpoint(path)
    assert config == {"3": [1, 2], "10": 0} and len(state["losses"]) == 50_000
    assert arrays["words"].tolist() == words.tolist()


def test_a_checkpoint_is_replaced_whole(tmp_path):
    path = tmp_path / "training.h5"
    for step in range(2):
        save_checkpoint(path, config={}, arrays={"w": np.full(3, step)}, state={"step": step})
    assert load_checkpoint(path)[2] == {"step": 1}
    with pytest.raises(UsageError, match="dtype object"):
        save_checkpoint(path, config={}, arrays={"w": np.array([{}])}, state={})
    assert load_checkpoint(path)[2] == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["arrays/rng", "state"])
def test_damage_is_found(tmp_path, name):
    path = tmp_path / "training.h5"
    save_checkpoint(path, config={}, arrays={"rng": np.arange(9, dtype="u1")}, state={"step": 123})
    with h5py.File(path, "r+") as file:
        file[name][...] = np.zeros(9, "u1") if name != "state" else b'{"step":124}'
    with pytest.raises(ArtifactError, match="digest"):
        load_checkpoint(path)
