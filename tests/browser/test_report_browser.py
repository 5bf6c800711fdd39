"""The report in a real browser: offline, accessible, usable by keyboard, without scripts, in print.

Needs Chromium (``VITSENSE_CHROMIUM`` or ``/usr/bin/chromium``); skipped without it, but not in CI.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_fixture import HOSTILE, make_run
from training_record import several_trainings

from vitsense.plan.again import plan_at
from vitsense.report import compose, write_comparison, write_report
from vitsense.report.document import Document, ModelReport

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = os.environ.get("VITSENSE_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).is_file():
        reason = f"no Chromium at {CHROMIUM}: install it or set VITSENSE_CHROMIUM"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        # root in a container has no sandbox
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = make_run(
        tmp_path_factory.mktemp("browser") / "run",
        20,
        hostile=True,
        unmeasured=True,
        warnings=["Only 10 images."],
    )
    several_trainings(made)
    write_report(made, pdf=False)
    return made


@pytest.fixture(scope="module")
def document(run: Any) -> Document:
    return compose(run)


@pytest.fixture
def visit(browser: Any, run: Any) -> Iterator[Any]:
    """Open the report with options of a browser context; every problem is collected."""
    contexts = []

    def opened(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.problems = []
        page.requests = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda m: m.type == "error" and page.problems.append(m.text))
        page.on("dialog", lambda dialog: page.problems.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto((run.path / "report.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


def test_it_opens_offline_without_requests_or_errors(visit: Any) -> None:
    page = visit()
    assert [url.split(":")[0] for url in page.requests] == ["file"]
    assert page.problems == []


# every width and every theme once: a pass over the page takes axe many seconds
@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1280, "dark")])
def test_axe_finds_no_violation(visit: Any, theme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit(color_scheme=theme, viewport={"width": width, "height": 900}, bypass_csp=True)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]][:3]) for v in found] == []


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1440, 2560])
def test_nothing_is_wider_than_the_window(visit: Any, width: int) -> None:
    page = visit(viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_names_are_shown_and_do_nothing(visit: Any) -> None:
    page = visit()
    names = page.locator("#heat-0 tbody th").all_text_contents()
    assert names[: len(HOSTILE)] == list(HOSTILE)
    assert page.locator("img").count() == 0
    assert page.problems == []


def test_the_theme_follows_the_system_and_the_button(visit: Any) -> None:
    page = visit(color_scheme="dark")
    back = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(back) == "rgb(20, 23, 28)"
    page.get_by_role("button", name="Light").click()
    assert page.evaluate(back) == "rgb(255, 255, 255)"
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(back) == "rgb(20, 23, 28)"


def numbers(page: Any, column: int) -> list[float]:
    texts = page.locator(f"#heat-1 tbody tr td:nth-child({column})").all_text_contents()
    return [
        float(text.strip("()").replace("\u2212", "-").replace("\u2013", "nan")) for text in texts
    ]


def test_columns_sort_by_divergence_and_back(visit: Any, document: Document) -> None:
    page = visit()
    head = page.locator("#heat-1 thead th").last
    names = page.locator("#heat-1 tbody th")
    original = names.all_text_contents()
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    kl = {row.name: row.cells[-1].sort for row in document.models[1].rows}
    shown = [kl[name] for name in names.all_text_contents()]
    # two digits decide; what was not measured (-1) is last
    assert all(a >= 0.94 * b for a, b in zip(shown, shown[1:], strict=False))
    assert shown[-1] == -1
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    page.locator("#heat-1 thead th").first.get_by_role("button").click()
    assert names.all_text_contents() == original
    assert page.locator("#heat-1 [aria-sort]").count() == 1


def test_bits_sort_as_numbers(visit: Any) -> None:
    page = visit()
    page.locator("#heat-1 thead th").nth(3).get_by_role("button").click()
    bits = [int(t) for t in page.locator("#heat-1 .bits b").all_text_contents()]
    assert bits == sorted(bits, reverse=True)


def test_filtering_shows_matching_rows_and_their_number(visit: Any) -> None:
    page = visit()
    rows = page.locator("#heat-1 tbody tr")
    page.locator("#filter-1").fill("CONV2")
    shown = [rows.nth(i).is_visible() for i in range(rows.count())]
    expected = ["conv2" in name for name in page.locator("#heat-1 tbody th").all_text_contents()]
    assert shown == expected
    assert page.get_by_text(f"{sum(expected)} of {len(expected)}", exact=True).is_visible()
    page.locator("#filter-1").fill("")
    assert all(rows.nth(i).is_visible() for i in range(rows.count()))


def test_a_cell_tells_its_interval_to_pointer_and_keyboard(visit: Any, document: Document) -> None:
    page = visit()
    model = document.models[1]
    readout = page.locator("#model-1 .readout")
    page.locator("#heat-1 tbody tr").nth(10).locator("td").nth(5).hover()
    row = model.rows[10]
    cell = row.cells[2]
    drop = cell.detail.replace(")", ") points", 1)
    expected = f"{row.name} at {cell.bits} bits: {drop}, {cell.nats} nats"
    assert readout.inner_text().startswith(expected)
    page.locator("#heat-1 tbody th").first.focus()
    assert f"{model.rows[0].bits} bits. Plan: {model.rows[0].reason}" in readout.inner_text()
    for key in ("ArrowDown", *["ArrowRight"] * 4):
        page.keyboard.press(key)
    assert model.rows[1].cells[0].detail in readout.inner_text()


def test_a_module_opens_its_own_part_by_pointer_keyboard_and_address(
    visit: Any, document: Document
) -> None:
    page = visit()
    part = page.locator("#m1-7")
    assert not part.is_visible()
    page.locator("#r1-7 a").click()
    assert part.is_visible()
    assert page.url.endswith("#m1-7")
    assert page.evaluate("document.activeElement.id") == "m1-7"
    page.locator("#heat-1 tbody th").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#m1-1").is_visible()
    worst = document.models[0].rows[document.models[0].worst[1]]
    page.goto(page.url.partition("#")[0] + f"#m0-{worst.index}")
    page.reload()
    assert page.locator(f"#m0-{worst.index}").is_visible()
    pictures = page.locator(f"#m0-{worst.index} svg[role=img]")
    assert pictures.count() == len(worst.sheet.tensors)


def test_the_address_keeps_what_was_chosen(visit: Any, browser: Any) -> None:
    page = visit()
    page.locator("#heat-1 thead th").last.get_by_role("button").click()
    page.locator("#filter-1").fill("conv")
    page.locator("#group-1").select_option("block")
    page.locator("#slider-1").fill("5")
    page.locator("#theme").click()
    page.locator("#r1-13 a").click()
    other = browser.new_page()
    other.goto(page.url)
    see = (
        "[...document.querySelectorAll('#heat-1 tbody tr')].map(r => [r.hidden, r.textContent])",
        "document.getElementById('slider-1-out').textContent",
        "document.documentElement.dataset.theme",
        "document.querySelector('#heat-1 [aria-sort]').textContent",
    )
    assert [other.evaluate(s) for s in see] == [page.evaluate(s) for s in see]
    assert other.locator("#m1-13").is_visible()
    assert other.locator("#heat-1 tr.group").count() > 1
    other.close()


def test_rows_are_grouped_with_their_share_of_the_divergence(
    visit: Any, document: Document
) -> None:
    page = visit()
    page.locator("#group-0").select_option("role")
    model = document.models[0]
    heads = page.locator("#heat-0 tr.group")
    roles = list(dict.fromkeys(row.role for row in model.rows))
    assert [t.partition(":")[0] for t in heads.locator("th").all_text_contents()] == roles
    sums = [sum(max(r.cells[-1].sort, 0) for r in model.rows if r.role == role) for role in roles]
    shown = [int(t.split()[0]) for t in heads.locator("td:last-child").all_text_contents()]
    assert shown == pytest.approx([100 * s / sum(sums) for s in sums], abs=1)
    page.locator("#role-0").select_option(roles[1])
    assert [h.is_visible() for h in heads.all()] == [role == roles[1] for role in roles]
    names = page.locator("#heat-0 tbody tr:not(.group):not([hidden]) th").all_text_contents()
    assert names == [row.name for row in model.rows if row.role == roles[1]]


def test_the_table_can_be_taken_as_csv(visit: Any, document: Document, tmp_path: Path) -> None:
    page = visit(accept_downloads=True)
    path = downloaded(page, page.locator("#model-0 .csv").click, tmp_path)
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    model = document.models[0]
    cells = [(r, c) for r in model.rows for c in r.cells]
    assert [(r["module"], int(r["bits"])) for r in rows] == [(r.name, c.bits) for r, c in cells]
    for given, (_, cell) in zip(rows, cells, strict=True):
        if cell.nats:
            assert float(given["loss"]) == pytest.approx(
                float(cell.text.replace("\u2212", "-")), abs=0.06
            )
            assert float(given["nats"]) == pytest.approx(cell.sort, rel=0.06)
        else:
            assert (given["loss"], given["nats"]) == ("", "")


def test_the_keyboard_skips_rows_that_are_filtered_out(visit: Any) -> None:
    page = visit()
    page.locator("#filter-1").fill("conv2")
    first, second = (
        name for name in page.locator("#heat-1 tbody tr:not([hidden]) th").all_text_contents()[:2]
    )
    page.locator("#heat-1 tbody tr:not([hidden]) th").first.click()
    page.evaluate("document.querySelector('#heat-1 tbody tr:not([hidden]) th').tabIndex = 0")
    page.locator("#heat-1 tbody tr:not([hidden]) th").first.focus()
    page.keyboard.press("ArrowDown")
    focused = page.evaluate("document.activeElement.textContent")
    assert (first != second, focused) == (True, second)


def slide(page: Any, model: ModelReport, number: int, at: int) -> None:
    """Move the slider to a point of the front; the plan in force has a stop of its own."""
    place = model.what_if.place if model.what_if is not None else 0
    page.locator(f"#slider-{number}").fill(str(at + (at >= place)))


def test_the_slider_shows_the_plans_that_were_computed(visit: Any, document: Document) -> None:
    page = visit()
    model = document.models[1]
    bits = page.locator("#heat-1 .bits b")
    assert bits.all_text_contents() == [str(row.bits) for row in model.rows]
    for point in (0, 7, len(model.front) - 1):
        slide(page, model, 1, point)
        front = model.front[point]
        assert bits.all_text_contents() == [str(b) for b in front.bits]
        picked = page.locator("#heat-1 td.pick").count()
        assert picked == len(model.rows)
        words = page.locator("#slider-1-out").inner_text()
        assert words.startswith(f"Point {front.number}: {front.avg_bits:.2f} bits, ")
        assert f" {front.size_mb:.2f} MB, {front.bitops_g:.2f} " in words
        by = page.locator("#whatif-1 .by code").inner_text()
        assert by == (
            f"vitsense plan run --model {model.key} --point {front.number} "
            f"--out plan-{model.key}-point-{front.number}.json"
        )
    page.locator("#model-1 .reset").click()
    assert bits.all_text_contents() == [str(row.bits) for row in model.rows]


def test_the_plan_in_force_is_a_stop_of_the_line_with_its_numbers(
    visit: Any, document: Document
) -> None:
    page = visit()
    model, slider = document.models[0], page.locator("#slider-0")
    shown = model.what_if
    assert shown is not None
    out = page.locator("#slider-0-out")
    words = out.inner_text().replace("\u00a0", " ")
    plan = shown.plan
    assert words.startswith(
        f"The {shown.called}: {plan.bits} bits, {plan.size} MB, {plan.bitops} \u00d7 10\u2079 bit"
    )
    assert f"measured as a whole: {plan.measured} points" in words
    assert slider.input_value() == str(shown.place)
    mark = page.locator("#whatif-0 .marks b:not(.o)").bounding_box()
    line = slider.bounding_box()
    at = line["x"] + 8 + (line["width"] - 16) * shown.place / len(model.front)
    assert abs(mark["x"] + mark["width"] / 2 - at) < 2
    # by keyboard away from it, to its neighbour, and back to it
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert out.inner_text().startswith(f"Point {model.front[shown.place].number}: ")
    assert slider.get_attribute("aria-valuetext") == out.inner_text().removesuffix(".")
    assert page.url.endswith(f"plan0={shown.place}")
    page.keyboard.press("ArrowLeft")
    assert out.inner_text().replace("\u00a0", " ") == words
    assert "plan0" not in page.url
    assert page.locator("#whatif-0 .reset").get_attribute("aria-pressed") == "true"


def test_measured_plans_are_marked_and_one_press_away(visit: Any, document: Document) -> None:
    page = visit()
    model = document.models[0]
    shown = model.what_if
    assert shown is not None
    wanted = [p for p in model.front if p.plan not in ("", shown.plan.name)]
    jumps = page.locator("#whatif-0 .go")
    assert jumps.all_inner_texts() == [p.plan for p in wanted]
    assert page.locator("#whatif-0 .marks .o").count() == len(wanted)
    for jump, point in zip(jumps.all(), wanted, strict=True):
        jump.click()
        words = page.locator("#slider-0-out").inner_text().replace("\u00a0", " ")
        assert words.startswith(f"Point {point.number}: ")
        assert words.endswith(f"measured as a whole ({point.plan}): {point.measured} points.")
    beside = page.locator("#whatif-0 .aside li").all_inner_texts()
    assert [text.partition(":")[0] for text in beside] == [row.name for row in shown.aside]
    # an address that is followed within the page moves the slider as well
    page.evaluate("location.hash = 'whatif-0&plan0=2'")
    page.wait_for_function(
        "document.getElementById('slider-0-out').textContent.startsWith('Point 2:')"
    )


def downloaded(page: Any, click: Any, folder: Path) -> Path:
    with page.expect_download() as waiting:
        click()
    path = folder / "taken.json"
    waiting.value.save_as(path)
    return path


def test_the_plan_of_the_page_is_the_file_of_the_run(visit: Any, run: Any, tmp_path: Path) -> None:
    page = visit(accept_downloads=True)
    button = page.locator("#model-0 .save")
    assert button.inner_text() == "Download plan.json"
    assert downloaded(page, button.click, tmp_path).read_text() == run.plan_path().read_text()
    assert not page.locator("#model-0 .plan").is_visible()  # one button for one file


def test_without_scripts_the_plan_is_taken_packed(visit: Any, run: Any, tmp_path: Path) -> None:
    page = visit(accept_downloads=True, java_script_enabled=False)
    link = page.locator("#model-0 .plan")
    assert link.inner_text() == "Download plan.json (packed: plan.json.gz)"
    packed = downloaded(page, link.click, tmp_path).read_bytes()
    assert gzip.decompress(packed) == run.plan_path().read_bytes()


def test_the_plan_to_deploy_can_be_taken_from_the_first_screen(
    browser: Any, tmp_path: Path
) -> None:
    """One in the page's first screen, and one that is the plan of the run, further down."""
    run = make_run(tmp_path / "run", 9)
    joint = run.table("joint")
    second = joint["model"] == list(joint["model"])[-1]
    chosen = second & (joint["plan"] == "recommended")
    joint.loc[chosen, ["drop", "drop_low", "drop_high"]] = (0.1, -0.5, 0.7)
    run.write_table("joint", joint[~second | chosen])
    write_report(run, pdf=False)
    models = compose(run).models
    assert [bool(model.deployed and model.deployed.json) for model in models] == [True, False]
    page = browser.new_page(accept_downloads=True)
    page.goto((run.path / "report.html").as_uri())
    for model in models:
        link = page.get_by_role("link", name=f"download {model.deployed.file}", exact=True)
        found = downloaded(page, link.click, tmp_path).read_text()
        assert found == (model.deployed.json or model.plan_json)
    page.close()


