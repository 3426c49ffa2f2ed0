"""What transfers between two processes take."""

import math
import os
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from torch import distributed

from synaptome.errors import WorkerLostError
from synaptome.learning.parallel.transfers import measured_transfers


def test_each_border_has_a_time(tmp_path, monkeypatch):
    folder = tmp_path / "a place with é + %20"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    found = measured_transfers([(4,), (3, 8, 8)], 64)
    assert len(found) == 2
    assert all(0 < seconds < math.inf for seconds in found)
    assert measured_transfers([], 64) == []
    assert not distributed.is_initialized()
    assert not list(folder.iterdir())


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are found in /proc")
def test_a_lost_process_is_told():
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")

    def kill_one():
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for pid in children.read_text().split():
                with suppress(FileNotFoundError, ProcessLookupError):
                    if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(int(pid), signal.SIGKILL)
                        return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(WorkerLostError, match="transfers between two processes could not be measured"):
        measured_transfers([(4,)], 8)
    killer.join()
