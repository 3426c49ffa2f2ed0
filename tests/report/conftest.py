"""Run folders as the trainer writes them, made by hand and read back by `read_run`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synaptome.training.measures import write_chunk, write_final
from synaptome.training.run import RunRecord, read_run

MakeRun = Callable[..., RunRecord]
Arrays = dict[str, np.ndarray]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(
        name: str,
        metrics: Sequence[dict[str, Any]] = (),
        summary: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        recipe: str = "failing",
        seed: int = 0,
        device: str = "cpu",
        environment: dict[str, Any] | None = None,
    ) -> RunRecord:
        folder = tmp_path / "runs" / name
        (folder / "measures").mkdir(parents=True)
        head = {"recipe": recipe, "options": options or {}, "seed": seed, "device": device, "threads": 2}
        (folder / "recipe.json").write_text(json.dumps(head))
        (folder / "environment.json").write_text(
            json.dumps({"python": "3.11.2"} if environment is None else environment)
        )
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
        if summary is not None:
            (folder / "measures" / "summary.json").write_text(json.dumps(summary))
        return read_run(folder)

    return make


@pytest.fixture
def finished(make_run: MakeRun) -> MakeRun:
    """A finished run of six epochs whose curves and results follow from its seed and `failure`."""

    def make(name: str, seed: int = 0, failure: float = 0.0, **more: Any) -> RunRecord:
        metrics = [
            {
                "step": 10 * epoch,
                "epoch": epoch,
                "seconds": 0.5 * epoch,
                "train/loss": (2.0 + 0.1 * seed) / 3**epoch,
                "test/loss": (2.5 + 0.1 * seed) / 2.5**epoch + failure / 10,
                "train/accuracy": 1 - 0.5 / epoch,
                "test/accuracy": 1 - (0.5 + 0.01 * seed) / epoch,
                "validation/accuracy": 1 - (0.52 + 0.01 * seed) / epoch,
            }
            for epoch in range(1, 7)
        ]
        summary = {
            "synapse": "failing",
            "rule": "backprop",
            "parameters": 1210,
            "active_synapses": 1200,
            "seconds": 3.0 + seed,
            "citations": ["wan2013", "mianjy2019"],
            "test/accuracy": metrics[-1]["test/accuracy"],
            "test/loss": metrics[-1]["test/loss"],
        }
        return make_run(name, metrics, summary, {"data": "digits", "failure": failure}, seed=seed, **more)

    return make


@pytest.fixture
def write_measures() -> Callable[..., None]:
    """Measures into a run folder, as the trainer writes them; a series in two files."""

    def write(
        run: RunRecord, name: str, series: dict[str, Any] | None = None, final: dict[str, Any] | None = None
    ) -> None:
        folder = run.path / "measures"
        if series is not None:
            snapshots = _tensors(series)
            half = len(snapshots["step"]) // 2
            for index, part in enumerate([slice(half), slice(half, None)] if half else [slice(None)]):
                write_chunk(folder, name, index, {key: tensor[part].contiguous() for key, tensor in snapshots.items()})
        if final is not None:
            write_final(folder, name, _tensors(final))

    return write


@pytest.fixture
def learned(finished: MakeRun, write_measures: Callable[..., None]) -> Callable[..., tuple[RunRecord, Arrays, Arrays]]:
    """A finished run with the spectra of a deep linear network that learned; see `learn`."""

    def make(name: str, seed: int = 0, failure: float = 0.0, **options: Any) -> tuple[RunRecord, Arrays, Arrays]:
        run = finished(name, seed, failure)
        series, final = learn(failure=failure, seed=seed, **options)
        write_measures(run, "spectra", series, final)
        return run, series, final

    return make


def _tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(np.asarray(value)) for key, value in arrays.items()}


def learn(
    depth: int = 3,
    features: int = 8,
    d: int = 2,
    failure: float = 0.0,
    seed: int = 0,
    steps: int = 60,
    rate: float = 0.02,
    scale: float = 1.0,
) -> tuple[Arrays, Arrays]:
    """Gradient descent of a deep linear network on its exact expected loss, measured at log-spaced steps.

    Returns:
        The series and the final measures, as the recipe `failures-linear` writes them.
    """
    draw = np.random.default_rng(seed)
    shapes = [(features, features)] * (depth - 1) + [(d, features)]
    weights = [draw.normal(0, scale * columns**-0.5, (rows, columns)) for rows, columns in shapes]
    left, _, right = np.linalg.svd(draw.normal(size=(d, features)), full_matrices=False)
    strengths = np.array([1.0, 0.2])[:d]
    teacher = left * strengths @ right
    x = draw.normal(size=(200, features)) * np.linspace(1.5, 0.5, features)
    covariance, noise = x.T @ x / len(x), failure / (1 - failure)
    wanted = {0, steps} | {round(float(step)) for step in np.geomspace(1, steps, 40)}
    rows = []
    for step in range(steps + 1):
        if step in wanted:
            rows.append({"step": step} | _measured(weights, teacher, left, right, d, covariance))
        weights = _descended(weights, teacher, covariance, noise, rate)
    series = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0]}
    for key in series:
        series[key] = series[key].astype(np.int64 if key == "step" or key.endswith("histogram") else np.float32)
    values = np.linalg.eigvalsh(covariance)[::-1]
    final = {"input/spectrum": values, "input/covariance": covariance, "teacher/singular_values": strengths}
    product = np.eye(features)
    for number, weight in enumerate(weights, 1):
        product = weight @ product
        for name in ("overlap", "singular_values", "histogram", "histogram_edge"):
            if f"layer{number}/{name}" in rows[-1]:
                final[f"layer{number}/{name}"] = rows[-1][f"layer{number}/{name}"]
        if number < depth:
            final[f"layer{number}/activity"] = np.sqrt(np.diag(product @ covariance @ product.T))
    return series, {key: np.asarray(value, dtype=np.float32) for key, value in final.items()}


def _descended(weights, teacher, covariance, noise, rate):
    """One step down the gradient of tr S_L - 2 tr(P Σ W*'), S_l = W_l S W_l' + c diag((W_l∘W_l) diag S)."""
    moving = [torch.tensor(weight, requires_grad=True) for weight in weights]
    sigma, target = torch.tensor(covariance), torch.tensor(teacher)
    second, product = sigma, torch.eye(sigma.shape[0], dtype=sigma.dtype)
    for weight in moving:
        second = weight @ second @ weight.T + noise * torch.diag(weight**2 @ second.diagonal())
        product = weight @ product
    loss = second.trace() - 2 * (product @ sigma @ target.T).trace()
    return [
        (weight - rate * slope).detach().numpy()
        for weight, slope in zip(moving, torch.autograd.grad(loss, moving), strict=True)
    ]


def _measured(weights, teacher, left, right, d, covariance):
    found = {}
    decomposed = [np.linalg.svd(weight, full_matrices=False) for weight in weights]
    product = np.eye(covariance.shape[0])
    for number, (weight, (u, s, _)) in enumerate(zip(weights, decomposed, strict=True), 1):
        edge = np.abs(weight).max()
        product = weight @ product
        activity = product @ np.diag(covariance.diagonal() ** 0.5)
        found |= {
            f"layer{number}/norm": np.linalg.norm(weight),
            f"layer{number}/singular_values": s,
            f"layer{number}/participation_ratio": s.sum() ** 2 / (len(s) * (s**2).sum()),
            f"layer{number}/histogram": np.histogram(weight, bins=41, range=(-edge, edge))[0],
            f"layer{number}/histogram_edge": edge,
        }
        if number < len(weights):
            found |= {
                f"layer{number}/overlap": np.abs(decomposed[number][2] @ u),
                f"layer{number}/activity_mean": activity.mean(),
                f"layer{number}/activity_std": activity.std(),
                f"layer{number}/activity_silent": 0.0,
            }
    u, s, v = np.linalg.svd(product, full_matrices=False)
    return found | {
        "product/singular_values": s,
        "product/left": np.abs(u.T @ left),
        "product/right": np.abs(v @ right.T),
        "teacher/left": np.abs(decomposed[-1][0].T @ left),
        "teacher/right": np.abs(decomposed[0][2] @ right.T),
    }
