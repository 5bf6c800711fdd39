"""``vitsense import``: bits chosen elsewhere become a plan."""

from __future__ import annotations

from pathlib import Path

import click

from vitsense.cli_output import debug_option, emit, emit_json, find_run, json_option


@click.command("import", short_help="Take bits that were chosen elsewhere as a plan.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("run", required=False)
@click.option(
    "--from",
    "tool",
    type=click.Choice(["modelopt", "aimet", "csv"]),
    required=True,
    help="What the file is: a quant_cfg, encodings, or a table with columns module and bits.",
)
@click.option("--model", metavar="KEY", help="Which model of the run; default: the first.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Default: plan-imported.json in the run.",
)
@json_option
@debug_option
def import_(
    *, file: Path, run: str | None, tool: str, model: str | None, out: Path | None, as_json: bool
) -> None:
    """Write the bits in FILE as a plan for a model of RUN (default: the newest).

    The plan can be exported (vitsense export --plan), trained, and edited; modules that FILE
    leaves in float are not in it.
    """
    from vitsense.plan.outside import import_plan

    plan, path = import_plan(find_run(run), file, tool, model=model, out=out)
    if as_json:
        emit_json("complete", {"path": str(path), "plan": plan.to_json()})
        return
    cost = plan.cost or {}
    emit(
        f"{plan.model['key']}: {len(plan.modules)} modules, {cost['avg_bits']:.2f} bits on "
        f"average, {cost['size_mb']:.2f} MB"
    )
    emit(f"Plan: {path}")
