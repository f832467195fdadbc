from collections.abc import Callable
from pathlib import Path

import pytest


def peak_growth_bytes(function: Callable[[], object]) -> int:
    """Return how much the largest memory of the process grows while a function runs."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        pytest.skip('the peak of the memory cannot be reset here')
    before = high_water_bytes()
    function()
    return high_water_bytes() - before


def high_water_bytes() -> int:
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) << 10
