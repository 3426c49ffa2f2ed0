from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synaptome.data import Population, linear_regression, load
from synaptome.data.covariance import read_covariance, symmetric_root
from synaptome.data.linear import linear_teacher
from synaptome.errors import ConfigurationError, DataError


def test_the_teacher_of_one_output_is_the_mean_direction():
    assert np.allclose(linear_teacher(100, 1), np.full((1, 100), 0.1))


@pytest.mark.parametrize("features", [3, 4, 100])
def test_the_teacher_of_two_outputs_has_the_modes_of_the_definition(features):
    u, s, v = np.linalg.svd(linear_teacher(features, 2), full_matrices=False)
    assert np.allclose(s, [1, 0.2], atol=1e-12)
    ones = np.ones(features) / np.sqrt(features)
    difference = np.zeros(features)
    difference[0], difference[2] = 1, -1
    assert abs(v[0] @ ones) == pytest.approx(1)
    assert abs(v[1] @ difference) == pytest.approx(np.sqrt(2))
    # Signs belong to the pair of a mode: check each as an outer product.
    assert np.allclose(np.outer(u[:, 0], v[0]), np.outer([1, 1], np.ones(features)) / np.sqrt(2 * features))
    assert np.allclose(np.outer(u[:, 1], v[1]), np.outer([-1, 1], difference) / 2)


@pytest.mark.parametrize("d", [1, 2])
def test_targets_are_the_teacher_of_the_inputs_without_noise(d):
    dataset = linear_regression(features=20, d=d, train=500, test=100, seed=3)
    assert dataset.teacher.shape == (d, 20)
    assert dataset.outputs == d
    assert dataset.classes is None
    for split in (dataset.train, dataset.test):
        assert split.inputs.dtype == split.targets.dtype == torch.float32
        assert torch.allclose(split.targets, split.inputs @ dataset.teacher.T, atol=1e-5)


def standard_errors(inputs: torch.Tensor, covariance: np.ndarray) -> np.ndarray:
    """How many standard errors each entry of the sampled covariance is off: Var(x_i x_j) = S_ii S_jj + S_ij²."""
    sampled = (inputs.double().T @ inputs.double() / len(inputs)).numpy()
    spread = np.sqrt((np.outer(covariance.diagonal(), covariance.diagonal()) + covariance**2) / len(inputs))
    return np.abs(sampled - covariance) / spread


def test_sampled_covariance_is_the_one_given_within_five_standard_errors():
    generator = np.random.default_rng(5)
    factor = generator.standard_normal((6, 6))
    covariance = factor @ factor.T / 6 + 0.1 * np.eye(6)
    given_one = linear_regression(features=6, train=50_000, test=50_000, covariance=covariance)
    identity = linear_regression(features=6, train=50_000, test=50_000)
    for split in ("train", "test"):
        assert standard_errors(getattr(given_one, split).inputs, covariance).max() < 5
        assert standard_errors(getattr(identity, split).inputs, np.eye(6)).max() < 5
        assert standard_errors(getattr(identity, split).inputs, covariance).max() > 20  # the test can tell
        mean = getattr(given_one, split).inputs.double().mean(0).numpy()
        assert (np.abs(mean) < 5 * np.sqrt(covariance.diagonal() / 50_000)).all()


def test_a_singular_covariance_keeps_inputs_in_its_range():
    direction = np.array([3.0, 0.0, 4.0])
    dataset = linear_regression(features=3, train=200, test=10, covariance=np.outer(direction, direction))
    off = dataset.train.inputs.double().numpy() @ np.array([[0, 1, 0], [4, 0, -3]]).T
    assert np.abs(off).max() < 1e-4
    assert dataset.train.inputs.std() > 1


def test_a_covariance_may_be_a_list_an_array_or_a_tensor():
    rows = [[2.0, 0.5], [0.5, 1.0]]
    samples = [
        load("linear", features=2, train=20, test=5, covariance=form).train.inputs
        for form in (rows, np.array(rows), torch.tensor(rows), torch.tensor(rows, requires_grad=True))
    ]
    assert all(torch.equal(samples[0], sample) for sample in samples[1:])


def test_the_seed_decides_and_the_test_set_does_not_depend_on_the_size_of_the_training_set():
    first = linear_regression(features=5, train=50, test=20, seed=1)
    again = linear_regression(features=5, train=50, test=20, seed=1)
    larger = linear_regression(features=5, train=500, test=20, seed=1)
    other = linear_regression(features=5, train=50, test=20, seed=2)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.test.inputs, larger.test.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert not torch.equal(first.train.inputs[:20], first.test.inputs)


def test_load_defaults_are_those_of_the_experiments():
    dataset = load("linear")
    assert dataset.train.inputs.shape == (100_000, 100)
    assert dataset.test.inputs.shape == (1000, 100)
    assert dataset.mean is None


