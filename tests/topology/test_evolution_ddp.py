"""Two processes under DistributedDataParallel evolve the same graph, which is that of one process on both batches."""

import subprocess
import sys

import safetensors.torch
import torch

RULES = ("random", "random-unfired", "gradient", "momentum")
SCRIPT = f"""
import sys, torch, safetensors.torch
from torch import distributed, nn
from synaptome.errors import ConfigurationError
from synaptome.synapses.sparse import SparseLinear
from synaptome.topology.evolution import Evolution
from synaptome.nested import take_apart

rank, processes, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if processes > 1:
    distributed.init_process_group("gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=processes)
for grow in {RULES}:
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear(12, 10, nnz=40), nn.ReLU(), SparseLinear(10, 4, nnz=14)).double()
    wrapped = nn.parallel.DistributedDataParallel(model) if processes > 1 else model
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.05, momentum=0.9)
    evolution = Evolution(wrapped, optimizer, grow=grow, drop="set", every=2, initial="distribution", seed=3)
    for batch in range(8):
        x = torch.randn(16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
        optimizer.zero_grad()
        wrapped(x.view(processes, -1, 12)[rank]).square().mean().backward()  # each process has other examples
        optimizer.step()
        evolution.step()
    state = take_apart([model.state_dict(), optimizer.state_dict()])[1]
    safetensors.torch.save_file(state, f"{{folder}}/{{grow}}-{{processes}}-{{rank}}")
if processes > 1:
    try:
        Evolution(wrapped, optimizer, redistribute="momentum")
    except ConfigurationError as error:
        print(error)
    distributed.barrier()
    distributed.destroy_process_group()
"""


def test_all_processes_agree(tmp_path):
    def start(rank, processes):
        words = [sys.executable, "-c", SCRIPT, str(rank), str(processes), str(tmp_path)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    running = [start(0, 2), start(1, 2), start(0, 1)]
    said = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert all("leave redistribute at None" in words for words in said[:2])
    for grow in RULES:
        first, second, alone = (
            safetensors.torch.load_file(tmp_path / f"{grow}-{name}") for name in ("2-0", "2-1", "1-0")
        )
        assert first.keys() == second.keys() == alone.keys()
        assert any(name.endswith("momentum_buffer") for name in first)
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), (grow, name)
            torch.testing.assert_close(tensor, alone[name])
