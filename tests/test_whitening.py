"""Whitening: identity covariance, pieces equal to the whole, symmetry, the way back, and scikit-learn's numbers."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpunorm import stats
from cpunorm.stats import Moments
from cpunorm.whitening import Whitening


def data(samples: int = 500, features: int = 8, seed: int = 0, rank: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(samples, rank or features)) @ rng.normal(size=(rank or features, features))
    return mixed + rng.normal(0, 100, features)


def covariance(y: np.ndarray) -> np.ndarray:
    return np.cov(y.astype(np.float64), rowvar=False)


@pytest.mark.parametrize("method", ["pca", "zca"])
class TestBothMethods:
    @pytest.mark.parametrize(("samples", "features"), [(500, 8), (5000, 64), (900, 300), (3, 2)])
    def test_identity_covariance_and_back(self, method: str, samples: int, features: int):
        x = data(samples, features)
        whitening = Whitening(method, eps=0).fit(x)
        y = whitening.transform(x)
        assert y.dtype == np.float64
        assert y.shape == x.shape
        np.testing.assert_allclose(covariance(y), np.eye(features), atol=1e-6)
        np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(whitening.inverse_transform(y), x, rtol=1e-9, atol=1e-7)

    def test_ten_pieces_equal_one_fit(self, method: str):
        x = data(1003, 8)
        whole = Whitening(method, eps=0).fit(x)
        pieces, left, right = Whitening(method, eps=0), Whitening(method, eps=0), Whitening(method, eps=0)
        for number, piece in enumerate(np.array_split(x, 10)):
            assert pieces.partial_fit(piece) is pieces
            (left if number < 3 else right).partial_fit(piece)
        assert left.merge(right) is left
        assert left.merge(Whitening(method)) is left  # nothing seen
        for parts in (pieces, left, Whitening(method, eps=0).merge(left)):
            assert parts.n_samples_seen_ == len(x)
            np.testing.assert_allclose(parts.mean_, whole.mean_, rtol=1e-12)
            np.testing.assert_allclose(parts.explained_variance_, whole.explained_variance_, rtol=1e-11)
            np.testing.assert_allclose(parts.components_, whole.components_, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(parts.transform(x), whole.transform(x), rtol=1e-9, atol=1e-9)

    def test_refit_forgets(self, method: str):
        first = Whitening(method).fit(data(seed=1)).fit(data(seed=2))
        assert first.n_samples_seen_ == 500
        np.testing.assert_array_equal(first.mean_, Whitening(method).fit(data(seed=2)).mean_)

    def test_eps_is_added_to_the_eigenvalues(self, method: str):
        x = data()
        whitening = Whitening(method, eps=2.0).fit(x)
        values = whitening.explained_variance_
        y = whitening.transform(x)
        shrunk = np.sort(np.linalg.eigvalsh(covariance(y)))
        np.testing.assert_allclose(shrunk, np.sort(values / (values + 2)), rtol=1e-9)
        np.testing.assert_allclose(whitening.inverse_transform(y), x, rtol=1e-9, atol=1e-9)

    def test_dtypes_and_strides(self, method: str):
        x = data(300, 6)
        whitening = Whitening(method, eps=0).fit(x)
        expected = whitening.transform(x)
        for view in (np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x[:, ::-1][:, ::-1]):
            np.testing.assert_allclose(whitening.transform(view), expected, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(Whitening(method, eps=0).fit(view).transform(x), expected, rtol=1e-9, atol=1e-9)
        single = x.astype(np.float32)
        y = Whitening(method, eps=0).fit(single).transform(single)
        assert y.dtype == np.float32
        np.testing.assert_allclose(covariance(y), np.eye(6), atol=1e-5)
        back = whitening.inverse_transform(y[:0])
        assert back.shape == (0, 6)
        assert back.dtype == np.float32

    def test_pickle(self, method: str):
        x = data()
        whitening = Whitening(method, eps=0.1).fit(x)
        for _ in range(2):  # with and without the eigenvectors
            again = pickle.loads(pickle.dumps(whitening))
            np.testing.assert_array_equal(again.transform(x), whitening.transform(x))
        again.partial_fit(x)
        assert (again.n_samples_seen_, whitening.n_samples_seen_) == (1000, 500)

    def test_rank_deficient_data_needs_eps(self, method: str):
        x = data(200, 8, rank=5)
        whitening = Whitening(method, eps=0).fit(x)
        with pytest.raises(
            ValueError, match=r"Whitening\.transform: expected components that have some variance, got 5 of 8; take eps > 0"
        ):
            whitening.transform(x)
        smoothed = Whitening(method, eps=1e-3).fit(x)
        y = smoothed.transform(x)
        assert np.isfinite(y).all()
        np.testing.assert_allclose(smoothed.inverse_transform(y), x, rtol=1e-9, atol=1e-7)
        with pytest.raises(ValueError, match="eps > 0"):
            Whitening(method, eps=0).fit(np.ones((10, 3))).transform(np.ones((10, 3)))

    @pytest.mark.parametrize(
        ("bad", "error", "message"),
        [
            (np.ones(3), ValueError, r"\(samples, features\)"),
            (np.ones((3, 0)), ValueError, r"\(samples, features\)"),
            (np.ones((3, 2), int), TypeError, "dtype"),
            ([[1.0]], TypeError, "array"),
            (np.array([[1.0, np.nan], [0, 1]]), ValueError, "finite"),
            (np.array([[1.0, np.inf], [0, 1]]), ValueError, "finite"),
        ],
    )
    def test_refused_data_changes_nothing(self, method: str, bad: Any, error: type[Exception], message: str):
        whitening = Whitening(method).fit(data(10, 2))
        mean = whitening.mean_
        for call in ("fit", "partial_fit"):
            with pytest.raises(error, match=f"Whitening.{call}: expected .*{message}"):
                getattr(whitening, call)(bad)
        np.testing.assert_array_equal(whitening.mean_, mean)


def test_zca_is_symmetric_and_nearest():
    x = data(2000, 6)
    zca, pca = Whitening("zca", eps=0).fit(x), Whitening("pca", eps=0).fit(x)
    matrix = zca.transform(np.eye(6) + zca.mean_)
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(matrix @ matrix, np.linalg.inv(covariance(x)), rtol=1e-8, atol=1e-9)
    centred = x - x.mean(axis=0)
    assert np.square(zca.transform(x) - centred).sum() < np.square(pca.transform(x) - centred).sum()


def test_components():
    x = data(100, 5)
    whitening = Whitening(eps=0).fit(x)
    rows, values = whitening.components_, whitening.explained_variance_
    np.testing.assert_allclose(rows @ rows.T, np.eye(5), atol=1e-12)
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(rows.T @ np.diag(values) @ rows, covariance(x), rtol=1e-10, atol=1e-10)
    assert all(row[np.abs(row).argmax()] > 0 for row in rows)
    rows[...] = 0  # a copy
    assert whitening.components_.any()


@pytest.mark.peer
@pytest.mark.parametrize(("samples", "features", "kept"), [(300, 7, None), (300, 7, 3), (5000, 200, 50), (6, 9, 4)])
def test_equals_scikit_learn(samples: int, features: int, kept: int | None):
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = data(samples, features)
    ours = Whitening("pca", kept, eps=0).fit(x)
    theirs = decomposition.PCA(kept, whiten=True, svd_solver="full").fit(x)
    np.testing.assert_allclose(ours.mean_, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-8)
    assert ours.components_.shape == theirs.components_.shape
    signs = np.sign((ours.components_ * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.components_, theirs.components_ * signs[:, None], atol=1e-6)
    y = ours.transform(x)
    np.testing.assert_allclose(y, theirs.transform(x) * signs, atol=1e-6)
    np.testing.assert_allclose(ours.inverse_transform(y), theirs.inverse_transform(theirs.transform(x)), rtol=1e-6, atol=1e-6)


@pytest.mark.peer
def test_as_many_components_as_samples_at_most():
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = data(6, 9)
    ours = Whitening().fit(x)
    assert ours.components_.shape == decomposition.PCA().fit(x).components_.shape == (6, 9)
    with pytest.raises(ValueError, match="at most the number of samples, 6, got 8"):
        Whitening(n_components=8).fit(x).transform(x)
    assert Whitening("zca").fit(x).transform(x).shape == (6, 9)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"method": "ica"}, ValueError),
        ({"method": None}, ValueError),
        ({"n_components": 0}, ValueError),
        ({"n_components": 0.5}, TypeError),
        ({"eps": -1.0}, ValueError),
        ({"eps": "small"}, TypeError),
    ],
)
def test_constructor_refuses(arguments: dict[str, Any], error: type[Exception]):
    with pytest.raises(error, match="Whitening: expected"):
        Whitening(**arguments)


def test_other_refusals():
    x = data(10, 4)
    for call in (lambda w: w.transform(x), lambda w: w.inverse_transform(x), lambda w: w.mean_, lambda w: w.components_):
        with pytest.raises(ValueError, match="expected samples"):
            call(Whitening())
    with pytest.raises(ValueError, match="at most the number of features, got 5"):
        Whitening(n_components=5).fit(x)
    with pytest.raises(ValueError, match="None or the number of features"):
        Whitening("zca", 3).fit(x)
    assert Whitening("zca", 4).fit(x).transform(x).shape == x.shape
    with pytest.raises(ValueError, match="at least 2 samples"):
        Whitening().fit(x[:1]).transform(x)
    whitening = Whitening(n_components=2).fit(x)
    with pytest.raises(ValueError, match=r"x of shape \(samples, 4\)"):
        whitening.transform(x[:, :3])
    with pytest.raises(ValueError, match=r"y of shape \(samples, 2\)"):
        whitening.inverse_transform(x)
    with pytest.raises(ValueError, match="expected 4 features, as before, got 3"):
        whitening.partial_fit(x[:, :3])
    with pytest.raises(TypeError, match="expected a Whitening"):
        whitening.merge(x)  # type: ignore[arg-type]
    assert whitening.n_samples_seen_ == 10


def test_no_copy_of_the_data():
    x = np.random.default_rng(0).normal(size=(400_000, 16)).astype(np.float32)  # 26 MB
    tracemalloc.start()
    try:
        whitening = Whitening(eps=0).fit(x)
        assert tracemalloc.get_traced_memory()[1] < 4e6
        tracemalloc.reset_peak()
        y = whitening.transform(x)
        assert tracemalloc.get_traced_memory()[1] < y.nbytes + 4e6
    finally:
        tracemalloc.stop()


class TestMoments:
    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 4), st.booleans(), st.integers(0, 2**32 - 1))
    def test_merge_is_that_of_the_whole(self, sizes: list[int], features: int, joint: bool, seed: int):
        rng = np.random.default_rng(seed)
        parts = [rng.normal(rng.normal(0, 1e3), 1, (size, features)) for size in sizes]
        total = Moments.empty((features,), joint=joint)
        for part in parts:
            found = stats.of_rows(part)
            total = total.merge(found if joint else Moments(found.count, found.mean, np.diagonal(found.m2)))
        x = np.concatenate(parts)
        assert total.count == len(x)
        if len(x):
            centred = x - x.mean(axis=0)
            m2 = centred.T @ centred if joint else np.square(centred).sum(axis=0)
            np.testing.assert_allclose(total.mean, x.mean(axis=0), rtol=1e-12, atol=1e-9)
            np.testing.assert_allclose(total.m2, m2, rtol=1e-9, atol=1e-9 * (1 + np.abs(m2).max()))

    def test_infinity_and_nan_stay_in_their_column(self):
        a = Moments(2, np.array([np.inf, 1, np.nan]), np.array([np.nan, 2, np.nan]))
        merged = a.merge(Moments(3, np.array([np.inf, 1, 0]), np.array([np.nan, 3, 0])))
        np.testing.assert_array_equal(merged.mean, [np.inf, 1, np.nan])
        np.testing.assert_array_equal(merged.m2[1], 5)

    def test_equal_values_have_no_variance_and_a_large_mean_costs_no_digits(self):
        assert not stats.of_rows(np.full((10_001, 3), 0.1)).m2.any()
        x = np.random.default_rng(0).normal(size=(20_000, 3))
        np.testing.assert_allclose(stats.of_rows(x + 1e8).m2, stats.of_rows(x).m2, rtol=1e-6, atol=1e-3)

    def test_shapes_have_to_fit(self):
        with pytest.raises(ValueError, match="expected moments of shape"):
            Moments.empty((3,)).merge(Moments.empty((3,), joint=True))
