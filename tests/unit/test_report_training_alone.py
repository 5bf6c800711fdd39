"""Trainings that lie in no run, and ablations: a page of their own, or a chapter of the run's."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import html5lib
import pandas as pd
import pytest
from pypdf import PdfReader
from report_fixture import make_run
from training_record import accuracy, add_training

from vitsense import cli
from vitsense.report import compose, write_report, write_training
from vitsense.report.chapters.ablation import ablation, finding
from vitsense.report.section import Caution, Section, Table, Words
from vitsense.report.source import Source
from vitsense.runfolder import RunFolder

INF = float("inf")
NAN = float("nan")


def _row(variant: str, gap: float = NAN, half: float = 1.0, nats: float = NAN) -> dict[str, Any]:
    """A variant that is ``gap`` points and ``nats`` from the recipe, with intervals."""
    row: dict[str, Any] = {"variant": variant, "seeds": 3, "best": 81.0, "seconds": 12.3}
    row |= {"last": 80.0, "last_low": 79.0, "last_high": 81.0}
    row |= {"kl": 0.5, "kl_low": 0.4, "kl_high": 0.6}
    row |= {"against_full": gap, "against_low": gap - half, "against_high": gap + half}
    ends = {"kl_against_low": nats - 0.01, "kl_against_high": nats + 0.01}
    return row | {"kl_against_full": nats} | ends


def _add_ablation(run: Path, digest: str, rows: list[dict[str, Any]]) -> Path:
    where = run / "qat" / "parts"
    made = add_training(run, digest, **_WHOLE)
    (where / "full-seed0").mkdir(parents=True)
    made.path.rename(where / "full-seed0" / "x")
    (where / "full-seed0" / "x" / "qat.json").rename(where / "full-seed0" / "qat.json")
    pd.DataFrame(rows).to_csv(where / "ablation.csv", index=False)
    return where


_WHOLE = {
    "plan": {"budget": "avg-bits=4", "bits": {"a": 4}, "cost": None, "predicted": None},
    "evaluation": {"spec": "generated", "images": 100, "labelled": True},
    "origin": {"name": "zoo/<b>", "checkpoint": None},
    "provenance": {"machine": {"machine": "x86_64"}, "versions": {"torch": "2"}},
    "warnings": ["Look <out>."],
    "notes": ["Look <out>.", "A note."],
    "worth": {"kind": "worse", "text": "Training made it worse.", "advice": "Lower --lr."},
    "commands": [["vitsense", "qat", "--out", "a b"]],
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", 6)


def _digest(run: RunFolder) -> str:
    return str(run.read_run()["models"][0]["weights_digest"])


@pytest.fixture
def alone(tmp_path: Path, run: RunFolder) -> Path:
    """A training of the run's weights that lies elsewhere."""
    model = {"key": "m<b>", "weights_digest": _digest(run)}
    made = add_training(tmp_path / "elsewhere", _digest(run), "mine", **_WHOLE, model=model)
    return made.path.rename(tmp_path / "mine")


def test_an_ablation_names_what_can_be_told_from_the_recipe() -> None:
    full, level = _row("full"), _row("lsq+", 0.4, nats=0.001)
    assert finding([full, level]) == "No variant can be told from the full recipe"
    assert finding([full, level, _row("lsq", -6.94, nats=0.2)]) == (
        "Differs from the full recipe: lsq (\u22126.9 points); the others cannot be told from it"
    )
    assert finding([full, _row("ofq", 0.4, nats=-0.05)]) == (
        "In accuracy no variant can be told from the full recipe; in divergence ofq "
        "(\u22120.050 nats) can"
    )
    assert finding([full, _row("lsq", -9.0, half=INF)]).startswith("One seed")
    assert finding([_row("lsq")]) == "1 variant trained with one budget"


