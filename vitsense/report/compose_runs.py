"""From two runs of one model to the document that compares them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitsense.compare.run_settings import Setting, differing, same_images
from vitsense.compare.runs import RunChanges, compare_runs
from vitsense.errors import SiteMismatchError, UserInputError
from vitsense.plan.plan import Plan
from vitsense.report.compose_changes import chapters_of, settings_chapter
from vitsense.report.compose_run_verdict import cards_of, sentences_of
from vitsense.report.document import ModelPart
from vitsense.report.runs_document import RunsDocument
from vitsense.report.source import Source

if TYPE_CHECKING:
    import pandas as pd

    from vitsense.runfolder import RunFolder


class RunPair:
    """Two runs and the models that they have in common."""

    def __init__(self, first: RunFolder, second: RunFolder, model: str | None = None) -> None:
        """Open both.

        Args:
            first: A finished run.
            second: Another finished run.
            model: Key of the model to compare; None is every model of both.

        Raises:
            UserInputError: the same run twice, or one that is not finished or damaged.
            InputMissingError: a run holds no measurement.
            SiteMismatchError: the runs have no model, or the model no module or format, in common.
        """
        if first.path.resolve() == second.path.resolve():
            raise UserInputError(
                f"{first.path} was given twice; name two runs of one model. A single run's report: "
                f"vitsense report {first.path}"
            )
        for run in (first, second):
            status = run.read_run().get("status")
            if status != "complete":
                raise UserInputError(
                    f"{run.path} is not finished ({status}); continue it with vitsense analyze "
                    f"--out {run.path}, then compare."
                )
        self.sources = (Source(first), Source(second))
        self.entries = _matched(self.sources, model)

    @property
    def names(self) -> tuple[str, str]:
        """Names of the folders; with their parents where they are called alike."""
        paths = [source.run.path.resolve() for source in self.sources]
        if paths[0].name != paths[1].name:
            return paths[0].name, paths[1].name
        first, second = ("/".join(path.parts[-2:]) for path in paths)
        return first, second

    def changes(self, key: str) -> RunChanges:
        """What changed of a model.

        Raises:
            SiteMismatchError: no module was measured in a common format.
        """
        tables = [
            _tables(s, e["key"]) for s, e in zip(self.sources, self.entries[key], strict=True)
        ]
        fps = (self.entries[key][0].get("fp"), self.entries[key][1].get("fp"))
        found = compare_runs(tables[0], tables[1], fps)
        if found is None:
            measured = " and ".join(
                f"{name}: {len(t['modules'])} modules in "
                f"{', '.join(dict.fromkeys(t['sensitivity']['format'])) or 'no format'}"
                for name, t in zip(self.names, tables, strict=True)
            )
            raise SiteMismatchError(
                f"The runs have no module of {key} in a common format ({measured}); analyze the "
                "same model in the same formats."
            )
        return found

    def formats(self, key: str) -> tuple[dict[str, str], dict[str, str]]:
        """Module -> format in the recommended plan of each run; empty without a plan."""
        first, second = (
            _planned(source, entry)
            for source, entry in zip(self.sources, self.entries[key], strict=True)
        )
        return first, second

    def settings(self, key: str) -> list[Setting]:
        """What the runs do not have in common."""
        first, second = self.sources
        return differing(first.record, second.record, self.entries[key])

    @property
    def same_images(self) -> bool:
        """Whether both were evaluated on the same images."""
        return same_images(self.sources[0].record, self.sources[1].record)


Entry = Mapping[str, Any]


def _matched(sources: tuple[Source, Source], wanted: str | None) -> dict[str, tuple[Entry, Entry]]:
    """Key in the first run -> entries of the same architecture in both."""
    found: dict[str, tuple[Entry, Entry]] = {}
    for entry in sources[0].entries:
        for other in sources[1].entries:
            same = all(entry[key] == other[key] for key in ("name", "source"))
            if same and entry["key"] not in found and wanted in (None, entry["key"]):
                found[entry["key"]] = (entry, other)
    if found:
        return found
    held = "; ".join(f"{s.run.path} has {', '.join(s.keys)}" for s in sources)
    if wanted is not None and any(wanted in source.keys for source in sources):
        raise SiteMismatchError(f"{wanted} is not in both runs: {held}.")
    if wanted is not None:
        raise SiteMismatchError(f"--model is {wanted!r}, which is in neither run: {held}.")
    names = [source.entries[0]["requested"] for source in sources]
    raise SiteMismatchError(
        f"These are runs of different models: {held}. Two runs of one model can be compared here; "
        f"different models belong into one run: vitsense analyze --model {names[0]} --compare "
        f"{names[1]}"
    )


def _tables(source: Source, key: str) -> dict[str, pd.DataFrame]:
    return {name: source.table(name, key) for name in ("modules", "sensitivity", "joint")}


def _planned(source: Source, entry: Entry) -> dict[str, str]:
    path = source.run.plan_path(None if source.is_first(entry) else entry["key"])
    return Plan.load(path).formats if path.is_file() else {}


def compose_runs(pair: RunPair) -> RunsDocument:
    """Everything the comparison says.

    Raises:
        UserInputError: a file of a run is damaged.
        SiteMismatchError: a model has nothing in common in both runs.
    """
    first, second = pair.names
    models = tuple(_model(pair, key) for key in pair.entries)
    names = " and ".join(pair.entries)
    return RunsDocument(
        title=f"{names}: two runs compared",
        question=f"What changed between the first run ({first}) and the second ({second})?",
        runs=pair.names,
        warnings=_warnings(pair),
        models=models,
        method=(*_METHOD, ("Images", _images_words(pair))),
        commands=(_commands(pair.sources[0]), _commands(pair.sources[1])),
        files=_FILES,
        words=_WORDS,
    )


def _model(pair: RunPair, key: str) -> ModelPart:
    entry = pair.entries[key][0]
    changes, settings, formats = pair.changes(key), pair.settings(key), pair.formats(key)
    number = list(pair.entries).index(key)
    headline, *others = sentences_of(changes, settings, formats)
    return ModelPart(
        key=key,
        family="vision transformer" if entry["family"] == "vit" else "ConvNet",
        cards=tuple(cards_of(changes, formats)),
        headline=headline,
        verdict=tuple(others),
        chapters=(
            settings_chapter(settings, pair.names),
            *chapters_of(changes, formats, number, same_images=pair.same_images),
        ),
    )


def _warnings(pair: RunPair) -> tuple[str, ...]:
    found = []
    for name, source in zip(("first", "second"), pair.sources, strict=True):
        found += [f"The {name} run: {warning}" for warning in source.record.get("warnings", ())]
    return tuple(found)


def _images_words(pair: RunPair) -> str:
    counts = [source.record["data"]["evaluation"] for source in pair.sources]
    if not pair.same_images:
        return (
            f"{counts[0]} in the first run, {counts[1]} other ones in the second: intervals of "
            "changes are those of independent samples"
        )
    return (
        f"the same {counts[0]} in both runs, but results are kept as sums and not image by image: "
        "intervals of changes are those of independent samples. On the same images results go up "
        "and down together, so these intervals are rather too wide than too narrow"
    )


def _commands(source: Source) -> tuple[str, ...]:
    return tuple(shlex.join(command) for command in source.record.get("commands", ()))


_METHOD = (
    (
        "Change of divergence",
        "ratio of the second run's divergence to the first's, with the 95 % interval of the "
        "difference of logarithms by the method of Zou and Donner (2008): a ratio above 1 means "
        "more sensitive in the second run",
    ),
    (
        "Change of drop",
        "second minus first, percentage points, with the 95 % interval of the same method; of "
        "full-precision accuracies it is Newcombe's method 10 (1998)",
    ),
    (
        "Distinguishable",
        "many changes are looked at, and at 95 % one in twenty intervals excludes no change by "
        "chance. Levels are adjusted after Benjamini and Hochberg (1995) over all modules and "
        "formats of a model: about 5 % of the changes that are called distinguishable are expected "
        "to be false",
    ),
    (
        "Rank correlation",
        "Spearman's, of the modules' divergences in both runs; 95 % interval by Fisher's z (Bonett "
        "and Wright 2000)",
    ),
)

_FILES = (
    ("changes.csv", "every module and format: both values, their change, intervals and levels"),
    ("comparison.json", "everything in this comparison, as data"),
)

_WORDS = (
    ("divergence", "how far quantizing moves the class probabilities, in nats; 0 means unchanged"),
    ("drop", "full-precision minus quantized top-1 accuracy, percentage points"),
    ("module", "the part of a model that is quantized alone in one measurement"),
    ("plan", "the bits of every module of a model; plan.json of a run"),
)
