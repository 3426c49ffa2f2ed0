"""What a process says of itself."""

import subprocess
import sys


def test_peak_memory_grows_with_what_is_held():
    script = (
        "from synaptome.training.environment import peak_megabytes as peak\n"
        "before = peak(); held = bytearray(b'x' * 300_000_000); print(peak() - before)"
    )
    grown = float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
    assert 250 < grown < 700