@pytest.mark.parametrize("number", [0, 1])
def test_a_picked_plan_is_byte_for_byte_what_the_program_writes(
    visit: Any, run: Any, document: Document, tmp_path: Path, number: int
) -> None:
    page = visit(accept_downloads=True)
    # in any order of rows, and with some filtered out
    page.locator(f"#heat-{number} thead th").last.get_by_role("button").click()
    page.locator(f"#filter-{number}").fill("1")
    model = document.models[number]
    for at in (0, 9, len(model.front) - 1):
        slide(page, model, number, at)
        taken = downloaded(page, page.locator(f"#model-{number} .save").click, tmp_path)
        plan, path = plan_at(
            run, model.front[at].number, model=model.key, out=tmp_path / "by-program.json"
        )
        assert taken.read_bytes() == path.read_bytes()
        assert plan.measured is None
        assert plan.bits == {
            r.name: b for r, b in zip(model.rows, model.front[at].bits, strict=True)
        }


def test_every_control_can_be_reached_by_keyboard(visit: Any) -> None:
    page = visit()
    reached = set()
    for _ in range(300):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(() => { const e = document.activeElement;"
                " return e.id || e.className || e.textContent.slice(0, 20); })()"
            )
        )
    wanted = {"theme", "slider-0", "filter-0", "role-0", "block-0", "group-0", "csv", "reset"}
    wanted |= {"save", "go", "slider-1", "filter-1"}
    assert wanted <= reached
    assert "skip" in reached


