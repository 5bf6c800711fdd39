"""Running a file by onnxruntime: the only file that imports it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitsense.errors import UserInputError
from vitsense.export.onnx_graph import INPUT, OUTPUT

Floats = NDArray[np.float32]

EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Settings of a session under which onnxruntime computes what the file says. By itself it takes
level 4 for a product of a narrow weight with a float tensor (`MatMulNBits`): it rounds the float
tensor to 8 bits, which is no part of the file."""


class Session:
    """An ONNX model ready to run on the CPU, on one thread so that runs can be compared."""

    def __init__(
        self, raw: bytes, outputs: Sequence[str] = (OUTPUT,), *, exact: bool = True
    ) -> None:
        """Prepare the model.

        Args:
            raw: The bytes of the file.
            outputs: Names of the outputs that are wanted.
            exact: Whether with the settings `EXACT`, or as onnxruntime does by itself.

        Raises:
            UserInputError: onnxruntime refuses the file.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        for key, value in EXACT.items() if exact else ():
            options.add_session_config_entry(key, value)
        options.log_severity_level = 4  # refusals come as exceptions; its log goes to stderr
        try:
            self._session = onnxruntime.InferenceSession(
                raw, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common base class
            raise UserInputError(
                f"onnxruntime {onnxruntime.__version__} refuses the file: "
                f"{str(error).splitlines()[0][:300]}"
            ) from error
        self._outputs = list(outputs)

    def run(self, images: Floats | Mapping[str, Floats]) -> list[Any]:
        """The outputs for images `(B, 3, H, W)`, or for inputs by their names."""
        given = images if isinstance(images, Mapping) else {INPUT: images}
        found: list[Any] = self._session.run(self._outputs, given)
        return found

    def logits(self, images: Floats) -> Floats:
        """The first output."""
        found: Floats = self.run(images)[0]
        return found


def versions() -> dict[str, str]:
    """Versions of what wrote and ran the file."""
    from importlib.metadata import version

    return {name: version(name) for name in ("onnx", "onnxscript", "onnxruntime", "torch")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of one forward, milliseconds; runs of all files alternate.

    It is processor time of the thread that computes: on an idle machine as long as the clock says,
    and not longer because other programs run.
    """

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    runs: int


def latencies(
    sessions: Sequence[Session],
    images: Floats | Sequence[Mapping[str, Floats]],
    *,
    runs: int,
    warmup: int = 3,
) -> list[Latency]:
    """Time the sessions in turn, so that whatever else the machine does hits all of them.

    Args:
        sessions: What to time.
        images: What each is run on; or for each session its inputs by name.
        runs: Timed runs of each.
        warmup: Runs of each that are not timed.
    """
    given: list[Any] = [images] * len(sessions) if isinstance(images, np.ndarray) else list(images)
    seconds: list[list[float]] = [[] for _ in sessions]
    for number in range(warmup + runs):
        for session, feed, kept in zip(sessions, given, seconds, strict=True):
            started = time.thread_time()
            session.run(feed)
            if number >= warmup:
                kept.append(time.thread_time() - started)
    return [_summary([1e3 * s for s in kept]) for kept in seconds]


def _summary(values: list[float]) -> Latency:
    low, median, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return Latency(median=median, low=low, high=high, runs=len(values))
