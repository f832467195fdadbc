"""Memory bandwidth and throughput of machines that are not at hand, from their data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What limits a language model on a GPU.

    Attributes:
        name: As in reports.
        bandwidth_gb_s: Memory bandwidth, 1e9 bytes per second.
        tflops: Dense matrix products in float16 or bfloat16, 1e12 operations per second.
    """

    name: str
    bandwidth_gb_s: float
    tflops: float


GPUS = {
    machine.name: machine
    for machine in (
        # Jetson AGX Orin Series technical brief: 204.8 GB/s; 170 sparse int8 TOPS of the GPU, a
        # quarter of which is dense float16.
        Machine(name='orin-64gb', bandwidth_gb_s=204.8, tflops=42.5),
        # The same brief: 204.8 GB/s; 14 instead of 16 multiprocessors at 0.93 instead of 1.3 GHz.
        Machine(name='orin-32gb', bandwidth_gb_s=204.8, tflops=26.6),
        # Jetson T5000 data sheet: 273 GB/s; 2,070 sparse FP4 TFLOPS, an eighth of which is dense
        # float16.
        Machine(name='thor', bandwidth_gb_s=273.0, tflops=258.8),
        # Ada architecture paper: 1,008 GB/s; 165.2 dense TFLOPS, float16 with float32 sums.
        Machine(name='rtx-4090', bandwidth_gb_s=1008.0, tflops=165.2),
        # H100 SXM data sheet: 3.35 TB/s; 1,979 sparse TFLOPS, half of which is dense.
        Machine(name='h100', bandwidth_gb_s=3350.0, tflops=989.5),
        # H200 SXM data sheet: 4.8 TB/s; as the H100.
        Machine(name='h200', bandwidth_gb_s=4800.0, tflops=989.5),
    )
}
"""Name to machine, at the largest power limit."""

BANDWIDTH_EFFICIENCY = 0.8
"""An assumption: share of the bandwidth that reading weights reaches in a long run."""

COMPUTE_EFFICIENCY = 0.6
"""An assumption: share of the throughput that matrix products of a model reach in a long run."""
