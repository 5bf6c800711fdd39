"""The folder of a run: a new one, or that of an unfinished run of equal settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitsense.errors import StaleResultError, UserInputError
from vitsense.runfolder import RunFolder
from vitsense.settings import AnalyzeSettings
from vitsense.team import Team
from vitsense.trainings import TrainingFolder


def folder_of_team(team: Team, find: Callable[[], RunFolder]) -> RunFolder:
    """The first process's folder, on all; made where a machine does not see it."""
    path = Path(team.agree(str(find().path) if team.first else None))
    return RunFolder(RunFolder.at(path).path, team.place.rank)


def state_of_team(run: RunFolder, team: Team) -> list[dict[str, Any]]:
    """What was measured before, of every machine's folder; the same may be seen by several."""
    seen = team.gather(run.read_state() if team.place.local_rank == 0 else [])
    if team.place.size == 1:
        return list(seen[0])
    each = {json.dumps(record): record for records in seen for record in records}
    return list(each.values())


def find_folder(
    settings: AnalyzeSettings,
    fingerprint: Mapping[str, str],
    out: Path | None,
    root: Path,
) -> RunFolder:
    """``out``, or below ``root`` an unfinished equal run, or a new one.

    Args:
        settings: Of the run.
        fingerprint: Everything else, by name, that must be equal for old numbers to be used.
        out: The folder that was asked for.
        root: Where runs are.

    Raises:
        StaleResultError: ``out`` holds results of another run, or a training.
    """
    if out is not None:
        if TrainingFolder(out).started:
            raise StaleResultError(
                f"{out} is the folder of a training, whose plan.json a run would replace; choose "
                "another --out."
            )
        if (out / "run.json").is_file():
            run = RunFolder.open(out)
            refuse_stale(run, settings, fingerprint)
            return run
        return RunFolder.at(out)
    for run in reversed(RunFolder.all_in(root)):
        try:
            earlier = run.read_run()
        except UserInputError:  # a damaged run, or one of a newer version, is not this one
            continue
        if earlier.get("status") != "complete" and not _differing(earlier, settings, fingerprint):
            return run
    names = [settings.model.name, *(c.name for c in settings.compares)]
    return RunFolder.create(root, "-vs-".join(n.rpartition("/")[2] for n in names))


def refuse_stale(run: RunFolder, settings: AnalyzeSettings, fingerprint: Mapping[str, str]) -> None:
    """Refuse to mix results.

    Raises:
        StaleResultError: naming what differs.
    """
    differing = _differing(run.read_run(), settings, fingerprint)
    if differing:
        raise StaleResultError(
            f"{run.path} holds results of another run; different are: {', '.join(differing)}. "
            "Use another --out, or delete the folder."
        )


def _differing(
    earlier: Mapping[str, Any], settings: AnalyzeSettings, new: Mapping[str, str]
) -> list[str]:
    found = settings.differing(earlier.get("settings", {}))
    old = earlier.get("fingerprint", {})
    return found + sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
