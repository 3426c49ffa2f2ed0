"""Deep stable networks, forward and backward: a loop over modules, and all layers in one call, in CPU time.

`naive` is a `torch.nn.ModuleList` of `torch.nn.Linear` with the update in Python, as most published code has it;
`fused` is `synaptome.kernels.flow`, and `reversible` the same with the states recomputed backwards from the final one.
tanh, float32, a time of 10. The width is that of a field: leapfrog, Verlet and Hamiltonian states have two. CPU time of
the process, because what else the machine does must not count; of one thread, because threads that wait spin.

Memory is what a process holds at its peak while it trains, above one whose network has a single layer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from harness import RESULTS, Contestant, Result, Work, compare, save
from torch import Tensor, nn
from torch.nn import functional as F

from synaptome.kernels.flow import DYNAMICS, REVERSIBLE, flow

WIDTHS = (2, 4, 8, 16, 32, 64)
QUICK_WIDTHS = (3,)
DEPTH, QUICK_DEPTH = 1024, 6
MEMORY_DEPTHS = (64, 1024)
TIME = 10.0
GAMMA = 0.1  # of the antisymmetric layers

Fields = tuple[Tensor, ...]


def symmetric(layer: nn.Linear, y: Tensor) -> Tensor:
    """`K' tanh(K y + b)`."""
    return torch.tanh(layer(y)) @ layer.weight


def euler(fields: Fields, layer: nn.Linear, h: float) -> Fields:
    return (fields[0] + h * torch.tanh(layer(fields[0])),)


def antisymmetric(fields: Fields, layer: nn.Linear, h: float) -> Fields:
    K = layer.weight
    K = (K - K.T - GAMMA * torch.eye(len(K))) / 2
    return (fields[0] + h * torch.tanh(F.linear(fields[0], K, layer.bias)),)


def leapfrog(fields: Fields, layer: nn.Linear, h: float) -> Fields:
    return 2 * fields[0] - fields[1] - h**2 * symmetric(layer, fields[0]), fields[0]


def verlet(fields: Fields, layer: nn.Linear, h: float) -> Fields:
    z = fields[1] - h * torch.tanh(fields[0] @ layer.weight + layer.bias)
    return fields[0] + h * torch.tanh(layer(z)), z


def hamiltonian(fields: Fields, layer: nn.Linear, h: float) -> Fields:
    p = fields[0] - h / 2 * symmetric(layer, fields[1])
    q = fields[1] + h * symmetric(layer, p)
    return p - h / 2 * symmetric(layer, q), q


LAYERS: dict[str, Callable[[Fields, nn.Linear, float], Fields]] = {
    "euler": euler,
    "antisymmetric": antisymmetric,
    "leapfrog": leapfrog,
    "verlet": verlet,
    "hamiltonian": hamiltonian,
}


def setup(contestant: str, dynamics: str, width: int, depth: int, batch: int) -> Work:
    """The layers of a contestant, and a step through them and back."""
    torch.manual_seed(0)
    step, layer = TIME / depth, LAYERS[dynamics]
    state = torch.randn(batch, width if dynamics in ("euler", "antisymmetric") else 2 * width)
    linears = [nn.Linear(width, width) for _ in range(depth)]
    if contestant == "naive":
        modules = nn.ModuleList(linears)

        def naive() -> None:
            modules.zero_grad()
            fields: Fields = torch.split(state, width, 1)
            for linear in linears:
                fields = layer(fields, linear, step)
            fields[0].sum().backward()  # type: ignore[no-untyped-call]

        return naive

    weight = nn.Parameter(torch.stack([linear.weight.detach() for linear in linears]))
    bias = nn.Parameter(torch.stack([linear.bias.detach() for linear in linears]))
    gamma, reversible = GAMMA if dynamics == "antisymmetric" else 0.0, contestant == "reversible"

    def fused() -> None:
        weight.grad = bias.grad = None
        end = flow(state, weight, bias, dynamics=dynamics, step=step, gamma=gamma, reversible=reversible)
        end[:, :width].sum().backward()  # type: ignore[no-untyped-call]

    return fused


def contestants(dynamics: str) -> tuple[str, ...]:
    """Those that there are of these dynamics."""
    return ("naive", "fused", "reversible") if dynamics in REVERSIBLE else ("naive", "fused")


def measure(dynamics: str, width: int, depth: int, batch: int, threads: int, rounds: int) -> list[Result]:
    """All contestants with one network."""
    return compare(
        "stable-depth",
        [Contestant(name, partial(setup, name, dynamics, width, depth, batch)) for name in contestants(dynamics)],
        baseline="naive",
        rounds=rounds,
        threads=threads,
        unit="steps",
        note=f"{dynamics}, width {width}, depth {depth}, batch {batch}, float32, CPU time",
        limit=15,
        clock=time.process_time,
    )


def memory(dynamics: str, width: int, batch: int) -> str:
    """MB of the networks of each contestant by depth, in words."""
    told = []
    for name in contestants(dynamics):
        measured = compare(
            "stable-depth",
            [
                Contestant(f"{name} {depth}", partial(setup, name, dynamics, width, depth, batch))
                for depth in (1, *MEMORY_DEPTHS)
            ],
            baseline=f"{name} 1",
            rounds=1,
            fresh=True,
        )
        base, *held = [(result.setup_mb or 0) + (result.peak_mb or 0) for result in measured]
        told.append(f"{name} {', '.join(f'{megabytes - base:.1f}' for megabytes in held)}")
    depths = " and ".join(map(str, MEMORY_DEPTHS))
    return f"{dynamics}, width {width}, batch {batch}: MB at depth {depths}: {'; '.join(told)}"


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batch", type=int, nargs="+", default=[256])
    parser.add_argument("--dynamics", choices=DYNAMICS, nargs="+", default=list(LAYERS))
    options = parser.parse_args()
    widths: Sequence[int]
    widths, depth, rounds = (QUICK_WIDTHS, QUICK_DEPTH, 2) if options.quick else (WIDTHS, DEPTH, 5)
    results = []
    for threads in options.threads:
        for batch in options.batch:
            for dynamics in options.dynamics:
                for width in widths:
                    results += measure(dynamics, width, depth, batch, threads, rounds)
    save(results, options.out)
    for width in () if options.quick else (4, 64):
        print(memory("verlet", width, options.batch[-1]))


if __name__ == "__main__":
    main()
