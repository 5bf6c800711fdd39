"""Of two measurements of one module the one on more images is shown, and lists rank by it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from report_fixture import make_run

from vitsense.compare.best_known import best_known, better_formats
from vitsense.report.chapters.additivity import additivity_chapter
from vitsense.report.chapters.causes import causes
from vitsense.report.compose import compose
from vitsense.report.formatters import short
from vitsense.report.section import Table
from vitsense.report.source import Source
from vitsense.runfolder import RunFolder

NAMES = ("vit",)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("known") / "run", 9, NAMES)


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(made.path, tmp_path / "run")
    found = RunFolder.open(tmp_path / "run")
    cells = found.table("sensitivity").assign(n=100, mode="adaptive")
    found.write_table("sensitivity", cells)
    found.write_table("groups", found.table("groups").iloc[:0])
    return found


def tables(run: RunFolder) -> list[pd.DataFrame]:
    return [run.table(name) for name in ("sensitivity", "modules", "groups", "causes")]


def group_of_one(run: RunFolder, module: str, kl: float, n: int) -> pd.DataFrame:
    """Groups in which one block is the module alone."""
    cells = run.table("sensitivity").query("module == @module and format == 'int4'")
    row = cells.assign(by="block", group="alone", members=1, params=1, n=n, kl=kl)
    row = row.assign(direction="one-at-a-time", kl_low=0.9 * kl, kl_high=1.1 * kl, drop=7.5)
    modules = run.table("modules")
    modules.loc[modules["module"] == module, "block"] = "alone"
    run.write_table("modules", modules)
    groups = pd.concat([run.table("groups"), row])[list(run.table("groups").columns)]
    run.write_table("groups", groups)
    return groups


def kl_of(frame: pd.DataFrame, module: str, form: str = "int4") -> float:
    return float(frame.query("module == @module and format == @form")["kl"].iloc[0])


def test_a_group_of_one_module_is_its_cell_on_more_images(run: RunFolder) -> None:
    name = str(run.table("modules")["module"].iloc[3])
    group_of_one(run, name, 9.0, 1000)
    found = best_known(*tables(run))
    assert kl_of(found, name) == 9.0
    assert found.query("kl == 9.0")["n"].tolist() == [1000]
    assert kl_of(found, name, "int8") == kl_of(run.table("sensitivity"), name, "int8")
    assert better_formats(run.table("sensitivity"), found) == {name: {"4 bits": 9.0}}


def test_fewer_images_change_nothing(run: RunFolder) -> None:
    name = str(run.table("modules")["module"].iloc[3])
    group_of_one(run, name, 9.0, 100)
    rated = run.table("sensitivity")
    pd.testing.assert_frame_equal(best_known(*tables(run)), rated)


def test_what_was_measured_beside_remedies_replaces_an_estimate(run: RunFolder) -> None:
    cells = run.table("sensitivity").assign(status="estimated")
    name = str(cells["module"].iloc[0])
    cause = {"model": "vit", "module": name, "bits": 4, "format": "int4", "n_before": 200.0}
    for column in ("kl", "drop", "agreement"):
        for end, value in (("", 0.5), ("_low", 0.4), ("_high", 0.6)):
            cause[f"{column}_before{end}"] = value
    causes = pd.DataFrame([cause], columns=list(run.table("causes").columns))
    found = best_known(cells, run.table("modules"), run.table("groups"), causes)
    (row,) = found.query("status == 'measured'").to_dict("records")
    assert (row["module"], row["format"], row["kl"], row["drop_low"]) == (name, "int4", 0.5, 0.4)
    assert row["n"] == 200
    assert row["distinguishable"] is True or bool(row["distinguishable"])


def test_causes_of_an_older_run_are_read_without_them(run: RunFolder) -> None:
    path = run.path / "causes.csv"
    frame = pd.read_csv(path) if path.is_file() else run.table("causes")
    kept = [c for c in frame.columns if not c.endswith(("before_low", "before_high", "n_before"))]
    frame[kept].drop(columns="agreement_before", errors="ignore").to_csv(path, index=False)
    assert run.table("causes")["n_before"].isna().all()


def test_every_list_of_the_report_takes_the_better_number(run: RunFolder, made: RunFolder) -> None:
    run.write_table("groups", made.table("groups"))
    name = str(run.table("modules")["module"].iloc[3])
    group_of_one(run, name, 9.0, 1000)
    assert kl_of(Source(run).table("sensitivity"), name) == 9.0
    (model,) = compose(run).models
    row = model.rows[model.worst[0]]
    assert row.name == name
    assert next(cell for cell in row.cells if cell.bits == 4).detail.endswith(", 1000 images")
    assert row.more.endswith("; chosen before 4 bits were measured on all images: 9.0 nats")
    assert any(line.startswith(f"{name} alone causes") for line in model.verdict)


def test_sums_and_method_say_where_the_table_shows_other_numbers(
    run: RunFolder,
) -> None:
    def sums_of() -> str:
        section = additivity_chapter(Source(run), "vit")
        assert section is not None
        return next(block.reading for block in section.blocks if isinstance(block, Table))

    assert "were measured on more images since" not in sums_of()
    name = str(run.table("modules")["module"].iloc[3])
    group_of_one(run, name, 9.0, 1000)
    assert "1 of them was measured on more images since" in sums_of()
    total = best_known(*tables(run)).query("format == 'int4'")["kl"].sum()
    assert f"4 bits everywhere {short(total)} nats" in sums_of()


def test_what_an_older_run_measured_beside_remedies_is_not_promised_in_the_table(
    run: RunFolder,
) -> None:
    row = dict.fromkeys(run.table("causes").columns)
    name = str(run.table("modules")["module"].iloc[0])
    row |= {"model": "vit", "module": name, "site": f"{name}:input", "bits": 4, "format": "int4"}
    row |= {"cause": "heavy tail", "value": 9.0, "detail": "", "remedy": "powers of two"}
    row |= {"kl_before": 0.2, "kl_after": 0.1, "kl_after_low": 0.1, "kl_after_high": 0.1}
    run.write_table("causes", pd.DataFrame([row]).astype(run.table("causes").dtypes))
    method = dict(compose(run).method)
    if "shows and is ranked by" in method["Measurement"]:
        assert "had remedies tried" not in method["Measurement"]
    section = causes(Source(run), "vit")
    assert section is not None
    (tried, *_) = (block for block in section.blocks if isinstance(block, Table))
    assert "kept no interval of it" in tried.reading
