"""Devices, processes and mixed precision: the only door to Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from vitsense.errors import AlreadySaidError, UserInputError
from vitsense.in_use import sole_writer
from vitsense.progress import Progress
from vitsense.qat.evaluate import Answers
from vitsense.sensitivity.result import Outcome

__all__ = [
    "Accelerator",
    "answers_over_processes",
    "from_all_processes",
    "make_accelerator",
    "mean_over_processes",
    "together_alone",
]


def make_accelerator(device: torch.device, precision: str) -> Accelerator:
    """Devices, processes and mixed precision for one training alone.

    Raises:
        UserInputError: the precision does not work on the device.
    """
    AcceleratorState._reset_state()  # an earlier training of this process may have used another
    # batch statistics stay those of each process; parameters and gradients are shared
    handler = DistributedDataParallelKwargs(broadcast_buffers=False)
    try:
        return Accelerator(
            cpu=device.type == "cpu", mixed_precision=precision, kwargs_handlers=[handler]
        )
    except ValueError as error:
        raise UserInputError(
            f"precision={precision} does not work on {device} ({error}); use precision=no."
        ) from error


def answers_over_processes(own: Answers, accelerator: Accelerator) -> Answers:
    """The answers about the images of all processes, those of the first process first."""
    if accelerator.num_processes == 1:
        return own
    total, right = Outcome(), []
    for values, some in gather_object([(own.outcome.to_list(), own.right)]):
        total = total + Outcome.from_list(values)
        right.append(some)
    return Answers(outcome=total, right=torch.cat(right))


def mean_over_processes(value: float, accelerator: Accelerator) -> float:
    """The mean of a number over all processes."""
    if accelerator.num_processes == 1:
        return value
    found = gather_object([value])
    return float(sum(found) / len(found))


def from_all_processes(value: Any) -> list[Any]:
    """A value of every process, in their order."""
    return list(gather_object([value]))


@contextmanager
def together_alone(folder: Path, accelerator: Accelerator, progress: Progress) -> Iterator[None]:
    """The processes of one training are the only ones in its folder: the first locks it for all.

    Raises:
        InUseError: others write there.
        AlreadySaidError: the same, and the first process says so.
    """
    with ExitStack() as held:
        refused = None
        if accelerator.is_main_process:
            try:
                held.enter_context(sole_writer(folder, progress))
            except UserInputError as error:
                refused = error
        several = accelerator.num_processes > 1
        if any(from_all_processes(refused is not None)) if several else refused is not None:
            raise refused or AlreadySaidError
        yield
