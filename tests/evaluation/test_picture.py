from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qinco_core.errors import OutputExistsError, UsageError
from qinco_core.evaluation import picture
from qinco_core.evaluation.picture import Curve, RateCurve, draw_rate_distortion, draw_recall_rate

OURS = Curve("ours", (1.0, 2.0, 4.0), (60000.0, 40000.0, 25000.0), emphasised=True)
PQ = Curve("PQ", (4.0,), (30000.0,))


def pixels(path):
    from matplotlib import image

    return image.imread(path)[..., :3]


def test_the_picture_shows_every_curve(tmp_path):
    draw_rate_distortion([OURS], tmp_path / "one.png", "Title")
    draw_rate_distortion([OURS, PQ], tmp_path / "two.png", "Title")
    blue, orange = ([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in ("#0072B2", "#C04F00"))

    def painted(name, colour):
        return (np.abs(pixels(tmp_path / name) - colour).max(axis=2) < 0.02).sum()

    assert painted("one.png", blue) > 500
    assert painted("one.png", orange) == 0
    assert painted("two.png", orange) > 50


def test_nothing_is_left_open_or_beside_the_picture(tmp_path):
    from matplotlib import pyplot

    draw_rate_distortion([OURS], tmp_path / "picture.png", "Title")
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]
    assert pyplot.get_fignums() == []


def test_an_existing_picture_stays_unless_forced(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="--force"):
        draw_rate_distortion([OURS], path, "Title")
    assert path.read_bytes() == b"mine"
    draw_rate_distortion([OURS], path, "Title", force=True)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ([], "at least one"),
        ([Curve("odd", (1.0, 2.0), (3.0,))], "odd: 2 sizes, 1 errors"),
        ([Curve("none", (), ())], "none: 0 sizes"),
        ([Curve("perfect", (1.0,), (0.0,))], "perfect: sizes and errors must be positive"),
        ([Curve("lost", (1.0,), (float("nan"),))], "lost: sizes"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, curves, message):
    with pytest.raises(UsageError, match=message):
        draw_rate_distortion(curves, tmp_path / "picture.png", "Title")
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.floats(0, 500), min_size=1, max_size=12))
def test_labels_keep_apart_and_in_order(heights):
    placed = picture._apart(heights)
    by_height = sorted(zip(heights, placed, strict=True))
    for (_, lower), (_, upper) in itertools.pairwise(sorted(by_height, key=lambda pair: pair[1])):
        assert upper - lower >= picture._LABEL_GAP - 1e-6
    for (a, below), (b, above) in itertools.combinations(by_height, 2):
        assert a == b or below < above


@given(st.lists(st.integers(1, 400).map(lambda i: i / 4), min_size=1, max_size=40, unique=True))
def test_size_labels_keep_apart(sizes):
    ticks = picture._spread_ticks(sizes)
    assert set(ticks) <= set(sizes)
    assert ticks
    assert all(b / a > 2**0.18 for a, b in itertools.pairwise(ticks))


FRONT = RateCurve("qinco", (0.3, 0.7, 0.9), (40000.0, 9000.0, 800.0), emphasised=True)


def test_recall_and_rate_of_every_index_and_the_chosen_point(tmp_path):
    other = RateCurve("IVF-PQ", (0.2, 0.5), (60000.0, 5000.0))
    draw_recall_rate([FRONT], tmp_path / "one.png", "Title", at=10)
    draw_recall_rate([FRONT, other], tmp_path / "two.png", "Title", at=10)
    draw_recall_rate([FRONT], tmp_path / "ring.png", "Title", at=10, chosen=1)
    orange = [int("#C04F00"[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    painted = [(np.abs(pixels(tmp_path / f"{n}.png") - orange).max(axis=2) < 0.02).sum() for n in ("one", "two")]
    assert painted[0] == 0 < painted[1]
    ring = np.abs(pixels(tmp_path / "ring.png") - pixels(tmp_path / "one.png")).max(axis=2) > 0.1
    rows, columns = np.nonzero(ring)
    assert 0 < len(rows) < 2000
    assert max(np.ptp(rows), np.ptp(columns)) < 60


@pytest.mark.parametrize("curves", [[], [RateCurve("a", (), ())], [RateCurve("a", (0.5,), (0.0,))]])
def test_rates_that_cannot_be_drawn(tmp_path, curves):
    with pytest.raises(UsageError, match=r"curve|a:"):
        draw_recall_rate(curves, tmp_path / "p.png", "t", at=1)
    assert list(tmp_path.iterdir()) == []
