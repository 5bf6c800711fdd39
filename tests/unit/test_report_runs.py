"""``vitsense report RUN SECOND``: what changed, alike in every file; what cannot be compared."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import html5lib
import pytest
from pypdf import PdfReader
from report_fixture import HOSTILE, make_run
from scipy.stats import false_discovery_control, spearmanr

from vitsense import cli
from vitsense.compare.run_settings import Kind, differing
from vitsense.errors import SiteMismatchError, UserInputError
from vitsense.plan.plan import Plan
from vitsense.report import write_comparison
from vitsense.report.compose_runs import RunPair, compose_runs
from vitsense.runfolder import RunFolder

KEY = "vit_made_up"
WORSE = 4.0
"""Times as much divergence in the second run, of some modules."""


def changed(first: RunFolder, path: Path, modules: list[str], **settings: Any) -> RunFolder:
    """A copy of a run in which some modules diverge more, with other settings."""
    shutil.copytree(first.path, path)
    run = RunFolder.open(path)
    table = run.table("sensitivity")
    chosen = table["module"].isin(modules)
    for column in ("kl", "kl_low", "kl_high"):
        table.loc[chosen, column] *= WORSE
    run.write_table("sensitivity", table)
    record = run.read_run()
    record["settings"] |= settings
    record.pop("schema")
    run.write_run(record)
    return run


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("first") / "base", 12, [KEY], hostile=True)


@pytest.fixture(scope="module")
def moved(first: RunFolder) -> list[str]:
    """The modules that will change, one of them with a hostile name."""
    names = list(first.table("modules")["module"])
    return [names[0], names[9], names[11]]


@pytest.fixture(scope="module")
def second(
    first: RunFolder, moved: list[str], tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    run = changed(first, tmp_path_factory.mktemp("second") / "trained", moved, seed=11)
    record = run.read_run()
    record["models"][0]["weights_digest"] = "fedcba9876543210"
    record.pop("schema")
    run.write_run(record)
    plan = Plan.load(run.plan_path())
    bits = json.loads(run.plan_path().read_text())
    bits["modules"][3]["bits"] = 2
    bits["modules"][3] |= {"weight": None, "activation": "uint2"}
    assert plan.modules[3].bits != 2
    run.plan_path().write_text(json.dumps(bits))
    return run


@pytest.fixture(scope="module")
def written(first: RunFolder, second: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "out"
    write_comparison(first, second, out, markdown=True)
    return out


def test_exactly_the_modules_that_changed_are_found(
    first: RunFolder, second: RunFolder, moved: list[str]
) -> None:
    changes = RunPair(first, second).changes(KEY)
    certain = changes.certain
    assert set(certain["module"]) == set(moved)
    assert certain["ratio"].to_list() == pytest.approx([WORSE] * len(certain))
    assert len(certain) == 5 * len(moved)
    others = changes.cells[~changes.cells["certain"]]
    assert (others["ratio"] == 1).all()
    assert (others["p"] == 1).all()


def test_levels_are_adjusted_over_all_modules_and_formats(
    first: RunFolder, second: RunFolder
) -> None:
    cells = RunPair(first, second).changes(KEY).cells
    expected = false_discovery_control(cells["p"])
    assert cells["p_adjusted"].to_list() == pytest.approx(list(expected))
    assert (cells["certain"] == (expected <= 0.05)).all()


def test_the_order_of_modules_is_compared_in_every_format(
    first: RunFolder, second: RunFolder
) -> None:
    changes = RunPair(first, second).changes(KEY)
    tables = [run.table("sensitivity").query("format == 'int4'") for run in (first, second)]
    expected = spearmanr(*(table["kl"] for table in tables)).statistic
    found = {rank.format: rank for rank in changes.ranks}
    assert list(found) == ["int8", "int6", "int4", "int3", "int2"]
    assert found["int4"].correlation == pytest.approx(expected)
    assert found["int4"].low < expected < found["int4"].high


def test_what_differs_is_named_by_kind(first: RunFolder, second: RunFolder) -> None:
    records = [run.read_run() for run in (first, second)]
    found = differing(*records, (records[0]["models"][0], records[1]["models"][0]))
    assert {(s.kind, s.name, s.first, s.second) for s in found} == {
        (Kind.WEIGHTS, "digest of the weights", "0123456789abcdef", "fedcba9876543210"),
        (Kind.SETTINGS, "seed", str(records[0]["settings"]["seed"]), "11"),
    }


def test_the_finding_comes_first_and_says_how_many_are_false(
    first: RunFolder, second: RunFolder
) -> None:
    model = compose_runs(RunPair(first, second)).models[0]
    assert model.headline.startswith("3 of 12 modules changed distinguishably")
    assert "15 are towards more divergence" in model.headline
    assert "of which about 0.8 are expected to be false" in model.verdict[0]
    assert "weights and settings" in model.verdict[1]
    assert "differ in 1 of 12 modules" in model.verdict[3]


def test_an_equal_run_shows_no_change(first: RunFolder, tmp_path: Path) -> None:
    again = changed(first, tmp_path / "again", [])
    model = compose_runs(RunPair(first, again)).models[0]
    assert model.headline.startswith("No module's sensitivity changed distinguishably")
    assert "the same in both runs" in model.verdict[1]


def test_page_pdf_summary_and_data_say_the_same(
    written: Path, first: RunFolder, second: RunFolder
) -> None:
    document = json.loads((written / "comparison.json").read_text())
    assert document["schema"] == "vitsense.comparison/1"
    page = html5lib.parse((written / "comparison.html").read_text(), namespaceHTMLElements=False)
    shown = re.sub(r"\s+", "", "".join(page.itertext()))
    pages = PdfReader(written / "comparison.pdf").pages
    printed = re.sub(r"[\s\u200b]+", "", "".join(page.extract_text() for page in pages))
    summary = re.sub(r"[\s\\]+", "", (written / "comparison.md").read_text())
    model = document["models"][0]
    said = [card[k] for card in model["cards"] for k in ("value", "detail")]
    said += [model["headline"], *model["verdict"]]
    cells = [c["text"] for r in model["chapters"][1]["data"]["rows"] for c in r["cells"]]
    for words in (re.sub(r"\s+", "", text) for text in said):
        assert words in shown
        assert words in summary
        # a running head may stand inside a sentence of the PDF
        assert words in printed or words[:40] in printed
    assert all(cell in shown and cell in printed for cell in cells)


def test_the_table_for_others_holds_every_change(
    written: Path, first: RunFolder, second: RunFolder
) -> None:
    rows = list(csv.DictReader(io.StringIO((written / "changes.csv").read_text())))
    cells = RunPair(first, second).changes(KEY).cells
    assert [(r["module"], r["format"]) for r in rows] == list(
        zip(cells["module"], cells["format"], strict=True)
    )
    assert [float(r["ratio"]) for r in rows] == pytest.approx(cells["ratio"].to_list())
    assert {r["model"] for r in rows} == {KEY}


def test_hostile_names_are_text(written: Path, tmp_path: Path) -> None:
    parser = html5lib.HTMLParser(strict=False, namespaceHTMLElements=False)
    page = parser.parse((written / "comparison.html").read_text())
    assert parser.errors == []
    names = ["".join(th.itertext()) for th in page.iterfind(".//table[@id='ratios-0']/tbody/tr/th")]
    assert names[: len(HOSTILE)] == list(HOSTILE)
    assert page.findall(".//img") == []
    ids = [node.get("id") for node in page.iter() if node.get("id")]
    assert len(ids) == len(set(ids))


def test_equal_input_gives_equal_bytes(
    written: Path, first: RunFolder, second: RunFolder, tmp_path: Path
) -> None:
    again = {path.name: path for path in write_comparison(first, second, tmp_path / "again")}
    assert set(again) == {"comparison.json", "comparison.html", "comparison.pdf", "changes.csv"}
    for name, path in again.items():
        assert path.read_bytes() == (written / name).read_bytes()


def test_without_labels_agreement_takes_the_drops_place(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", 8, [KEY], labelled=False)
    other = changed(run, tmp_path / "two", [])
    document = compose_runs(RunPair(run, other))
    assert document.models[0].cards[0].label == "Sensitivities that changed"


def test_formats_that_one_run_lacks_are_left_out_and_said(first: RunFolder, tmp_path: Path) -> None:
    other = changed(first, tmp_path / "other", [])
    table = other.table("sensitivity")
    table.loc[table["format"] == "int2", "status"] = "estimated"
    other.write_table("sensitivity", table[table["format"] != "int8"])
    changes = RunPair(first, other).changes(KEY)
    assert set(changes.cells["format"]) == {"int6", "int4", "int3"}
    assert changes.skipped == {"measured in one run, estimated in the other": 12}


def outcome(*arguments: str | Path, capsys: Any) -> tuple[int, str]:
    code = cli.run(["report", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_the_command_says_where_it_wrote_and_leaves_the_runs_alone(
    first: RunFolder, second: RunFolder, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    before = [sorted(p.name for p in run.path.iterdir()) for run in (first, second)]
    code, said = outcome(first.path, second.path, "--format", "md", capsys=capsys)
    folder = Path("vitsense-runs/comparisons/base-to-trained")
    names = ("comparison.json", "comparison.md", "changes.csv")
    assert (code, said.split()) == (0, [str(folder / name) for name in names])
    assert [sorted(p.name for p in run.path.iterdir()) for run in (first, second)] == before


def test_mistakes_are_named_with_the_next_step(
    first: RunFolder, second: RunFolder, tmp_path: Path, capsys: Any
) -> None:
    other = make_run(tmp_path / "other", 8, ["resnet_made_up"])
    code, said = outcome(first.path, other.path, capsys=capsys)
    assert (code, "different models" in said) == (2, True)
    assert f"vitsense analyze --model {KEY} --compare resnet_made_up" in said
    code, said = outcome(first.path, first.path, capsys=capsys)
    assert (code, "was given twice" in said) == (2, True)
    code, said = outcome(first.path, second.path, other.path, capsys=capsys)
    assert (code, "3 runs were given" in said) == (2, True)
    code, said = outcome(first.path, "--model", KEY, capsys=capsys)
    assert (code, "--model is for a comparison" in said) == (2, True)
    code, said = outcome(first.path, second.path, "--model", "vitt", capsys=capsys)
    assert (code, "'vitt', which is in neither run" in said) == (2, True)
    code, said = outcome(first.path, tmp_path / "nothing", capsys=capsys)
    assert (code, "is not a run folder" in said) == (3, True)


def test_a_run_that_is_not_finished_is_refused(first: RunFolder, tmp_path: Path) -> None:
    half = make_run(tmp_path / "half", 8, [KEY], status="interrupted")
    with pytest.raises(UserInputError, match=r"not finished \(interrupted\).*analyze --out"):
        RunPair(first, half)


def test_runs_without_a_common_module_are_refused(first: RunFolder, tmp_path: Path) -> None:
    other = changed(first, tmp_path / "renamed", [])
    for name in ("modules", "sensitivity"):
        table = other.table(name)
        table["module"] = "other." + table["module"]
        other.write_table(name, table)
    with pytest.raises(SiteMismatchError, match="no module of vit_made_up in a common format"):
        compose_runs(RunPair(first, other))


def test_a_limit_holds_for_the_second_run(
    first: RunFolder, second: RunFolder, tmp_path: Path, capsys: Any
) -> None:
    arguments = (first.path, second.path, "--out", tmp_path / "o", "--format", "md")
    assert outcome(*arguments, "--fail-if-drop", "100", capsys=capsys)[0] == 0
    assert outcome(*arguments, "--fail-if-drop", "0.01", capsys=capsys)[0] == 1
    assert outcome(*arguments, "--fail-if-drop", "-1", capsys=capsys)[0] == 2