def test_validation_is_held_out_of_the_training_examples():
    whole = load("linear", features=4, train=100, test=10, seed=2)
    part = load("linear", features=4, train=100, test=10, seed=2, validation=0.3)
    assert (len(part.train), len(part.validation)) == (70, 30)
    assert torch.equal(part.test.inputs, whole.test.inputs)
    together = torch.cat([part.train.inputs, part.validation.inputs])
    assert torch.equal(together.unique(dim=0), whole.train.inputs.unique(dim=0))
    assert torch.allclose(part.validation.targets, part.validation.inputs @ part.teacher.T, atol=1e-5)


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (np.ones((3, 4)), r"must be square, got shape \[3, 4\]"),
        (np.ones(3), r"must be square, got shape \[3\]"),
        (np.eye(4), r"must be 3x3, one row for each input, got 4x4"),
        ([[1, 0, 0], [0.5, 1, 0], [0, 0, 1]], r"must be symmetric, got 0 at \[0, 1\] and 0.5 at \[1, 0\]"),
        (np.diag([1.0, 1.0, -0.5]), "must be positive semidefinite, got an eigenvalue of -0.5"),
        (np.diag([1.0, np.nan, 1.0]), "must be finite"),
        (np.diag([1.0, np.inf, 1.0]), "must be finite"),
        ([[1, 0], [1]], "must be a matrix of real numbers"),
        ("identity", "must be a matrix of real numbers"),
    ],
)
def test_a_covariance_that_is_none_is_refused(covariance, message):
    with pytest.raises(ConfigurationError, match=message):
        linear_regression(features=3, train=10, test=10, covariance=covariance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d": 3}, "must be 1 or 2, got 3"),
        ({"d": True}, "must be 1 or 2, got True"),
        ({"features": 2, "d": 2}, "at least 3 for d=2, got 2"),
        ({"features": 0}, "at least 1 for d=1, got 0"),
        ({"features": 2.0}, "at least 1 for d=1, got 2.0"),
        ({"train": 0}, "train must be a number of examples of at least 1, got 0"),
        ({"test": -5}, "test must be a number of examples of at least 1, got -5"),
    ],
)
def test_sizes_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        linear_regression(**options)


@settings(deadline=None)
@given(size=st.integers(1, 8), rank=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_the_root_is_symmetric_and_squares_to_the_covariance(size, rank, seed):
    factor = np.random.default_rng(seed).standard_normal((size, rank))
    covariance = factor @ factor.T
    root = symmetric_root(covariance, size)
    assert np.allclose(root, root.T)
    assert np.allclose(root @ root, covariance, atol=1e-9 * max(1.0, np.abs(covariance).max()))
    assert np.linalg.eigvalsh(root).min() > -1e-7


@pytest.mark.parametrize("correlated", [False, True])
def test_a_population_has_the_covariance_exactly(correlated):
    covariance = 0.6 ** np.abs(np.subtract.outer(np.arange(7), np.arange(7))) if correlated else None
    pairs = linear_regression(7, 2, train=300, covariance=covariance, population=True, dtype=torch.float64)
    whole = pairs.train[:10]
    moments = (whole.inputs.T @ whole.inputs / len(whole.inputs)).numpy()
    assert np.allclose(moments, np.eye(7) if covariance is None else covariance, atol=1e-12)
    assert torch.allclose(whole.targets, whole.inputs @ pairs.teacher.T)
    assert len(pairs.train) == 300
    assert len(pairs.train.order(0, 3)) == 300
    assert isinstance(pairs.train.to("cpu"), Population)
    drawn = linear_regression(7, 2, train=300, covariance=covariance, dtype=torch.float64)
    assert torch.equal(drawn.test.inputs, pairs.test.inputs)  # tested on the same examples


def test_a_covariance_is_read_from_a_file(tmp_path):
    matrix = np.array([[2.0, 0.5], [0.5, 1.0]])
    np.save(tmp_path / "sigma.npy", matrix)
    (tmp_path / "sigma.csv").write_text("2, 0.5\n0.5, 1\n")
    (tmp_path / "sigma.txt").write_text("2 0.5\n0.5 1\n")
    for name in ("sigma.npy", "sigma.csv", "sigma.txt"):
        assert np.array_equal(read_covariance(tmp_path / name), matrix)
        assert read_covariance(tmp_path / name).flags.writeable  # torch takes nothing else without a warning


def test_a_file_that_holds_no_covariance_is_refused(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "words.csv").write_text("one, two\n")
    (tmp_path / "ragged.txt").write_text("1 2\n3\n")
    whole = io.BytesIO()
    np.save(whole, np.eye(4))
    (tmp_path / "cut.npy").write_bytes(whole.getvalue()[:-20])
    # A header that claims a terabyte.
    (tmp_path / "bomb.npy").write_bytes(whole.getvalue().replace(b"(4, 4)", b"(400000, 400000)")[:200])
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    np.save(tmp_path / "complex.npy", 1j * np.eye(2))
    (tmp_path / "empty.txt").write_text("\n\n")
    reasons = {
        "pickled.npy": "object",
        "words.csv": "one",
        "ragged.txt": "columns",
        "cut.npy": "shorter than its header says",
        "bomb.npy": "shorter than its header says",
        "binary.txt": "decode",
        "missing.npy": "No such file",
        "complex.npy": "complex128, not real numbers",
        "empty.txt": "it is empty",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=f"the covariance in .*{name} cannot be read: .*{reason}"):
            read_covariance(tmp_path / name)
