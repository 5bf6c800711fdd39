"""Versions, machine and digests: enough to explain a number, nothing that names a person."""

from __future__ import annotations

import getpass
import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import version

import pytest

from vitsense import provenance


def test_versions_are_those_that_are_installed() -> None:
    found = provenance.versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == version("numpy")
    assert found["torch"] == version("torch")


def test_a_package_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("no-such-package",))
    assert provenance.versions()["no-such-package"] == "not installed"


def test_versions_are_read_without_importing_the_packages() -> None:
    code = (
        "import sys; from vitsense import provenance; provenance.versions(); provenance.machine();"
        "print(sorted({'torch', 'numpy', 'timm', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_machine_names_neither_a_host_nor_a_person() -> None:
    text = json.dumps(provenance.machine())
    assert platform.node() not in text
    assert getpass.getuser() not in text.split('"')


def test_the_command_line_leaves_out_where_the_program_lies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/someone/bin/vitsense", "analyze", "--model", "x"])
    assert provenance.command_line() == ["vitsense", "analyze", "--model", "x"]


def test_a_digest_is_of_the_bytes_and_not_of_their_parts() -> None:
    whole = hashlib.sha256(b"abcdef").hexdigest()
    found = provenance.digest([b"ab", b"", b"cdef"])
    assert whole.startswith(found)
    assert len(found) == 16
    assert found != provenance.digest([b"abcdeg"])
