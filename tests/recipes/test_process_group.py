"""What processes talk over, and where they compute."""

import pytest
import torch

from synaptome.recipes import process_group


@pytest.fixture
def gpus(monkeypatch):
    """A machine with so many GPUs, as far as it is asked."""
    chosen = []

    def there(count, **environment):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        return chosen

    return there


@pytest.mark.parametrize(
    ("device", "count", "environment", "over"),
    [
        ("cpu", 4, {"WORLD_SIZE": 2}, "gloo"),
        ("cuda", 2, {"WORLD_SIZE": 2}, "cpu:gloo,cuda:nccl"),
        ("cuda", 1, {"WORLD_SIZE": 2}, "gloo"),  # nccl refuses processes that share a GPU
        ("cuda", 1, {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1}, "cpu:gloo,cuda:nccl"),
        ("cuda", 4, {"WORLD_SIZE": 16, "LOCAL_WORLD_SIZE": 8}, "gloo"),
    ],
)
def test_gpus_talk_over_nccl_where_each_process_has_one(gpus, device, count, environment, over):
    gpus(count, **environment)
    assert process_group.backend(torch.device(device)) == over


def test_processes_meet_over_what_their_device_takes(gpus, monkeypatch):
    gpus(2, WORLD_SIZE=2, RANK=1)
    seen = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda over, timeout: seen.append(over))
    process_group.joined(3.0, torch.device("cuda", 1))
    process_group.joined(3.0)
    assert seen == ["cpu:gloo,cuda:nccl", "gloo"]


@pytest.mark.parametrize(
    ("count", "environment", "own"),
    [
        (4, {"WORLD_SIZE": 8, "RANK": 6, "LOCAL_RANK": 2, "LOCAL_WORLD_SIZE": 4}, "cuda:2"),
        (4, {"WORLD_SIZE": 4, "RANK": 3}, "cuda:3"),
        (1, {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1}, "cuda:0"),
    ],
)
def test_each_process_takes_the_gpu_of_its_number_on_the_machine(gpus, count, environment, own):
    chosen = gpus(count, **environment)
    assert process_group.own_device(torch.device("cuda")) == torch.device(own)
    assert chosen == [torch.device(own)]


def test_one_process_and_the_cpu_stay_as_they_are(gpus):
    chosen = gpus(4)
    assert process_group.own_device(torch.device("cuda")) == torch.device("cuda")
    gpus(4, WORLD_SIZE=2)
    assert process_group.own_device(torch.device("cpu")) == torch.device("cpu")
    assert not chosen
