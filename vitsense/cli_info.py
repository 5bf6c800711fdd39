"""``vitsense models``, ``vitsense env`` and ``vitsense completion``."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import get_completion_class

from vitsense import provenance
from vitsense.cli_output import debug_option, emit, emit_json, json_option
from vitsense.errors import InputMissingError


@click.command(short_help="List the models that can be named.")
@click.argument("pattern", default="")
@json_option
@debug_option
def models(*, pattern: str, as_json: bool) -> None:
    """List names that contain PATTERN (or match it, with *): the zoo's, aliases, timm's.

    torchvision's models are named torchvision/NAME, your own package.module:factory.
    """
    from vitsense.model_names import list_models

    rows = list_models(pattern)
    if not rows:
        raise InputMissingError(
            f"No model name contains {pattern!r}; vitsense models lists all, and your own model "
            "is named package.module:factory."
        )
    if as_json:
        emit_json("complete", {"models": [{"name": n, "what": what} for n, what in rows]})
        return
    width = max(len(name) for name, _ in rows)
    emit("\n".join(f"{name:<{width}}  {what}" for name, what in rows))


@click.command(short_help="Versions, devices and threads, for bug reports.")
@json_option
@debug_option
def env(*, as_json: bool) -> None:
    """Show versions, devices, threads, and what the report needs."""
    facts = _environment()
    if as_json:
        emit_json("complete", facts)
        return
    width = max(len(key) for part in facts.values() for key in part)
    for title, part in facts.items():
        emit(f"{title}:")
        for key, value in part.items():
            emit(f"  {key:<{width}}  {value}")


def _environment() -> dict[str, dict[str, Any]]:
    import torch

    from vitsense.glyphs import font_folder

    cuda = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions = provenance.versions()
    return {
        "versions": versions,
        "machine": provenance.machine(),
        "torch": {
            "device": "cuda" if cuda else "cpu",
            "gpus": ", ".join(names) or "none",
            "threads": torch.get_num_threads(),
        },
        "report": {
            "fonts": str(font_folder()) if font_folder().is_dir() else "not found",
            "pdf": "yes" if versions["typst"] != "not installed" else "no: pip install typst",
        },
    }


@click.command(short_help="Print a completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> None:
    """Print the script that completes vitsense's commands and options in SHELL.

    \b
    For example, for bash:
      vitsense completion bash > ~/.vitsense-completion
      echo '. ~/.vitsense-completion' >> ~/.bashrc
    """
    found = get_completion_class(shell)
    assert found is not None, shell
    root = click.get_current_context().find_root().command
    emit(found(root, {}, "vitsense", "_VITSENSE_COMPLETE").source())