def test_an_ablation_is_a_chapter_of_its_model(run: RunFolder) -> None:
    source = Source(run)
    assert ablation(source, source.keys[0]) is None
    _add_ablation(run.path, _digest(run), [_row("full"), _row("without regularizer", 2.5)])
    source = Source(run)
    assert source.trainings == ()  # those of an ablation are in its table
    found = ablation(source, source.keys[0])
    assert isinstance(found, Section)
    words, table = found.blocks
    assert isinstance(words, Words)
    assert words.text == (
        "parts: Budget of every training: 20 steps of 64 crops, 320 training images (generated), "
        "100 evaluation images. Full precision 95.0 % top-1; quantized, not trained 72.0 %."
    )
    assert isinstance(table, Table)
    assert table.marked == (0,)
    assert dict(zip(table.head, table.rows[1], strict=True))["Against full (points)"] == (
        "+2.5 (1.5 to 3.5)"
    )
    assert found in compose(run).models[0].chapters
    add_training(run.path / "more", _digest(run), "lsq+-seed1").path.rename(
        run.path / "qat" / "parts" / "lsq+-seed1"
    )
    again = ablation(Source(run), source.keys[0])
    assert again is not None
    assert again.blocks[2] == Caution(texts=("Not finished, and not in the table: lsq+.",))


def test_a_cut_table_is_named_with_what_writes_it_again(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    where = _add_ablation(run.path, _digest(run), [{"variant": "full"}])
    assert cli.run(["report", str(run.path)]) == 2
    said = capsys.readouterr().err
    assert f"{where / 'ablation.csv'} has no column seeds" in said
    assert "--ablate writes it again" in said


def test_a_training_elsewhere_joins_the_report_of_its_run(run: RunFolder, alone: Path) -> None:
    assert not [c for c in compose(run).models[0].chapters if c.key.startswith("training")]
    out = run.path.parent / "out"
    write_report(run, out, trainings=(alone, alone), html=False, pdf=False)
    said = json.loads((out / "report.json").read_text())
    (chapter,) = (c for c in said["models"][0]["chapters"] if c["key"].startswith("training"))
    table = next(b for b in chapter["blocks"] if b["kind"] == "table")
    assert len(table["rows"]) == 1  # named twice, shown once


def test_a_training_alone_has_a_page_of_its_own(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    formats = [f"--format={name}" for name in ("html", "pdf", "md")]
    assert cli.run(["report", str(alone), *formats]) == 0
    written = [Path(line).name for line in capsys.readouterr().out.split()]
    assert written == ["training.json", "training.html", "training.pdf", "training.md"]
    page = html5lib.parse((alone / "training.html").read_bytes(), namespaceHTMLElements=False)
    shown = " ".join("".join(page.find("body").itertext()).split())
    reader = PdfReader(io.BytesIO((alone / "training.pdf").read_bytes()))
    parts = "".join(part.extract_text() for part in reader.pages).replace("\u200b", "")
    printed = " ".join(parts.split())
    summary = (alone / "training.md").read_text().replace("\\", "")
    for text in (shown, printed, summary):
        assert "Training made it worse." in text
        assert "Lower --lr." in text
        assert text.count("Look <out>.") == 1
        bare = text.replace("**", "").replace(" | ", "").replace(" ", "")
        assert "90.0%88.0to92.0,100images" in bare
    assert "vitsense qat --out 'a b'" in shown
    assert "zoo/<b>" in shown
    assert (alone / "training.html").read_bytes() == (
        write_training(alone, alone / "again", pdf=False)[1].read_bytes()
    )


def test_a_training_in_a_run_means_its_run(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    made = add_training(run.path, _digest(run))
    assert cli.run(["report", str(made.path), "--format", "md"]) == 0
    assert str(run.path / "report.md") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("RUN", "--training", "nowhere"), 3, "nowhere is not the folder of a training"),
        (("RUN", "--training", "STOPPED"), 2, "is not finished (interrupted)"),
        (("RUN", "--training", "OTHER"), 2, "trained m2 with the weights other"),
        (("RUN", "RUN", "--training", "MINE"), 2, "for the report of one run"),
        (("MINE", "--fail-if-drop", "1"), 2, "--fail-if-drop is for the report of a run"),
        (("MINE", "--training", "MINE"), 2, "vitsense report RUN --training"),
    ],
)
def test_a_wrong_call_says_what_to_do(
    run: RunFolder,
    alone: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    folder = alone.parent / "more"
    model = {"key": "m2", "weights_digest": "other"}
    places = {
        "RUN": run.path,
        "MINE": alone,
        "STOPPED": add_training(folder, _digest(run), "stopped", status="interrupted").path,
        "OTHER": add_training(folder, "other", "other", model=model, last=accuracy(1, 1)).path,
    }
    assert cli.run(["report", *(str(places.get(word, word)) for word in words)]) == code
    assert message in capsys.readouterr().err
