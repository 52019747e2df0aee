"""The scripts that components run in the browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import refusal_core.ui
from refusal_core.ui import streamlit_internals

FOLDER = Path(refusal_core.ui.__file__).parent
SCRIPTS = sorted(FOLDER.glob("*.js"))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node on the PATH (Debian: apt-get install nodejs)")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_valid_by_itself_and_as_it_is_sent(script, tmp_path):
    module = tmp_path / "module.mjs"
    for parts in ([script], [FOLDER / "dom.js", script]):
        if parts != [FOLDER / "dom.js", FOLDER / "dom.js"]:
            module.write_text("\n".join(part.read_text(encoding="utf-8") for part in parts), encoding="utf-8")
            checked = subprocess.run(["node", "--check", module], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stderr


def test_every_script_is_a_component_of_some_module_and_no_module_has_scripts_of_its_own():
    code = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py"))
    named = set(re.findall(r'component\("(\w+)"', code))
    assert named == {path.stem for path in SCRIPTS} - {"dom"}
    assert "export default" not in code


def test_what_streamlit_and_plotly_keep_to_themselves_is_known_to_one_script():
    for script in SCRIPTS:
        if script.name != "dom.js":
            assert not re.search(r"data-testid|js-plotly|updatemenu|slider-(group|rail|tick)", script.read_text())


def test_a_script_is_sent_after_what_it_knows_of_the_page(monkeypatch):
    sent = {}
    monkeypatch.setattr(
        streamlit_internals.st.components.v2, "component", lambda name, **options: sent.update({name: options})
    )
    streamlit_internals.component("figure_clicks")
    script = sent["figure_clicks"]["js"]
    assert script.index("function figureIn") < script.index("export default")
