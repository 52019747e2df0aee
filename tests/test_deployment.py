"""What the files for containers, services and Spaces promise; no container engine is needed to read them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from refusal_core.access.settings import OWNERS, VIEWERS

ROOT = Path(__file__).resolve().parent.parent
IMAGES = [ROOT / "Dockerfile", ROOT / "deploy" / "space" / "Dockerfile"]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "refusal-dashboard.service"


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, lines that go on joined."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.parent.name)
def test_an_image_runs_as_an_ordinary_user_and_says_whether_it_is_well(path):
    found = instructions(path)
    users = [value for name, value in found if name == "USER"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", users[-1])
    names = [name for name, _ in found]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "/_stcore/health" in dict(found)["HEALTHCHECK"]
    assert "ADD" not in names
    assert all("latest" not in value and ":" in value for name, value in found if name == "FROM" and "AS" not in value)
    installed = [value for name, value in found if name == "RUN" and "pip install" in value]
    assert all("-c requirements.lock" in value for value in installed)
    # What has hashes is there before the package itself, of which a checkout can have none, looks for it.
    assert all("--require-hashes --no-deps -r requirements.hashes" in value.split("&&")[1] for value in installed)


OF_TORCH = re.compile(r"torch|triton|setuptools|nvidia-.*|cuda-.*")


def test_all_that_the_dashboard_installs_has_hashes_and_the_version_of_the_lock():
    """Left out is what torch's build for the machine brings, whose files differ from index to index."""
    text = (ROOT / "requirements.hashes").read_text()
    entries = re.findall(r"^([a-z0-9-]+)==(\S+)[^\n]*\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", text, re.M)
    hashed = {name: version for name, version, _ in entries}
    assert len(hashed) == len(re.findall("^[a-z]", text, re.M))
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.M))
    assert {name: locked.get(name) for name in hashed} == hashed
    needed, seen = [("refusal-directions", "dashboard"), ("refusal-directions", "login")], set()
    while needed:
        name, extra = needed.pop()
        for required in map(Requirement, distribution(name).requires or ()):
            wanted = required.marker is None or required.marker.evaluate({"extra": extra})
            place = canonicalize_name(required.name)
            if wanted and not OF_TORCH.fullmatch(place) and place not in seen:
                seen.add(place)
                needed += [(place, other) for other in ("", *required.extras)]
    assert seen - hashed.keys() == set()


def test_every_option_in_the_files_is_one_of_the_programs():
    command = [sys.executable, "-m", "refusal_core", "dashboard", "--help"]
    known = set(re.findall(r"--[a-z-]+", subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout))
    used = set(re.findall(r'"(--[a-z-]+)"', "".join(dict(instructions(path))["ENTRYPOINT"] for path in IMAGES)))
    used |= set(re.findall(r" (--[a-z-]+)", re.search("ExecStart=.*", UNIT.read_text())[0]))
    assert used
    assert used <= known


def test_a_space_that_needs_no_token_is_read_only():
    for path in IMAGES:
        entry = dict(instructions(path))["ENTRYPOINT"]
        assert ("--no-token" in entry) <= ("--read-only" in entry)
    front = (ROOT / "deploy" / "space" / "README.md").read_text().split("---")[1]
    assert yaml.safe_load(front)["sdk"] == "docker"
    assert yaml.safe_load(front)["app_port"] == 8501


def test_the_services_of_compose_have_no_more_rights_than_they_need():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert services.keys() == {"dashboard", "dashboard-cuda"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert "REFUSAL_NO_TOKEN" not in service["environment"]
        assert {place.split(":")[1] for place in service["volumes"]} == {"/cache", "/models"}


def test_where_people_log_in_the_files_name_settings_that_the_program_reads_and_ask_for_no_token():
    service = yaml.safe_load((DEPLOY / "login.yaml").read_text())["services"]["dashboard"]
    unit = (DEPLOY / "login.conf").read_text()
    for named in (set(service["environment"]), set(re.findall(r"\b([A-Z_]+)=", unit))):
        assert named == {OWNERS, VIEWERS, "STREAMLIT_SECRETS_FILES"}
    assert service["environment"]["STREAMLIT_SECRETS_FILES"] == f"/run/secrets/{service['secrets'][0]['target']}"
    assert f"%d/{re.search('LoadCredential=(.*?):', unit)[1]}" in unit


def test_what_the_image_is_built_from_is_in_the_checkout_and_sent_to_the_builder():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [value.split()[:-1] for name, value in instructions(ROOT / "Dockerfile") if name == "COPY"]
    wanted = {name for names in copied for name in names if not name.startswith(("--", "/"))}
    assert wanted == sent
    assert all((ROOT / name).exists() for name in wanted)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: systemd)")
def test_the_unit_is_one_that_systemd_reads(tmp_path):
    # The program is not installed where the unit looks for it.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/refusal/bin/refusal", sys.executable))
    read = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert UNIT.name not in read.stderr, read.stderr
