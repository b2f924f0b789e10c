"""Random projections and sign codes, against slow loops and the theory of their collisions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgsim import Projection, bool2int, collision_probability, draw_planes, hash_func
from imgsim.hashing import BLOCK, check_settings, code_dtype, column_sums, normalise

TIE = 1e-4  # a projection this near to 0 may fall on either side: sums are rounded differently by block and loop


def to_int(bits):
    return sum(int(bit) << i for i, bit in enumerate(bits))


def points(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def pair_at(angle, dim):
    """Two vectors of length 1 at this angle, as rows."""
    pair = np.zeros((2, dim), np.float32)
    pair[0, 0], pair[1, 0], pair[1, 1] = 1, np.cos(angle), np.sin(angle)
    return pair


def bits_of(codes, hash_size):
    """Codes (...) as booleans (..., k)."""
    return codes[..., None] >> np.arange(hash_size, dtype=codes.dtype) & codes.dtype.type(1) > 0


def sampling_error(probability, trials):
    """Four standard errors of a share: passed by chance 99.99% of the time, and the seeds are fixed."""
    return 4 * np.sqrt(probability * (1 - probability) / trials)


@given(st.lists(st.booleans(), min_size=1, max_size=64))
def test_bool2int_puts_the_least_significant_bit_first(bits):
    assert bool2int(bits) == to_int(bits)


def test_bool2int_gives_a_python_int():
    assert bool2int([True, False, True]) == 5 and type(bool2int([True, False, True])) is int


@pytest.mark.parametrize("hash_size", range(1, 65))
def test_codes_equal_python_ints(hash_size):
    x = points(40, 5)
    projection = Projection.fit(x, hash_size, 7)
    codes, margins = projection(x), projection.margins(x)
    assert codes.shape == (40, 7) and codes.dtype == code_dtype(hash_size)
    assert codes.tolist() == [[to_int(row > 0) for row in rows] for rows in margins]


@pytest.mark.parametrize(
    ("hash_size", "itemsize"), [(1, 1), (8, 1), (9, 2), (16, 2), (17, 4), (32, 4), (33, 8), (64, 8)]
)
def test_codes_take_the_smallest_unsigned_type(hash_size, itemsize):
    assert code_dtype(hash_size) == np.dtype(f"u{itemsize}")


@pytest.mark.parametrize(
    ("n", "dim", "hash_size", "num_tables"), [(7, 5, 8, 3), (4, 16, 13, 1), (3, 6, 64, 2), (1, 2, 1, 4)]
)
def test_hash_func_equals_a_slow_loop(n, dim, hash_size, num_tables):
    x, planes = points(n, dim), draw_planes(dim, hash_size, num_tables)
    slow = [[to_int(float(row @ plane) > 0 for plane in table.T) for table in planes] for row in x.astype(np.float64)]
    assert hash_func(x, planes).tolist() == slow


def test_shapes_of_codes():
    x, planes = points(5, 6), draw_planes(6, 9, 4)
    assert planes.shape == (4, 6, 9) and planes.dtype == np.float32
    assert hash_func(x, planes).shape == (5, 4)
    assert hash_func(x, planes[0]).shape == (5,)
    assert hash_func(x[0], planes).shape == (1, 4)
    assert hash_func(x[:0], planes).shape == (0, 4)


def test_shapes_of_margins():
    x = points(5, 6)
    projection = Projection.fit(x, 9, 4)
    assert projection.planes.shape == (4, 6, 9) and projection.planes.dtype == np.float32
    for n in (5, 1, 0):
        margins = projection.margins(x[:n])
        assert margins.shape == (n, 4, 9) and margins.dtype == np.float32 and projection(x[:n]).shape == (n, 4)


def test_margins_are_distances_to_the_planes_and_codes_their_sides():
    x = points(BLOCK + 20, 8) + 5
    projection = Projection.fit(x, 8, 4)
    slow = np.einsum("nd,ldk->nlk", (x - projection.mean).astype(np.float64), projection.planes)
    np.testing.assert_allclose(projection.margins(x), slow, atol=TIE)
    assert not ((bits_of(projection(x), 8) != (slow > 0)) & (np.abs(slow) > TIE)).any()
    one = np.concatenate([projection.margins(row) > 0 for row in x])  # as a query's are: sums are rounded differently
    assert not ((bits_of(projection(x), 8) != one) & (np.abs(slow) > TIE)).any()


@pytest.mark.parametrize("n", [0, 3, BLOCK, 2 * BLOCK + 7])
def test_column_sums_are_those_of_double_precision(n):
    x = points(n, 3) + 5
    np.testing.assert_allclose(column_sums(x), x.sum(axis=0, dtype=np.float64), rtol=1e-6)
    assert column_sums(x).dtype == np.float64


def test_one_table_alone_gives_its_column_of_codes():  # no row is nearer to a plane than 3e-4
    x, planes = points(50, 6), draw_planes(6, 9, 4)
    columns = [hash_func(x, table) for table in planes]
    np.testing.assert_array_equal(hash_func(x, planes), np.stack(columns, axis=1))


def test_fewer_bits_are_the_lower_bits_of_a_code():  # nor here than 1e-3
    x, planes = points(50, 6), draw_planes(6, 12, 4)
    np.testing.assert_array_equal(hash_func(x, planes[..., :5]), hash_func(x, planes) & 31)


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_the_same_seed_gives_the_same_planes(seed):
    np.testing.assert_array_equal(draw_planes(5, 8, 3, seed), draw_planes(5, 8, 3, seed))


def test_another_seed_gives_other_planes_and_codes():
    x = points(100, 16)
    codes = [Projection.fit(x, 8, 4, seed)(x) for seed in (0, 1)]
    assert (codes[0] != codes[1]).mean() > 0.9  # chance: 1 - 1/256


def test_the_planes_of_two_tables_are_independent():
    planes = draw_planes(64, 16, 6).transpose(0, 2, 1).reshape(96, 64)
    planes /= np.linalg.norm(planes, axis=1, keepdims=True)
    cosines = np.abs(planes @ planes.T - np.eye(96))
    assert cosines.max() < 0.6  # the cosine of two random directions has a standard deviation of 1/8


def test_two_tables_give_different_codes():
    x = points(200, 16)
    codes = Projection.fit(x, 8, 5)(x)
    same = (codes[:, :, None] == codes[:, None, :]).mean(axis=0)
    assert (same[~np.eye(5, dtype=bool)] < 0.1).all()


def test_blocks_give_the_same_codes_as_one_row_at_a_time():
    x, planes = points(BLOCK + 300, 6), draw_planes(6, 7, 2)
    whole = hash_func(x, planes)
    rows = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, len(x) - 1]
    rows += np.random.default_rng(1).integers(0, len(x), 200).tolist()
    for row in rows:
        clear = np.abs(np.einsum("d,ldk->lk", x[row], planes)) > TIE
        differ = bits_of(hash_func(x[row], planes)[0], 7) != bits_of(whole[row], 7)
        assert not (differ & clear).any()


def test_embeddings_of_another_length_are_refused(refused):
    with refused("5"):
        hash_func(points(3, 5), draw_planes(6, 8, 2))


def test_a_projection_subtracts_the_mean_first():
    x = points(300, 8) + 5
    projection = Projection.fit(x, 8, 4)
    np.testing.assert_allclose(projection.mean, x.mean(axis=0), rtol=1e-5)
    heights = np.einsum("nd,ldk->nlk", (x - projection.mean).astype(np.float64), projection.planes)
    differ = bits_of(projection(x), 8) != (heights > 0)
    assert not (differ & (np.abs(heights) > TIE * 10)).any()  # the mean is long here, and rounding grows with it


def test_a_single_query_gets_the_code_that_it_has_among_others():
    x = points(300, 8) + 5
    projection = Projection.fit(x, 8, 4)
    codes = projection(x)
    same = [(projection(row)[0] == code).mean() for row, code in zip(x, codes, strict=True)]
    assert np.mean(same) > 0.99  # all but sign ties


def test_in_a_cone_only_centred_bits_are_balanced():
    x = points(2000, 32) + 3 * points(1, 32, seed=1)  # mean cosine of two rows about .9
    centred = Projection.fit(x, 8, 10)
    raw = Projection(centred.planes, np.zeros(32, np.float32))
    imbalance = [np.abs(bits_of(p(x), 8).mean(axis=0) - 0.5).mean() for p in (centred, raw)]
    assert imbalance[0] < 0.05 and imbalance[1] > 0.3


@pytest.mark.parametrize("angle", np.pi * np.array([0.02, 0.1, 1 / 3, 0.5, 0.75, 1]))
def test_a_bit_agrees_with_probability_one_minus_angle_over_pi(angle):
    planes = draw_planes(8, 64, 500)
    agree = ~np.logical_xor(*bits_of(hash_func(pair_at(angle, 8), planes), 64))
    expected = 1 - angle / np.pi
    assert abs(agree.mean() - expected) <= sampling_error(expected, agree.size)


@pytest.mark.parametrize(("hash_size", "num_tables"), [(1, 1), (4, 1), (8, 10), (12, 20)])
@pytest.mark.parametrize("degrees", [10, 30, 60, 90])
def test_neighbours_are_found_as_often_as_the_theory_says(hash_size, num_tables, degrees):
    trials, angle = 1500, np.radians(degrees)
    codes = hash_func(pair_at(angle, 4), draw_planes(4, hash_size, num_tables * trials, seed=degrees))
    found = (codes[0] == codes[1]).reshape(trials, num_tables).any(axis=1).mean()
    expected = 1 - (1 - (1 - angle / np.pi) ** hash_size) ** num_tables
    assert collision_probability(angle, hash_size, num_tables) == pytest.approx(expected)
    assert abs(found - expected) <= sampling_error(expected, trials)


def test_collision_probability_of_the_findings():
    assert collision_probability(np.radians(30), 8, 1) == pytest.approx(0.23, abs=0.005)
    assert collision_probability(np.radians(30), 8, 10) == pytest.approx(0.93, abs=0.005)
    np.testing.assert_allclose(collision_probability(np.array([0, np.pi]), 8, 10), [1, 0])


@pytest.mark.parametrize(
    ("hash_size", "num_tables"), [(0, 1), (65, 1), (-3, 1), (8.0, 1), (True, 1), ("8", 1), (8, 0), (8, -1), (8, 2.5)]
)
def test_impossible_settings_are_refused(hash_size, num_tables, refused):
    wrong = num_tables if hash_size == 8 and type(hash_size) is int else hash_size
    for refuse in (lambda: check_settings(hash_size, num_tables), lambda: draw_planes(4, hash_size, num_tables)):
        with refused(repr(wrong)):
            refuse()


@pytest.mark.parametrize("value", [1, 64, np.int64(8)])
def test_whole_numbers_are_accepted(value):
    check_settings(value, value)


@pytest.mark.parametrize("width", [0, 65])
def test_bits_that_fit_no_code_are_refused(width, refused):
    with refused(width):
        bool2int(np.zeros(width, bool))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1, 1e18, 1e30, 1e37])
def test_vectors_of_any_finite_scale_get_length_1(scale):
    x = points(20, 7)
    np.testing.assert_allclose(normalise(x * np.float32(scale)), normalise(x), atol=1e-6)
    assert not normalise(np.zeros((2, 3))).any()
