"""Principal planes: where the candidates differ, in any number of them."""

import numpy as np
import pytest

from imgsim import draw_planes
from imgsim.hashing import normalise
from imgsim.search.coder import Coder, draw_rotation
from imgsim.search.principal import fit_projection, principal_directions


def cloud(n, dim, used, seed=0):
    """Points (n, d) that differ in `used` directions strongly, and in all others a little."""
    rng = np.random.default_rng(seed)
    spread = np.where(np.arange(dim) < used, 1.0, 0.05) / np.sqrt(1 + np.arange(dim))
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    return (rng.standard_normal((n, dim)) * spread @ rotation.T + 1).astype(np.float32), rotation


def test_principal_directions_are_those_in_which_the_vectors_differ_most():
    x, rotation = cloud(4000, 24, 4)
    directions = principal_directions(x, 4)
    assert directions.shape == (24, 4) and directions.dtype == np.float32
    np.testing.assert_allclose(directions.T @ directions, np.eye(4), atol=1e-6)
    assert (np.linalg.norm(rotation[:, :4].T @ directions, axis=0) > 0.99).all()  # within the four that were made
    assert (directions[np.abs(directions).argmax(axis=0), range(4)] > 0).all()  # eigh leaves the signs open


def test_planes_of_a_table_are_orthogonal_lie_within_the_directions_and_differ_from_table_to_table():
    x, _ = cloud(2000, 24, 6)
    projection = fit_projection(x, 6, 5)
    for table in projection.planes:
        np.testing.assert_allclose(table.T @ table, np.eye(6), atol=1e-5)
        np.testing.assert_allclose(projection.directions @ (projection.directions.T @ table), table, atol=1e-6)
    assert np.abs(projection.planes[0] - projection.planes[1]).max() > 0.1
    outer, inner = projection.factors
    np.testing.assert_allclose((outer @ inner).reshape(24, 5, 6).transpose(1, 0, 2), projection.planes, atol=1e-6)


def test_a_round_cloud_has_no_principal_directions():
    x = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
    np.testing.assert_array_equal(principal_directions(x, 4), np.eye(16))
    np.testing.assert_array_equal(principal_directions(x[:20], 4), np.eye(16))  # nor has it with few candidates


@pytest.mark.parametrize(("n", "rank"), [(1, 0), (2, 1), (5, 4)])
@pytest.mark.parametrize("hash_size", [1, 8, 64])
def test_few_candidates_have_as_many_directions_as_they_span(n, rank, hash_size):
    x = normalise(np.random.default_rng(n).standard_normal((n, 30)))
    directions = principal_directions(x, hash_size)
    assert directions.shape[1] <= max(rank, 30 * (rank > 1)) and (rank == 0 or directions.shape[1] > 0)
    projection = fit_projection(x, hash_size, 3)
    assert projection.planes.shape == (3, 30, hash_size) and np.isfinite(projection.planes).all()
    assert (projection.directions is None) == (rank == 0)  # copies differ in no direction: planes are random then


def test_copies_have_random_planes():
    x = np.repeat(normalise(np.ones((1, 12))), 50, axis=0)
    projection = fit_projection(x, 8, 2)
    np.testing.assert_array_equal(projection.planes, draw_planes(12, 8, 2))


def test_unknown_planes_are_refused(refused):
    with refused("oblique"):
        fit_projection(np.eye(6), 4, 2, planes="oblique")


# --- codes and sketches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", ["principal", "random"])
@pytest.mark.parametrize(("dim", "hash_size", "num_tables"), [(24, 6, 5), (7, 13, 1), (300, 33, 2), (5, 64, 2)])
def test_codes_are_those_of_the_projection(planes, dim, hash_size, num_tables):
    x = normalise(cloud(500, dim, 4)[0])
    projection = fit_projection(x, hash_size, num_tables, planes=planes)
    codes, _ = Coder(projection, draw_rotation(dim)).encode(x)
    clear = np.abs(projection.margins(x)).min(axis=2) > 1e-6
    assert clear.mean() > 0.95 and codes.dtype == projection(x).dtype
    np.testing.assert_array_equal(codes[clear], projection(x)[clear])


def test_a_row_is_encoded_alike_alone_and_among_others():
    x = normalise(cloud(200, 30, 4)[0])
    coder = Coder(fit_projection(x, 9, 4), draw_rotation(30))
    together, alone = coder.encode(x), [coder.encode(row[None]) for row in x]
    for i, array in enumerate(together):
        np.testing.assert_array_equal(array, np.concatenate([one[i] for one in alone]))


@pytest.mark.parametrize(("dim", "size"), [(1, 256), (30, 256), (256, 256), (257, 512)])
def test_rotations_keep_lengths(dim, size):
    rotation = draw_rotation(dim, 3)
    assert rotation.shape == (dim, size)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(dim), atol=1e-5)
    np.testing.assert_array_equal(rotation, draw_rotation(dim, 3))


def test_estimates_are_right_on_average_and_nearer_the_more_bits_there_are():
    x, errors = normalise(cloud(400, 40, 20)[0]), []
    projection = fit_projection(x, 4, 1)
    for dim in (40, 400):  # zeros behind the vectors: more bits of the same
        wide = np.pad(x, ((0, 0), (0, dim - 40)))
        for seed in range(4):
            rotation = draw_rotation(dim, seed)
            mean = np.pad(projection.mean, (0, dim - 40))
            centred = wide - mean
            rotated = centred @ rotation
            lengths = np.square(centred).sum(axis=1) / np.abs(rotated).sum(axis=1)
            estimates = np.sign(rotated) @ (rotation.T @ centred[:50].T) * lengths[:, None]
            errors.append(estimates - centred @ centred[:50].T)
    assert abs(np.mean(errors)) < 0.1 * np.std(errors)
    assert np.std(errors[4:]) < 0.8 * np.std(errors[:4])