def test_all_is_there_without_scripts(visit: Any, document: Document) -> None:
    page = visit(java_script_enabled=False)
    for i, model in enumerate(document.models):
        assert page.locator(f"#heat-{i} tbody tr").count() == len(model.rows)
        assert page.locator(f"#model-{i} .whatif").is_hidden()
    drawn = sum(len(part.charts) for model in document.models for part in model.chapters)
    assert page.locator("figure svg").count() == 4 + drawn
    worst = document.models[0].worst[0]
    assert page.locator(f"#m0-{document.models[0].rows[worst].index} svg").first.is_visible()
    assert page.get_by_text(document.models[0].headline).first.is_visible()


def test_print_shows_every_row_and_repeats_the_heads(visit: Any, document: Document) -> None:
    pypdf = pytest.importorskip("pypdf")
    page = visit()
    pages = pypdf.PdfReader(io.BytesIO(page.pdf(format="A4"))).pages
    texts = [p.extract_text() for p in pages]
    assert all(text.strip() for text in texts)
    whole = "".join("".join(texts).split())
    for model in document.models:
        for row in model.rows:
            if row.name.isascii():
                assert "".join(row.name.split()) in whole
    assert "Whatifthemodel" not in whole  # controls mean nothing on paper
    assert "added to 32-bit" in " ".join(texts)  # folded parts are open


