"""One density for a network: exact totals, the published proportions, dense layers clipped."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from synaptome.errors import ConfigurationError
from synaptome.topology.densities import apportion, epsilon_densities, erk_densities, uniform_densities

LENET = [(300, 784), (100, 300), (10, 100)]


def sizes(shapes):
    out = []
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        out.append(size)
    return out


def test_erk_follows_the_published_proportions():
    densities = erk_densities(LENET, 0.05)
    of_one = [(i + o) / (i * o) for o, i in LENET]
    # 0.05 * 266 200 connections in proportion to 1084 : 400 : 110; none is full.
    counts = [13310 * s / 1594 for s in (1084, 400, 110)]
    assert [d * n for d, n in zip(densities, sizes(LENET), strict=True)] == pytest.approx(counts, abs=1)
    assert [d / densities[0] for d in densities] == pytest.approx([e / of_one[0] for e in of_one], rel=0.01)


def test_erk_of_convolutions_counts_the_kernel():
    shapes = [(64, 3, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3)]
    densities = erk_densities(shapes, 0.05)
    raw = [sum(shape) / n for shape, n in zip(shapes, sizes(shapes), strict=True)]
    # 73 * 262 > 1728: the first layer is dense, the rest share 0.05 * 370 368 - 1728 in proportion.
    assert densities[0] == 1.0
    assert densities[2] / densities[1] == pytest.approx(raw[2] / raw[1], rel=1e-3)


def test_uniform_is_one_density_for_all():
    assert uniform_densities(LENET, 0.05) == pytest.approx([0.05] * 3, rel=0.02)
    assert uniform_densities(LENET, 1.0) == [1.0] * 3


def test_epsilon_gives_each_layer_its_number_and_small_ones_all_places():
    # 20 (300 + 784), 20 (100 + 300), and 20 (10 + 100) in 1000 places.
    densities = epsilon_densities(LENET, 20)
    assert [d * n for d, n in zip(densities, sizes(LENET), strict=True)] == pytest.approx([21_680, 8000, 1000])
    assert epsilon_densities(LENET[:1], 20) == densities[:1]
    for epsilon in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match="epsilon is a positive number"):
            epsilon_densities(LENET, epsilon)


shapes_strategy = st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=8)


@given(shapes_strategy, st.floats(1e-6, 1), st.sampled_from([erk_densities, uniform_densities]))
def test_the_total_is_exact(shapes, density, share_out):
    densities = share_out(shapes, density)
    counts = [d * n for d, n in zip(densities, sizes(shapes), strict=True)]
    assert all(abs(count - round(count)) < 1e-6 for count in counts)
    assert all(0 <= d <= 1 for d in densities)
    assert sum(map(round, counts)) == round(density * sum(sizes(shapes)))


parts_strategy = st.lists(
    st.tuples(st.floats(0, 1e6, allow_subnormal=False), st.integers(0, 10**6)), min_size=1, max_size=9
)


@example([(2.2250738585072014e-308, 9), (2.2250738585072014e-308, 11)], 0.375)
@given(parts_strategy, st.floats(0, 1))
def test_apportioned_parts_are_the_nearest_to_proportional(parts, share):
    weights, most = zip(*parts, strict=True)
    total = round(share * sum(most))
    got = apportion(total, weights, most)
    assert sum(got) == total
    assert all(0 <= g <= m for g, m in zip(got, most, strict=True))
    # Every part that is neither full nor weightless stands at the same level of part / weight, to within one.
    levels = [(g - 1, g + 1, w) for g, m, w in zip(got, most, weights, strict=True) if g < m and w > 0]
    for low, _, w in levels:
        for _, high, v in levels:
            assert low * v <= high * w * (1 + 1e-9)


@pytest.mark.parametrize("share_out", [erk_densities, uniform_densities])
def test_densities_and_shapes_out_of_range_are_refused(share_out):
    for density in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(ConfigurationError, match=r"density is a share of all places in \(0, 1\]"):
            share_out(LENET, density)
    with pytest.raises(ConfigurationError, match="at least one layer"):
        share_out([], 0.5)
    for shape in ((5,), (0, 3)):
        with pytest.raises(ConfigurationError, match="the shape of a weight"):
            share_out([shape], 0.5)
