"""Published measurements that the speed model is fitted to, and those that are left out. Data.

This project measured none of them. If a publication does not state a value that the model needs,
the assumed value is next to the point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from qwenfleet.cluster.config.layout import Layout
from qwenfleet.cluster.hardware.accelerators import (
    A100,
    B200,
    H100,
    H200,
    MI300X,
    MI355X,
    Accelerator,
    ComputeDtype,
    Origin,
    Vendor,
)
from qwenfleet.cluster.models.catalog import CODER_30B, CODER_480B
from qwenfleet.cluster.models.geometry import FP8_BLOCKS, Geometry, KVDtype
from qwenfleet.cluster.speed.cost import Workload
from qwenfleet.cluster.speed.steps import EngineShape

UNSTATED_PROMPT_TOKENS: Final = 1024
"""Assumed for the ML.ENERGY sweeps, which do not state prompt lengths. Half or twice this value
moves a predicted step of up to 90 sequences by less than 12 %, and one of 255 by less than 25 %."""


class MeasuredTime(StrEnum):
    """Measured quantity, in milliseconds."""

    STEP = "ITL"
    """Median time between two tokens: a decode step without prefill."""
    TPOT = "TPOT"
    """Time per token after the first, steps with prefills included."""
    LATENCY = "latency/token"
    """Time of a whole request, first token included, per output token."""


@dataclass(frozen=True)
class CalibrationPoint:
    """One measurement. Points of one `series` share model, GPUs and layout: they are held out
    together."""

    label: str
    series: str
    source: str
    shape: EngineShape
    load: Workload
    quantity: MeasuredTime
    measured_ms: float

    @property
    def vendor(self) -> Vendor:
        """Vendor of its GPUs."""
        return self.shape.accelerator.vendor


@dataclass(frozen=True)
class TtftPoint:
    """A measured time to first token."""

    label: str
    shape: EngineShape
    load: Workload
    measured_ms: float


@dataclass(frozen=True)
class LeftOut:
    """A publication that the fit leaves out, and why."""

    what: str
    reason: str


H20_3E: Final = replace(
    H200,
    name="H20-3e",
    flops_per_s=MappingProxyType({ComputeDtype.BF16: 148e12, ComputeDtype.FP8: 296e12}),
    ray_names=(),
    node_labels=(),
    other_names=(),
    origins=(
        Origin(("flops_per_s",), "H20 reviews; memory and links as H200's, unverified", True),
    ),
)
"""Used in the calibration only."""
A800: Final = replace(
    A100,
    name="A800",
    flops_per_s=MappingProxyType({ComputeDtype.BF16: 312e12, ComputeDtype.FP8: 624e12}),
    link_bytes_per_s=200e9,
    weight_only=frozenset(),
    ray_names=(),
    node_labels=(),
    other_names=(),
    origins=(Origin(("flops_per_s",), "A100's; INT8 stands where FP8 is, link 400 GB/s", True),),
)
"""Used in the calibration only: its one point has INT8 weights, the same size as FP8."""

FP8_480B: Final = replace(CODER_480B, quantization=FP8_BLOCKS)
FP8_30B: Final = replace(CODER_30B, quantization=FP8_BLOCKS)


def _shape(
    geometry: Geometry, accelerator: Accelerator, layout: str, kv: KVDtype = KVDtype.AUTO
) -> EngineShape:
    return EngineShape(geometry, accelerator, Layout.parse(layout), kv)


# SGLang's TP8 EP2 splits each expert over four of eight GPUs; TP8 reads as many bytes.
MI300X_480B: Final = _shape(FP8_480B, MI300X, "TP8")
H100_480B: Final = _shape(FP8_480B, H100, "TP8+EP8")
H20_480B: Final = _shape(FP8_480B, H20_3E, "TP8+EP8")
A800_480B: Final = _shape(FP8_480B, A800, "TP8")
MI355X_480B: Final = _shape(FP8_480B, MI355X, "TP4", KVDtype.FP8)
MI300X_30B: Final = _shape(FP8_30B, MI300X, "TP1", KVDtype.FP8)

COOKBOOK: Final = "SGLang cookbook, SGLang 0.5.7, AITER off"
"""Lengths are drawn from 1 to 1000, so about 500 each; the output rate at c=1 agrees."""
SONNET: Final = "SGLang 0.5.18, 2026-09-15, sonnet, DeepGEMM off"
RANDOM_1000: Final = (500, 500)
THROUGHPUT_30B: Final = "vllm-project/vllm #17530, tuned, offline, 200 prompts, AITER off"

SINGLE_POINTS: Final = (
    CalibrationPoint("A", "A-C", COOKBOOK, MI300X_480B, Workload(1, *RANDOM_1000),
                     MeasuredTime.TPOT, 17.06),
    CalibrationPoint("B", "A-C", COOKBOOK, MI300X_480B, Workload(16, *RANDOM_1000),
                     MeasuredTime.STEP, 26.42),
    CalibrationPoint("C", "A-C", COOKBOOK, MI300X_480B, Workload(64, *RANDOM_1000),
                     MeasuredTime.STEP, 37.87),
    CalibrationPoint("D", "D-E", SONNET, H100_480B, Workload(32, 512, 128, 1),
                     MeasuredTime.TPOT, 26.83),
    CalibrationPoint("E", "D-E", SONNET, H100_480B, Workload(64, 512, 128, 1),
                     MeasuredTime.TPOT, 26.34),
    CalibrationPoint("F", "F-G", "sgl-project/sglang #8344", H20_480B, Workload(10, 2093, 521),
                     MeasuredTime.LATENCY, 14_487 / 521),
    CalibrationPoint("G", "F-G", "vllm-project/vllm #21598, untuned", H20_480B,
                     Workload(10, 2093, 521), MeasuredTime.LATENCY, 10 * 167.76 / 52_135 * 1000),
    CalibrationPoint("H", "H", "sgl-project/sglang #8852, untuned, BF16 by name",
                     _shape(CODER_480B, H200, "TP8"), Workload(16, 3018, 148),
                     MeasuredTime.LATENCY, 6016 / 148),
    CalibrationPoint("I", "I", "sgl-project/sglang #8351, INT8, untuned", A800_480B,
                     Workload(16, 130, 134), MeasuredTime.LATENCY, 5184 / 134),
    CalibrationPoint("M", "M", "AMD-AGI/Magpie #88, SGLang, AITER on", MI355X_480B,
                     Workload(32, 922, 922), MeasuredTime.TPOT, 22.69),
    CalibrationPoint("N1", "N", THROUGHPUT_30B, MI300X_30B, Workload(200, 5000, 1000),
                     MeasuredTime.TPOT, 200 / 1925 * 1000),
    CalibrationPoint("N2", "N", THROUGHPUT_30B, MI300X_30B, Workload(200, 1000, 2000),
                     MeasuredTime.TPOT, 200 / 4337 * 1000),
    CalibrationPoint("N3", "N", THROUGHPUT_30B, MI300X_30B, Workload(200, 10_000, 500),
                     MeasuredTime.TPOT, 200 / 679 * 1000),
)  # fmt: skip

ML_ENERGY: Final = "ml-energy/leaderboard 2026-02-13, public/data, vLLM"


def _sweep(
    label: str,
    shape: EngineShape,
    output_tokens: int,
    steps: tuple[tuple[float, float], ...],
    series: str = "",
) -> tuple[CalibrationPoint, ...]:
    """Build one point per run of an ML.ENERGY sweep from average batch and median ITL in ms."""
    return tuple(
        CalibrationPoint(
            f"{label}/{batch:g}",
            series or label,
            ML_ENERGY,
            shape,
            Workload(batch, UNSTATED_PROMPT_TOKENS, output_tokens),
            MeasuredTime.STEP,
            milliseconds,
        )
        for batch, milliseconds in steps
    )


# The configurations set enable-expert-parallel, with as many tensor parallel ranks as GPUs; the FP8
# ones have data parallel ranks instead (ml-energy/benchmark, configs/vllm/sourcegraph-fim).
SWEEPS: Final = (
    *_sweep("P", _shape(CODER_30B, H100, "TP1"), 255,
            ((7.9, 12.36), (15.9, 16.88), (31.8, 21.85), (63.7, 27.55), (88.9, 30.75))),
    *_sweep("Q", _shape(CODER_30B, H100, "TP2+EP2"), 250,
            ((8, 9.23), (15.9, 11.78), (31.9, 14.73), (63.7, 17.93), (127.6, 24.77),
             (254.8, 35.33))),
    *_sweep("R", _shape(CODER_30B, B200, "TP1"), 255,
            ((7.8, 8.40), (15.7, 10.46), (31.6, 12.86), (63.5, 15.91), (127.0, 20.60),
             (254.9, 29.44))),
    *_sweep("S", _shape(CODER_30B, H100, "TP1"), 920,
            ((8.0, 12.85), (16.0, 17.55), (31.9, 22.57), (63.9, 28.94), (88.5, 32.07)), "P"),
    *_sweep("T", _shape(CODER_480B, B200, "TP8+EP8"), 250,
            ((8.0, 17.75), (15.9, 24.12), (31.9, 36.23), (63.7, 40.42), (127.4, 44.61),
             (254.5, 50.80))),
    *_sweep("U", _shape(FP8_480B, B200, "DP8+EP8"), 250,
            ((8.0, 25.79), (14.3, 28.53), (29.6, 29.70), (60.6, 32.02))),
    *_sweep("V", _shape(FP8_480B, B200, "DP4+EP4"), 250,
            ((7.5, 36.17), (15.0, 37.58), (31.2, 40.55), (62.8, 42.34))),
)  # fmt: skip
"""P to R, T to V: fill-in-the-middle. S: chat with Qwen3-30B-A3B-Instruct-2507, the same shape."""

POINTS: Final = (*SINGLE_POINTS, *SWEEPS)

TTFT_POINTS: Final = (
    TtftPoint("A", MI300X_480B, Workload(1, *RANDOM_1000), 126),
    TtftPoint("B", MI300X_480B, Workload(16, *RANDOM_1000), 157),
    TtftPoint("E", H100_480B, Workload(64, 512, 128, 1), 277.5),
    TtftPoint("F", H20_480B, Workload(10, 2093, 521), 513),
    TtftPoint("I", A800_480B, Workload(16, 130, 134), 161.7),
    TtftPoint("M", MI355X_480B, Workload(32, 922, 922), 229.74),
)
"""Medians of A, B and E, means of the others."""

LEFT_OUT: Final = (
    LeftOut("means of B and C", "C stalled once for 36.9 s, so median ITLs are used"),
    LeftOut("TTFT of D", "it includes a warm-up: above E's at half the load"),
    LeftOut("J, vLLM recipe FP8 DP8+EP8, c=10", "cold and untuned, and the GPU is not stated"),
    LeftOut("K, GSM8K in 13 to 71 s", "an evaluation whose lengths and tail are not stated"),
    LeftOut(
        "L, 8 H100 with experts on the CPU",
        "experts are read over PCIe, which the model does not cover",
    ),
    LeftOut(
        "A100, tenstorrent/tt-inference-server #340",
        "4096 tokens in 75 ms is more than one A100 can compute, and the number of GPUs is not "
        "stated",
    ),
    LeftOut("1 A800, 30B BF16, sgl-project/sglang #5880", "its concurrency is not stated"),
    LeftOut("1 H20, 30B FP8, sgl-project/sglang #5850", "its concurrency is not stated"),
    LeftOut("RTX 5090, 30B AWQ, 555 tokens/s", "its load is not stated"),
    LeftOut(
        "ML.ENERGY above 256 sequences, and above 64 of the FP8 sweeps",
        "from there on most steps also prefill, so the median ITL is not a decode step",
    ),
    LeftOut(
        "ML.ENERGY on the chat and thinking models of 2507, except S",
        "the same shapes on the same GPUs as those used",
    ),
)
