"""From tables to the document: what is said, and that it agrees with the tables."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
import shlex
from pathlib import Path

import pytest
from report_fixture import make_run
from report_record import IMAGES, WIDTHS

from vitsense import cli
from vitsense.compare.plan_names import plan_name
from vitsense.decimals import MINUS
from vitsense.errors import InputMissingError, SchemaVersionError, UserInputError
from vitsense.report import compose
from vitsense.report.compose_model import LEVELS, WORST, heat_level
from vitsense.report.document import Document, ModelReport, Status
from vitsense.report.formatters import short, spelled
from vitsense.report.html import render_html
from vitsense.runfolder import RunFolder, json_text
from vitsense.verdict import judged


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("report") / "run", 20, unmeasured=True)


@pytest.fixture(scope="module")
def document(run: RunFolder) -> Document:
    return compose(run)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> ModelReport:
    folder = tmp_path_factory.mktemp("report") / "run"
    return compose(make_run(folder, 20, ["vit"], labelled=False)).models[0]


def altered(folder: Path, name: str, **changes: object) -> RunFolder:
    """A small run with columns of one table overwritten."""
    run = make_run(folder, 8, ["vit"])
    run.write_table(name, run.table(name).assign(**changes))
    return run


def test_every_module_and_width_is_in_the_table(run: RunFolder, document: Document) -> None:
    modules = run.table("modules")
    for model in document.models:
        mine = modules[modules["model"] == model.key]
        assert [row.name for row in model.rows] == list(mine["module"])
        assert tuple(bits for _, bits in model.columns) == WIDTHS
        assert [label for label, _ in model.columns] == [str(width) for width in WIDTHS]
        assert all(tuple(c.bits for c in row.cells) == WIDTHS for row in model.rows)


def test_a_cell_shows_the_drop_and_both_intervals(run: RunFolder, document: Document) -> None:
    table = run.table("sensitivity")
    row = table[(table["bits"] == 3) & (table["drop"] > 5)].iloc[0]
    model = next(m for m in document.models if m.key == row["model"])
    cell = next(r for r in model.rows if r.name == row["module"]).cells[WIDTHS.index(3)]
    assert cell.text == f"{row['drop']:.1f}"
    assert cell.detail == f"{row['drop']:.2f} ({row['drop_low']:.2f} to {row['drop_high']:.2f})"
    shown = [float(x) for x in re.findall(r"[\d.]+", cell.nats)]
    assert shown == pytest.approx([row["kl"], row["kl_low"], row["kl_high"]], rel=0.06)
    assert cell.sort == pytest.approx(row["kl"], rel=5e-3)  # three digits
    assert not cell.noise


def test_noise_is_where_the_interval_holds_zero(run: RunFolder, document: Document) -> None:
    table = run.table("sensitivity")
    table = table[table["status"] == "measured"]
    holds_zero = (table["drop_low"] <= 0) & (table["drop_high"] >= 0)
    expected = dict(
        zip(
            zip(table["model"], table["module"], table["bits"], strict=True),
            holds_zero,
            strict=True,
        )
    )
    shown = {
        (model.key, row.name, cell.bits): cell.noise
        for model in document.models
        for row in model.rows
        for cell in row.cells
        if cell.level or cell.sort >= 0
    }
    assert shown == expected
    assert set(shown.values()) == {True, False}


def test_a_certain_gain_is_not_noise(tmp_path: Path) -> None:
    gain = {"drop": -3.0, "drop_low": -4.0, "drop_high": -2.0}
    model = compose(altered(tmp_path / "run", "sensitivity", **gain)).models[0]
    cells = [cell for row in model.rows for cell in row.cells]
    assert {cell.text for cell in cells} == {"\u22123.0"}
    assert not any(cell.noise for cell in cells)


def test_a_cell_that_was_not_measured_says_why(document: Document) -> None:
    cell = document.models[-1].rows[-1].cells[-1]
    assert (cell.text, cell.sort, cell.noise) == ("\u2013", -1, False)
    assert cell.detail == "not measured: the quantized model's logits are not finite"


def test_bits_and_reasons_are_those_of_the_plan(run: RunFolder, document: Document) -> None:
    for model, path in zip(
        document.models, (run.plan_path(), run.plan_path("resnet_made_up")), strict=True
    ):
        plan = json.loads(path.read_text())
        assert model.plan_json == path.read_text()
        assert [(r.name, r.bits, r.pinned, r.reason) for r in model.rows] == [
            (m["name"], m["bits"], m["pinned"], spelled(m["reason"])) for m in plan["modules"]
        ]


def test_a_plan_that_was_solved_again_is_not_taken_for_the_measured_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 8, ["vit"])
    assert not any("made again" in line for line in compose(run).models[0].verdict)
    plan = json.loads(run.plan_path().read_text())
    plan |= {"budget": "avg-bits=5", "measured": None}
    run.plan_path().write_text(json.dumps(plan))
    model = compose(run).models[0]
    assert "(avg-bits=5) and not measured" in model.verdict[-1]
    shown = model.what_if
    assert shown is not None
    assert (shown.called, shown.plan.measured) == ("plan of plan.json", "\u2013")
    # what the run measured is then one of the others
    others = {row.name for row in shown.aside} | {point.plan for point in model.front}
    assert plan_name("recommended") in others - {shown.plan.name}


def test_the_table_of_whole_plans_says_which_hold(run: RunFolder, document: Document) -> None:
    joint = run.table("joint")
    for model in document.models:
        mine = joint[joint["model"] == model.key]
        known = {plan_name(name): found.value for name, found in judged(mine).items()}
        for row in model.plans:
            never = row.name.startswith("random")  # was measured to learn from
            assert row.judged == ("\u2013" if never else known[row.name])


def test_a_solved_plan_of_equal_bits_is_listed_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 8, ["vit"])
    joint = folder.table("joint")
    equal, solved = (joint["plan"] == name for name in ("uniform-3", "pareto-3"))
    for name in joint.columns.drop(["model", "plan"]):
        joint.loc[solved, name] = joint.loc[equal, name].item()
    folder.write_table("joint", joint)
    names = [row.name for row in compose(folder).models[0].plans]
    assert "3 bits everywhere" in names
    assert "mixed, about 3 bits" not in names
    assert "mixed, about 5 bits" in names


def test_the_front_keeps_every_point_and_the_order_of_modules(
    run: RunFolder, document: Document
) -> None:
    bits, model = run.table("pareto_bits"), document.models[0]
    mine = bits[(bits["model"] == model.key) & (bits["point"] == 5)].set_index("module")["bits"]
    assert model.front[5].bits == tuple(mine[row.name] for row in model.rows)
    assert len(model.front) == len(run.table("pareto").query("model == @model.key"))


def test_the_average_bits_of_a_front_point_admit_it_as_a_budget(
    run: RunFolder, document: Document
) -> None:
    """Rounded down, ``vitsense plan --budget avg-bits=`` would find another plan."""
    table = run.table("pareto")
    exact = table[table["model"] == document.models[0].key]["avg_bits"]
    for shown, value in zip(document.models[0].front, exact, strict=True):
        assert value - 1e-9 <= shown.avg_bits <= value + 1e-3


def test_a_point_of_the_front_is_marked_when_a_plan_of_its_very_bits_was_measured(
    run: RunFolder, document: Document
) -> None:
    joint, bits = run.table("joint").set_index(["model", "plan"]), run.table("pareto_bits")
    for model in document.models:
        mine = bits[bits["model"] == model.key]
        for point in model.front:
            widths = set(mine[mine["point"] == point.number]["bits"])
            if len(widths) == 1:
                measured = joint.loc[(model.key, f"uniform-{next(iter(widths))}")]
                assert point.measured.startswith(f"{measured['drop']:.1f} (".replace("-", MINUS))
        assert model.front[-1].plan == "8 bits everywhere"  # the widest plan is the right end


def test_every_measured_plan_that_may_be_taken_is_on_the_line_or_beside_it(
    run: RunFolder, document: Document
) -> None:
    for model in document.models:
        shown = model.what_if
        assert shown is not None
        joint = run.table("joint").query("model == @model.key")
        wanted = {plan_name(p) for p in joint["plan"] if not p.startswith(("random-", "only-"))}
        beside = {row.name for row in shown.aside}
        on_line = {point.plan for point in model.front} - {""}
        assert beside | on_line | {shown.plan.name} == wanted
        assert not beside & on_line
        before = [point for point in model.front if point.avg_bits < float(shown.plan.bits)]
        assert abs(shown.place - len(before)) <= 1


def test_commands_of_the_slider_name_the_folder_of_the_run(tmp_path: Path) -> None:
    made = make_run(tmp_path / "vitsense-runs" / "a run", 8, ["vit", "net"])
    first, second = (model.what_if for model in compose(made).models)
    assert first is not None
    assert second is not None
    assert first.command == "vitsense plan 'vitsense-runs/a run' --point"
    assert second.command == "vitsense plan 'vitsense-runs/a run' --model net --point"
    assert (first.file, second.file) == ("plan.json", "plan-net.json")


def test_cards_carry_number_interval_symbol_and_word(run: RunFolder, document: Document) -> None:
    joint = run.table("joint").query("plan == 'uniform-4'").iloc[0]
    cards = {card.label: card for card in document.models[0].cards}
    assert cards["Full precision, top-1"].value == "91.2 %"
    card = cards["4 bits everywhere: lost"]
    assert card.value == f"{joint['drop']:.1f} points"
    assert f"{joint['drop_low']:.1f} to {joint['drop_high']:.1f}" in card.detail
    assert (card.status, card.word) == (Status.BAD, "breaks")
    assert any(label.startswith("Best within the budget, ") for label in cards)
    assert len(cards) == 5


def test_the_plan_to_deploy_is_byte_for_byte_what_its_command_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run", 9)
    document = compose(run)
    page = render_html(document, {})
    for number, model in enumerate(document.models):
        assert model.deployed is not None
        assert model.deployed.plan in {row.name for row in model.plans}
        assert model.verdict[0].endswith(model.deployed.command)
        command = [str(run.path) if w == "RUN" else w for w in shlex.split(model.deployed.command)]
        assert cli.run([*command[1:], "-q"]) == 0
        assert (tmp_path / model.deployed.file).read_text(encoding="utf-8") == model.deployed.json
        kept = {m["name"]: str(m["bits"]) for m in json.loads(model.deployed.json)["modules"]}
        assert dict(model.deployed.bits) == kept
        packed = base64.b64encode(gzip.compress(model.deployed.json.encode(), mtime=0)).decode()
        assert page.count(packed) == 1
        assert f"id=deploy-{number}>" in page


def test_a_recommended_plan_that_holds_is_the_file_of_the_run(tmp_path: Path) -> None:
    run = altered(tmp_path / "run", "joint", drop=0.1, drop_low=-0.5, drop_high=0.7)
    joint = run.table("joint")
    run.write_table("joint", joint[joint["plan"].isin(["uniform-8", "recommended"])])
    model = compose(run).models[0]
    assert model.deployed is not None
    assert (model.deployed.file, model.deployed.json) == ("plan.json", "")
    assert model.verdict[0].endswith("It is plan.json in the folder of this run.")


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-0.5, 0.9, "holds"), (0.5, 1.5, "uncertain"), (1.1, 3.0, "breaks")],
)
def test_the_word_of_a_card_follows_its_interval(tmp_path, low, high, word) -> None:
    changes = {"drop": (low + high) / 2, "drop_low": low, "drop_high": high}
    model = compose(altered(tmp_path / "run", "joint", **changes)).models[0]
    assert {card.word for card in model.cards} == {"", word}


def test_without_labels_agreement_takes_the_place_of_the_drop(unlabelled: ModelReport) -> None:
    assert unlabelled.loss == "loss of agreement"
    assert unlabelled.loss_unit == "% of images"
    assert not any("top-1" in card.label for card in unlabelled.cards)
    values = [card.value for card in unlabelled.cards if card.word]
    assert values
    assert all(value.endswith("% agree") for value in values)
    assert any("keeps the class of" in line for line in unlabelled.verdict)


def test_without_labels_full_agreement_is_within_noise(unlabelled: ModelReport) -> None:
    cells = [cell for row in unlabelled.rows for cell in row.cells]
    assert all(cell.noise for cell in cells if cell.text == "0.0" and "0.00 (0.00" in cell.detail)
    assert any(cell.noise for cell in cells)


def test_models_with_and_without_labels_are_named_for_what_they_show(tmp_path: Path) -> None:
    models = compose(make_run(tmp_path / "run", 9, labelled=[True, False])).models
    assert [model.loss for model in models] == ["drop of top-1", "loss of agreement"]


def test_where_no_single_loss_is_certain_cells_show_the_divergence(tmp_path: Path) -> None:
    run = altered(tmp_path / "run", "sensitivity", drop_low=-9.0, drop_high=9.0)
    model = compose(run).models[0]
    assert model.by_divergence
    cells = [cell for row in model.rows for cell in row.cells if cell.nats]
    assert cells
    assert all(cell.text == short(cell.sort) for cell in cells)
    assert not compose(make_run(tmp_path / "other", 8)).models[0].by_divergence
    page = render_html(compose(run), {})
    assert "Cells show the divergence from full precision (nats)" in page
    assert f">{cells[0].text}<" in page


def test_warnings_come_first_and_random_weights_before_all(tmp_path: Path) -> None:
    said = ("Only 10 evaluation images: intervals are wide.", "Random weights (m): mechanics only.")
    run = make_run(tmp_path / "run", 8, ["m"], warnings=said, status="interrupted")
    first, second, third = compose(run).warnings
    assert first == said[1]
    assert "not finished (interrupted)" in second
    assert third == said[0]


def test_findings_profiles_and_roles_cover_all_models(document: Document) -> None:
    assert document.bits == 4
    assert [p.model for p in document.profiles] == [m.key for m in document.models]
    assert all(len(v) == 20 for p in document.profiles for v in p.series.values())
    assert {row[0] for row in document.roles[1:]} == {m.key for m in document.models}
    assert any("attention (MHSA)" in head for head, _ in document.findings)
    assert any(" against " in head for head, _ in document.findings)
    unknown = [
        "cannot be told" in head or "not distinguishable" in head for head, _ in document.findings
    ]
    assert unknown[1:] == [k >= document.told for k in range(1, len(unknown))]


def test_shares_of_divergence_add_up_to_all_of_it(document: Document) -> None:
    column = document.roles[0].index("Share of divergence")
    for model in document.models:
        shares = [float(r[column].split()[0]) for r in document.roles[1:] if r[0] == model.key]
        # each is rounded to a tenth
        assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares) + 1e-9)


def test_the_worst_modules_are_named_in_order(document: Document) -> None:
    for model in document.models:
        costs = [row.cells[WIDTHS.index(4)].sort for row in model.rows]
        assert 0 < len(model.worst) <= WORST
        shown = [costs[k] for k in model.worst]
        assert shown == sorted(costs, reverse=True)[: len(shown)]


def test_report_json_holds_aggregates_only_and_is_plain(document: Document) -> None:
    text = json_text(document.to_json())
    back = json.loads(text)
    assert back["schema"] == "vitsense.report/1"
    assert len(back["models"]) == 2
    assert len(text) < 500_000


def test_method_says_how_to_do_it_again(document: Document) -> None:
    words = dict(document.method)
    assert str(IMAGES) in words["Images"]
    assert "disjoint" in words["Images"]
    assert words["Seed"] == "7"
    assert "fedcba9876543210" in words["Data"]
    assert "torch 2.9.0" in words["Versions"]
    assert document.commands == ("vitsense analyze --model vit_made_up --compare resnet_made_up",)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_one_to_four_models(tmp_path: Path, count: int) -> None:
    keys = [f"model{i}" for i in range(count)]
    document = compose(make_run(tmp_path / "run", 9, keys))
    assert [m.key for m in document.models] == keys


def test_a_model_of_one_module(tmp_path: Path) -> None:
    document = compose(make_run(tmp_path / "run", 1, ["tiny"]))
    assert len(document.models[0].rows) == 1


def test_a_run_without_measurements_says_what_to_do(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 8, ["vit"])
    (run.path / "sensitivity.csv").unlink()
    with pytest.raises(InputMissingError, match=r"no finished measurement.*vitsense analyze"):
        compose(run)


def test_a_model_whose_turn_has_not_come_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 8, ["vit", "net"], status="interrupted")
    for name in ("sensitivity", "joint", "pareto", "pareto_bits"):
        table = run.table(name)
        run.write_table(name, table[table["model"] == "vit"])
    document = compose(run)
    assert [m.key for m in document.models] == ["vit"]
    assert "not finished" in document.warnings[0]


def test_a_run_before_its_plan_has_no_recommendation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 8, ["vit"])
    for name in ("joint", "pareto", "pareto_bits"):
        (run.path / f"{name}.csv").unlink()
    run.plan_path().unlink()
    model = compose(run).models[0]
    assert model.what_if is None
    assert {row.bits for row in model.rows} == {0}
    assert model.front == ()


def test_a_damaged_table_or_plan_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 8, ["vit"])
    whole = (run.path / "joint.csv").read_text()
    (run.path / "joint.csv").write_text("model,plan\nvit,uniform-8\n")
    with pytest.raises(UserInputError, match=r"joint\.csv"):
        compose(run)
    (run.path / "joint.csv").write_text(whole)
    run.plan_path().write_text("{not json")
    with pytest.raises(UserInputError, match=r"plan\.json"):
        compose(run)


def test_a_run_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 8, ["vit"])
    path = run.path / "run.json"
    path.write_text(path.read_text().replace("vitsense.run/1", "vitsense.run/2"))
    with pytest.raises(SchemaVersionError, match="update vitsense"):
        compose(run)


def test_colour_levels_rise_with_divergence_and_are_bounded() -> None:
    values = [0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 3.0, 100.0]
    levels = [heat_level(v) for v in values]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, LEVELS)
    # one factor of ten is the same step everywhere on a logarithmic scale
    steps = {b - a for a, b in zip(levels[2:6], levels[3:7], strict=True)}
    assert max(steps) - min(steps) <= 1


def test_missing_statistics_leave_the_pictures_out_but_not_the_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 8, ["vit"])
    (run.path / "histograms.npz").unlink()
    model = compose(run).models[0]
    assert not any(t.picture for row in model.rows for t in row.sheet.tensors)
    run.write_table("statistics", run.table("statistics").iloc[:0])
    model = compose(run).models[0]
    assert {row.sheet.tensors for row in model.rows} == {()}
    assert len(model.rows) == 8


def test_parts_measured_alone_are_shown(tmp_path: Path) -> None:
    run = altered(tmp_path / "run", "sensitivity", part="weights")
    document = compose(run)
    assert len(document.models[0].rows) == 8
    assert all(not math.isnan(c.sort) for row in document.models[0].rows for c in row.cells)
