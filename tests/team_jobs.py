"""Two processes for the tests, with torchrun's environment but without its start of six seconds.

    python tests/team_jobs.py FOLDER JOB ...

imports what the jobs need once and forks two processes for each of them, with gloo between them on
the processor. What they print goes to ``FOLDER/JOB.txt``, their exit codes to ``FOLDER/JOB.json``.
When one of them dies the other gets SIGTERM, as from torchrun. The job ``fast`` is started by
torchrun itself: its launcher, which is told to fork as well.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

MODEL = "small_models:glyph_net"
SETTINGS = ["--model", MODEL, "--calibration", "8", "--batch-size", "12"]
SETTINGS += ["--refine-images", "4", "--weight-range", "minmax", "--activation-range", "minmax"]
SETTINGS += ["--device", "cpu", "--no-report", "--progress", "plain"]
MODES = {
    "exact": ["--mode", "exact", "--images", "18", "--bits", "4", "--by", "none"],
    "adaptive": ["--mode", "adaptive", "--images", "34", "--bits", "4,2"],
    "fast": ["--mode", "fast", "--images", "18", "--bits", "4,2"],
}
MODES["exact"] += ["--hessian-probes", "3"]
DATA = "images"  # labelled images, in the folder above that of a run
FORKED = ("exact", "adaptive")
"""Modes that two forked processes run."""
LAUNCHED = "fast"
"""The mode whose processes torchrun's launcher starts and ends."""


def command(mode: str, out: Path) -> list[str]:
    """The command line of a small run."""
    data = ["--data", str(out.parents[1] / DATA)]
    return ["analyze", *SETTINGS, *data, *MODES[mode], "--out", str(out)]


def in_two_processes(folder: Path, *jobs: str) -> dict[str, tuple[list[int], str]]:
    """Exit codes of both processes, and what they printed, of each job."""
    words = [sys.executable, __file__, str(folder), *jobs]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(words, check=True, timeout=1200, env=environment)
    return {
        job: (
            json.loads((folder / f"{job}.json").read_text()),
            (folder / f"{job}.txt").read_text(),
        )
        for job in jobs
    }


def _analyze(mode: str) -> Callable[[Path, int], int]:
    def job(folder: Path, _rank: int) -> int:
        from vitsense import cli

        return cli.run(command(mode, folder / mode))

    return job


def _killed(folder: Path, rank: int) -> int:
    """The second process is killed in the middle of its part of the modules."""
    from vitsense import cli
    from vitsense.runfolder import RunFolder

    append, kept = RunFolder.append_state, []

    def append_or_die(self: RunFolder, record: dict) -> None:
        append(self, record)
        kept.append(record)
        if rank == 1 and len(kept) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.append_state = append_or_die
    return cli.run(command("exact", folder / "killed"))


def _silent(folder: Path, rank: int) -> int:
    """The second process stops, without an end."""
    from vitsense.team import joined

    os.environ["VITSENSE_LOST_AFTER"] = "6"
    return _as_a_command(folder, rank, joined, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def _failing(folder: Path, rank: int) -> int:
    """The second process ends with an error of its own."""
    from vitsense.errors import MeasurementError
    from vitsense.team import joined

    def fail() -> None:
        raise MeasurementError("planted")

    return _as_a_command(folder, rank, joined, fail)


def _as_a_command(_folder: Path, rank: int, joined: Callable, second: Callable[[], None]) -> int:
    """What the command line makes of a team whose second process does something."""
    import click

    from vitsense import cli

    @click.command("stand-in")
    def stand_in() -> None:
        with joined() as team:
            click.get_current_context().find_object(cli.Session).joined = True
            assert team.gather([rank, 0.1]) == [[0, 0.1], [1, 0.1]]
            assert team.agree("first" if rank == 0 else "second") == "first"
            if rank == 1:
                second()
            team.gather(None)

    cli.cli.add_command(stand_in)
    return cli.run(["stand-in"])


def training(out: Path) -> list[str]:
    """The command line of a small training; a Swin has no statistics of a process's batch."""
    words = ["qat", "--bits", "4", "--model", "zoo/glyph_swin", "--device", "cpu", "-q"]
    words += ["--images", "32", "--eval-images", "36", "--epochs", "0.5", "--batch-size", "8"]
    words += ["--sensitivity-images", "0", "--set", "calibration=8", "--set", "evaluate=0"]
    return [*words, "--set", "clip=0", "--out", str(out)]


def _training(folder: Path, _rank: int) -> int:
    from vitsense import cli

    return cli.run(training(folder / "training"))


def _forecast(_folder: Path, _rank: int) -> int:
    from vitsense import cli

    code = cli.run(["analyze", "--model", "no-such-model", "--dry-run", "--bits", "1"])
    return code or 1


JOBS = {
    **{mode: _analyze(mode) for mode in MODES},
    "killed": _killed,
    "silent": _silent,
    "failing": _failing,
    "mistaken": _forecast,
    "training": _training,
}


def _by_torchrun(folder: Path, job: str) -> list[int]:
    """What ``torchrun --standalone --nproc-per-node=2`` calls, in a process of its own."""
    child = os.fork()
    if child:
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
    code = 99
    try:
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        _speak_into(folder / f"{job}.txt")
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=2,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id="tests",
            max_restarts=0,
            start_method="fork",
        )
        found = elastic_launch(settings, _worker)(job, folder)
        code = max(found.values())
    finally:
        _leave(code)


def _worker(job: str, folder: Path) -> int:
    """What the launcher starts, which has set the environment."""
    code = JOBS[job](folder, int(os.environ["RANK"]))
    sys.stdout.flush()
    return code


def _speak_into(path: Path) -> None:
    text = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(text, 1)
    os.dup2(text, 2)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(folder: Path, job: str) -> list[int]:
    if job == LAUNCHED:
        return _by_torchrun(folder, job)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_started(folder, job, rank, port) for rank in range(2)]
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        pid, status = os.waitpid(-1, 0)
        codes[pid] = os.waitstatus_to_exitcode(status)
        for other in set(children) - codes.keys():
            if codes[pid] != 0 and job == "killed":
                os.kill(other, signal.SIGTERM)
            if job == "silent":  # the one that stopped
                os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in children]


def _started(folder: Path, job: str, rank: int, port: int) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        _speak_into(folder / f"{job}.txt")
        code = JOBS[job](folder, rank)
    finally:
        _leave(code)


def main() -> None:
    import torch

    for name in (
        "scipy.optimize",
        "timm",
        "accelerate",
        "vitsense.analyze",
    ):  # once, for all that are forked
        importlib.import_module(name)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for job in sys.argv[2:]:
        (folder / f"{job}.json").write_text(json.dumps(_run(folder, job)))


if __name__ == "__main__":
    main()
