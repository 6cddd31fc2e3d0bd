"""Low-rank arithmetic against dense linear algebra in numpy."""

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from aggregator import products
from aggregator.products import LowRank


def drawn(seed: int, out: int = 20, columns: int = 30, rank: int = 6) -> LowRank:
    rng = np.random.default_rng(seed)
    return LowRank(rng.standard_normal((rank, columns)), rng.standard_normal((out, rank)))


def dense(matrix: LowRank) -> np.ndarray:
    return matrix.b @ matrix.a


def best(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Eckart and Young: the largest singular triplets."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


@pytest.mark.parametrize(("out", "columns", "rank"), [(20, 30, 6), (30, 20, 6), (4, 9, 12), (9, 4, 12), (1, 5, 3)])
def test_truncation_is_that_of_the_dense_svd(out: int, columns: int, rank: int) -> None:
    matrix = drawn(1, out, columns, rank)
    for kept in (1, 3, 50):
        found = products.truncated(matrix, kept)
        assert found.rank <= min(kept, out, columns, rank)
        np.testing.assert_allclose(dense(found), best(dense(matrix), kept), atol=1e-12)


def test_sum_negative_and_norm_are_those_of_the_dense_matrices() -> None:
    one, two = drawn(1), drawn(2, rank=3)
    found = products.total(one, -two)
    assert found.rank == 9
    np.testing.assert_allclose(dense(found), dense(one) - dense(two), atol=1e-12)
    assert found.norm == pytest.approx(np.linalg.norm(dense(one) - dense(two)), rel=1e-12)
    assert products.total(one, -one).norm == pytest.approx(0.0, abs=1e-6 * one.norm)


def test_both_factors_carry_half_of_each_singular_value_and_signs_are_fixed() -> None:
    matrix = drawn(3)
    found = products.truncated(matrix, 4)
    s = np.linalg.svd(dense(matrix), compute_uv=False)[:4]
    np.testing.assert_allclose(found.b.T @ found.b, np.diag(s), atol=1e-12)
    np.testing.assert_allclose(found.a @ found.a.T, np.diag(s), atol=1e-12)
    largest = np.argmax(np.abs(found.b), axis=0)
    assert (found.b[largest, np.arange(4)] > 0).all()


def test_another_factorisation_of_the_same_matrix_gives_the_same_factors() -> None:
    matrix, q = drawn(4), np.random.default_rng(5).standard_normal((6, 6))
    turned = LowRank(np.linalg.solve(q, matrix.a), matrix.b @ q)
    one, two = products.truncated(matrix, 4), products.truncated(turned, 4)
    np.testing.assert_allclose(one.a, two.a, atol=1e-9)
    np.testing.assert_allclose(one.b, two.b, atol=1e-9)


def test_directions_up_to_the_floor_are_left_out_and_a_zero_matrix_has_none() -> None:
    u, v = np.linalg.qr(np.random.default_rng(6).standard_normal((9, 3)))[0], np.eye(3, 12)
    matrix = LowRank(v, u * np.array([2.0, 1e-5, 1e-9]))
    assert products.truncated(matrix, 3, floor=1e-7).rank == 2
    assert products.truncated(matrix, 3, floor=1e-5).rank == 1
    nothing = products.truncated(LowRank(np.zeros((2, 5)), np.zeros((4, 2))), 2)
    assert (nothing.a.shape, nothing.b.shape) == ((0, 5), (4, 0))


def test_compression_keeps_the_matrix_and_bounds_the_rank() -> None:
    matrix = drawn(7, out=5, columns=8, rank=40)
    found = products.compressed(matrix)
    assert found.rank == 5
    np.testing.assert_allclose(dense(found), dense(matrix), atol=1e-11)


def test_blas_runs_on_one_thread_within_and_on_as_many_as_before_afterwards() -> None:
    def blas() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    with threadpool_limits(limits=2, user_api="blas"):
        before = blas()
        with products.one_thread():
            assert blas() == {1}
        assert blas() == before


def test_rounds_computed_at_once_in_several_threads_give_the_same_bytes() -> None:
    matrix = drawn(8, 200, 300, 60)
    expected = products.truncated(matrix, 20).b.tobytes()
    found: list[bytes] = []

    def work() -> None:
        found.extend(products.truncated(matrix, 20).b.tobytes() for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 20
