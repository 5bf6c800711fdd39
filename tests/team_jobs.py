"""Two processes for the tests, with torchrun's environment but without its start of six seconds.

    python tests/team_jobs.py FOLDER JOB ...

imports what the jobs need once and forks two processes for each of them, with gloo between them on
the processor. What they print goes to ``FOLDER/JOB.txt``, their exit codes to ``FOLDER/JOB.json``.
When one of them dies the other gets SIGTERM, as from torchrun.
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
"""Modes that two forked processes run; the other is run by torchrun itself."""


def command(mode: str, out: Path) -> list[str]:
    """The command line of a small run."""
    data = ["--data", str(out.parents[1] / DATA)]
    return ["analyze", *SETTINGS, *data, *MODES[mode], "--out", str(out)]


def by_torchrun(mode: str, out: Path) -> tuple[int, str]:
    """Exit code and output of two processes as a person starts them."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [sys.executable, "-m", *torchrun, "-m", "vitsense", *command(mode, out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": _path()}
    found = subprocess.run(
        words, check=False, timeout=600, env=environment, text=True, capture_output=True
    )
    return found.returncode, found.stdout + found.stderr


def _path() -> str:
    """Where the processes find vitsense and the tests' models."""
    here = Path(__file__).parent
    return os.pathsep.join(filter(None, [str(here), str(here.parent), os.getenv("PYTHONPATH")]))


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


def _run(folder: Path, job: str) -> list[int]:
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
        text = os.open(folder / f"{job}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(text, 1)
        os.dup2(text, 2)
        code = JOBS[job](folder, rank)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


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
