"""The Nu HTML checker finds no error; skipped where it or Java is not installed.

``npm install vnu-jar`` and set ``VITSENSE_VNU`` to its ``vnu.jar``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from report_fixture import make_run

from vitsense.report import write_report

JAR = os.environ.get("VITSENSE_VNU", "node_modules/vnu-jar/build/dist/vnu.jar")


@pytest.mark.slow
@pytest.mark.skipif(not Path(JAR).is_file(), reason=f"no Nu HTML checker at {JAR}")
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java runtime")
def test_the_page_has_no_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 12, hostile=True, unmeasured=True, warnings=["Few images."])
    write_report(run, pdf=False)
    command = ["java", "-Xss8m", "-jar", JAR, "--errors-only", "--format", "json"]
    done = subprocess.run(
        [*command, str(run.path / "report.html")], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stderr or done.stdout)["messages"]
    assert [(m["message"], m.get("extract")) for m in found] == []