def test_forced_colours_keep_the_chosen_cell_visible(visit: Any) -> None:
    page = visit(forced_colors="active")
    style = "getComputedStyle(document.querySelector('td.pick')).outlineStyle"
    assert page.evaluate(style) == "solid"


@pytest.mark.parametrize("count", [1, 4])
def test_one_and_four_models_fit(browser: Any, tmp_path: Path, count: int) -> None:
    run = make_run(tmp_path / "run", 9, [f"model_with_a_long_name_{i}" for i in range(count)])
    write_report(run, pdf=False)
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto((run.path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".model-section").count() == count
    page.close()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that compares two runs of a model; some modules diverge more in the second."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / name, 12, ["vit"], hostile=True) for name in ("a", "b")]
    table = runs[1].table("sensitivity")
    chosen = table["module"].isin(sorted(set(table["module"]))[:4])
    table.loc[chosen, ["kl", "kl_low", "kl_high"]] *= 3.0
    runs[1].write_table("sensitivity", table)
    write_comparison(runs[0], runs[1], folder / "out", pdf=False)
    return folder / "out" / "comparison.html"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_comparison_is_accessible_and_fits_a_phone(
    browser: Any, comparison: Path, theme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = browser.new_page(
        color_scheme=theme, viewport={"width": 390, "height": 900}, bypass_csp=True
    )
    page.goto(comparison.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]][:3]) for v in found] == []
    page.close()


def test_changes_sort_filter_and_tell_their_interval(browser: Any, comparison: Path) -> None:
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(comparison.as_uri())
    table = page.locator("#ratios-0")
    table.locator("thead th").last.get_by_role("button").click()
    last = table.locator("tbody tr td:last-child")
    shown = [float(text.strip("()\u00d7").replace("\u00d7", "")) for text in last.all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == 3.0
    last.first.hover()
    readout = page.locator("#changes-0 .readout")
    assert "at 2 bits: 3.0 (" in readout.inner_text()
    assert readout.inner_text().endswith("times, distinguishable")
    table.locator("tbody th[tabindex]").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.cellIndex") == 1
    page.locator("#find-0").fill("blocks")
    names = table.locator("tbody tr:not([hidden]) th").all_inner_texts()
    assert names
    assert all("blocks" in name for name in names)
    assert problems == []
    page.close()


def test_the_list_of_contents_leads_to_every_chapter(visit: Any) -> None:
    page = visit()
    page.locator(".toc summary").click()
    links = page.locator(".toc a")
    wanted = [link.get_attribute("href") or "" for link in links.all()]
    assert {"#verdict", "#findings", "#model-0", "#plans-1", "#coverage-1", "#method"} <= set(
        wanted
    )
    found = page.evaluate("all => all.filter(a => document.getElementById(a.slice(1)))", wanted)
    assert found == wanted
    links.nth(4).click()
    assert not page.locator(".toc a").first.is_visible()
    page.locator(".toc summary").click()
    page.keyboard.press("Escape")
    assert not page.locator(".toc a").first.is_visible()
