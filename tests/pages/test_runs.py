"""The Runs page without a browser: what there is, what is asked for and checked, what came of it, and what is sent."""

from __future__ import annotations

import importlib.util
import io
import itertools
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import streamlit as st
from making import make_run
from streamlit.testing.v1 import AppTest
from synthetic import RUN

from refusal_core.errors import RefusalError
from refusal_core.markdown import plain
from refusal_core.models import hub
from refusal_core.models.identity import ModelInfo
from refusal_core.options import DTYPES, MINIMUM_PER_LABEL, TOKEN_LIMIT, RunOptions
from refusal_core.pipeline import plan, request
from refusal_core.pipeline.plan import check
from refusal_core.runs import store
from refusal_core.runs.manifest import RefitRecord
from refusal_core.sharing.archives import pack_run
from refusal_core.ui import background, jobs, uploads
from refusal_core.ui import start as form

ROOT = Path(__file__).resolve().parents[2]
HOSTILE_TITLE = "<b>x</b> **y** [z](https://example.com) $a$"


@pytest.fixture(autouse=True)
def cache(synthetic_cache, tmp_path, monkeypatch) -> Path:
    """A copy of the cache that a visitor may change."""
    folder = tmp_path / "cache"
    shutil.copytree(synthetic_cache, folder)
    monkeypatch.setenv("REFUSAL_CACHE", str(folder))
    monkeypatch.setenv("REFUSAL_MODELS", str(tmp_path / "models"))
    st.cache_data.clear()
    st.cache_resource.clear()
    return folder


def visit() -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120).run()
    app.switch_page("pages/10_Runs.py").run()
    assert not app.exception, app.exception
    return app


def press(app: AppTest, label: str) -> AppTest:
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception, app.exception
    return app


def text_field(app: AppTest, label: str):
    return next(each for each in app.text_input if each.label == label)


def said(app: AppTest) -> str:
    return "\n".join(
        str(each.value) for kind in ("success", "error", "info", "text", "caption") for each in app.get(kind)
    )


def table(app: AppTest):
    return app.dataframe[0].value


def test_the_runs_are_listed_and_a_broken_one_with_its_reason(cache):
    shutil.copytree(cache / RUN, cache / "damaged")
    (cache / "damaged" / "prompts.parquet").write_bytes(b"x")
    app = visit()
    listed = table(app)
    assert listed["layers"].tolist()[0] == 6
    assert listed["prompts"].tolist()[0] == "16 + 16"
    assert "prompts.parquet" in listed["broken"].tolist()[1]
    app.selectbox(key="runs_chosen").set_value("damaged").run()
    assert "is not a run that can be opened" in said(app)
    press(app, "Delete the run")
    assert sorted(path.name for path in cache.glob("[!.]*")) == [RUN]


def test_an_empty_cache_leads_to_a_first_run(cache):
    shutil.rmtree(cache / RUN)
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120).run()
    assert "page Runs" in app.info[0].value
    app.switch_page("pages/10_Runs.py").run()
    assert not app.exception
    assert "no runs in the cache yet" in said(app)
    assert any(button.label == "Check" for button in app.button)


def test_a_title_is_shown_as_text_everywhere_and_the_run_s_name_stays(cache):
    app = visit()
    text_field(app, "Title").set_value(HOSTILE_TITLE)
    app = press(app, "Save title")
    assert table(app)["title"].tolist() == [HOSTILE_TITLE]
    assert RUN in said(app)
    assert HOSTILE_TITLE not in "\n".join(each.value for kind in ("subheader", "success") for each in app.get(kind))
    home = app.switch_page("app.py").run()
    assert home.selectbox(key="run_field").options == [HOSTILE_TITLE]
    assert store.run_titles() == {RUN: HOSTILE_TITLE}
    assert store.verify_run(RUN)


def test_a_run_is_verified(cache):
    assert "files match" in said(press(visit(), "Verify"))


def test_a_run_is_deleted_only_when_that_is_confirmed(cache):
    app = visit()
    assert (cache / RUN).exists()
    app = press(app, "Delete the run")
    assert not (cache / RUN).exists()
    assert "no runs in the cache yet" in said(app)
    press(app, "Restore")
    assert store.verify_run(RUN)


def test_opening_goes_to_the_run(cache):
    app = press(visit(), "Open")
    assert app.query_params["run"] == RUN
    assert app.title[0].value == "Refusal directions"


@pytest.mark.slow
def test_what_is_downloaded_is_taken_in_again_and_a_wrong_hash_is_refused(cache):
    packed = io.BytesIO()
    pack_run(RUN, packed)
    store.delete_run(RUN)
    bad = io.BytesIO()
    with zipfile.ZipFile(packed) as sent, zipfile.ZipFile(bad, "w") as changed:
        for name in sent.namelist():
            changed.writestr(name, sent.read(name) + (b" " if name.endswith("prompts.parquet") else b""))
    for content, says, there in (
        (bad, "SHA-256 differs", False),
        (packed, "Imported", True),
        (packed, "already", True),
    ):
        app = visit()
        app.file_uploader(key="runs_import").set_value(("sent.zip", content.getvalue(), "application/zip")).run()
        app = press(app, "Import")
        assert says in said(app)
        assert (cache / RUN).exists() == there


def ask(app: AppTest, model: str, limit: int | None = None) -> AppTest:
    app.selectbox(key="runs_model").set_value(form._OTHER).run()
    app.text_input(key="runs_model_path").set_value(model).run()
    if limit:
        app.number_input(key="runs_limit_per_label").set_value(limit).run()
    return press(app, "Check")


@pytest.mark.slow
def test_what_is_wrong_is_said_in_the_form_and_nothing_starts(tiny_folder):
    app = ask(visit(), "no-such-model")
    assert "There is no model named 'no-such-model'" in said(app)
    assert not any(button.label == "Start the run" for button in app.button)
    assert "There is no model named '--help'" in said(ask(app, "--help"))
    for path in ("~nobody-of-that-name/x", "/etc/passwd", "/nothing/is/here"):
        app.text_input(key="runs_model_path").set_value(path).run()
        assert "outside the folders" in said(app)
        assert not any(button.label == "Check" for button in app.button)
    app.text_input(key="runs_model_path").set_value(str(tiny_folder)).run()
    app.selectbox(key="runs_prompts_kind").set_value(form._TYPED).run()
    app.text_input(key="runs_prompts_path").set_value("no-such-file.csv").run()
    assert "no-such-file.csv" in said(press(app, "Check"))
    assert jobs.all_jobs() == []


def test_rows_of_a_file_outside_the_named_folders_are_not_shown(tmp_path, monkeypatch):
    private = tmp_path / "private.csv"
    private.write_text("text,label\n" + "".join(f"secret {n},{n % 2}\n" for n in range(40)))
    app = visit()
    app.selectbox(key="runs_prompts_kind").set_value(form._TYPED).run()
    monkeypatch.setenv("REFUSAL_FOLDERS", str(tmp_path / "elsewhere"))
    app.text_input(key="runs_prompts_path").set_value(str(private)).run()
    assert not any("secret" in str(frame.value.to_numpy()) for frame in app.dataframe)
    monkeypatch.setenv("REFUSAL_FOLDERS", str(tmp_path))
    app.text_input(key="runs_prompts_path").set_value(f"{private} ").run()
    app.run()
    assert any("secret" in str(frame.value.to_numpy()) for frame in app.dataframe)


@pytest.mark.slow
def test_a_checked_run_says_what_it_will_be_and_starts_once(tiny_folder, monkeypatch):
    begun = []
    monkeypatch.setattr(jobs, "start", begun.append)
    app = ask(visit(), str(tiny_folder), limit=8)
    assert "4 layers × 32" in said(app)
    assert "8 harmful + 8 harmless prompts" in said(app)
    app = press(app, "Start the run")
    (command,) = begun
    assert (command.verb, command.arguments[0]) == ("run", f"--model={tiny_folder}")
    assert "--limit-per-label=8" in command.arguments
    # Another answer in the form has to be checked anew.
    app.number_input(key="runs_limit_per_label").set_value(9).run()
    assert not any(button.label == "Start the run" for button in app.button)


@pytest.mark.slow
def test_an_uploaded_file_is_checked_like_any_other(tiny_folder):
    app = visit()
    app.selectbox(key="runs_model").set_value(form._OTHER).run()
    app.text_input(key="runs_model_path").set_value(str(tiny_folder)).run()
    app.selectbox(key="runs_prompts_kind").set_value(form._UPLOADED).run()
    for content, says in (
        (b"text,label\nA,harmful\n", "none labelled harmless"),
        ("".join(["text,label\n", *(f"T {n},{n % 2}\n" for n in range(20))]).encode(), "10 harmful + 10 harmless"),
    ):
        app.file_uploader(key="runs_upload").set_value(("My set.csv", content, "text/csv")).run()
        assert says in said(press(app, "Check"))


def uploaded(name: str, content: bytes, tiny_folder):
    app = visit()
    app.selectbox(key="runs_model").set_value(form._OTHER).run()
    app.text_input(key="runs_model_path").set_value(str(tiny_folder)).run()
    app.selectbox(key="runs_prompts_kind").set_value(form._UPLOADED).run()
    app.file_uploader(key="runs_upload").set_value((name, content, "text/csv")).run()
    return app


def field(app, start: str):
    return next(each for each in app.selectbox if each.label.startswith(start))


def tables(app) -> str:
    return str([table.value.to_numpy().tolist() for table in app.dataframe])


@pytest.mark.slow
def test_what_a_file_is_read_as_is_shown_before_it_is_checked(tiny_folder):
    rows = ["question,kind,other", *(f"Q {n}?,{'bad' if n % 2 else 'fine'},x" for n in range(20)), "Q 20?,odd,x"]
    app = uploaded("mine.csv", "\n".join(rows).encode(), tiny_folder)
    assert "choose the label column" in said(app)
    assert "table with commas between the fields" in tables(app)
    field(app, "Label column").set_value("kind").run()
    for value, meaning in (("“bad”", "harmful"), ("“fine”", "harmless"), ("“odd”", "skip")):
        field(app, f"What {value}").set_value(meaning).run()
    assert "10 harmful + 10 harmless prompts" in said(app)
    assert "1 row with a label to skip: row 21" in tables(app)
    app = press(app, "Check")
    assert "10 harmful + 10 harmless prompts" in said(app)
    options, _ = app.session_state["runs_checked"]
    assert (options.label_column, options.label) == ("kind", ("fine=harmless", "bad=harmful", "odd=skip"))


def test_a_file_that_cannot_be_read_says_so_in_the_form(tiny_folder):
    app = uploaded("mine.csv", "text,label\nKürze,harmful\n".encode("latin-1"), tiny_folder)
    assert "save it as UTF-8" in said(app)


def test_a_set_on_the_hub_is_looked_at_only_when_that_is_asked_for():
    app = visit()
    app.selectbox(key="runs_prompts_kind").set_value(form._TYPED).run()
    app.text_input(key="runs_prompts_path").set_value("polyrefuse").run()
    assert "not on the hub" not in said(app)
    assert "not on the hub" in said(press(app, "Look at the prompts"))


def test_a_job_is_shown_with_what_came_of_it(monkeypatch, cache):
    def job(state, **more):
        told = {"stage": "extracting (prompts)", "done": 3, "total": 9, "message": "", "seconds_left": 12.0}
        return jobs.Job(
            jobs.Command("Job `x`", "run", (f"--{state}=1",)), state, began=0.0, seconds=75.0, **told | more
        )

    every = [job("running"), job("failed", message="no <b>room</b>"), job("cancelled"), job("done")]
    monkeypatch.setattr(jobs, "all_jobs", lambda: every)
    monkeypatch.setattr(jobs, "status", lambda name: next((job for job in every if job.name == name), None))
    monkeypatch.setattr(jobs, "log", lambda name: f"warning: x\n{RUN}")
    app = visit()
    labels = [button.label for button in app.button]
    assert {"Cancel", "Try again", "Continue"} <= set(labels)
    assert labels.count("Dismiss") == 3
    assert labels.count("Open") == 2
    assert "no <b>room</b>" in [text.value for text in app.text]
    (bar,) = app.get("progress")
    assert bar.proto.text.endswith("3 of 9 prompts · running for 1 min · about 12 s left of this stage")


def test_durations_are_said_shortly():
    said = [background.duration(seconds) for seconds in (0.4, 59, 61, 3599, 3600, 7380)]
    assert said == ["0 s", "59 s", "1 min", "1 h 0 min", "1 h 0 min", "2 h 3 min"]


def test_a_run_in_the_background_is_the_same_from_any_folder_and_at_any_time(monkeypatch, tiny_folder, tmp_path):
    """Paths are absolute and the dtype is settled, so that a job that was stopped goes on as the same run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    (tmp_path / "a.csv").write_text("".join(["text,label\n", *(f"T {n},{n % 2}\n" for n in range(20))]))
    settled = check(RunOptions(model="tiny", prompts="a.csv")).options
    assert (settled.model, settled.prompts) == (str(tmp_path / "tiny"), str(tmp_path / "a.csv"))
    assert settled.dtype in DTYPES
    monkeypatch.setattr(plan, "choose_dtype", lambda device, dtype: "float16")
    assert check(RunOptions(model="tiny", prompts="a.csv")).options.dtype == "float16"
    assert check(RunOptions(model="tiny", prompts="a.csv")).cached is None
    made = make_run("tiny", "a.csv", dtype="bfloat16").run
    again = check(RunOptions(model="tiny", prompts="a.csv"))
    assert again.cached == made.run_id
    assert again.options.dtype == made.manifest.compute.dtype


def test_a_borrowed_template_and_fewer_bits_are_checked_before_a_run_starts(tiny_folder, tmp_path):
    borrowed = tmp_path / "borrowed.jinja"
    borrowed.write_text("{{ messages[0]['content'] }}")
    found = check(RunOptions(model=tiny_folder, chat_template=borrowed))
    assert f"--chat-template={borrowed}" in found.options.arguments()
    assert found.available
    with pytest.raises(RefusalError, match="no template 'nobody'"):
        check(RunOptions(model=tiny_folder, chat_template="nobody"))
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(RefusalError, match="bitsandbytes"):
            check(RunOptions(model=tiny_folder, load_in="4bit"))


@pytest.mark.slow
def test_the_form_asks_for_template_and_bits(tiny_folder):
    app = visit()
    app.text_input(key="runs_chat_template").set_value("nobody").run()
    app.selectbox(key="runs_load_in").set_value("4bit").run()
    app.selectbox(key="runs_thinking").set_value(False).run()
    asked = ask(app, str(tiny_folder)).session_state["runs_checked"][0]
    assert (asked.chat_template, asked.load_in, asked.thinking) == ("nobody", "4bit", False)


def test_the_form_has_the_labels_and_bounds_of_the_options():
    app = visit()
    for name in itertools.chain(*form._ROWS):
        widget = next(each for each in app.main if getattr(each, "key", None) == f"runs_{name}")
        field = RunOptions.model_fields[name]
        assert (widget.label, widget.help) == (field.title, field.description)
    assert app.number_input(key="runs_limit_per_label").min == MINIMUM_PER_LABEL
    assert app.number_input(key="runs_token_limit").value == TOKEN_LIMIT
    assert app.selectbox(key="runs_dtype").options == ["auto", *DTYPES]


def test_a_model_to_be_downloaded_has_its_size_told(monkeypatch):
    info = ModelInfo("a/b", "hub", "c" * 40, None, "Qwen2ForCausalLM", 4, 8, None, "mit")
    monkeypatch.setattr(request, "identify", lambda model, revision: info)
    monkeypatch.setattr(plan, "is_available", lambda model: False)
    files = [
        ("model.safetensors", 1000),
        ("config.json", 10),
        ("pytorch_model.bin", 5000),
        ("onnx/model.safetensors", 7),
    ]
    listed = [type("File", (), {"rfilename": name, "size": size}) for name, size in files]
    monkeypatch.setattr(hub.HfApi, "model_info", lambda self, repo, **options: type("Info", (), {"siblings": listed}))
    found = check(RunOptions(model="a/b"))
    assert (found.available, found.download_bytes) == (False, 1010)
    assert found.options.revision == "c" * 40
    assert check(RunOptions(model="qwen2.5-coder-0.5b-instruct")).counts == {"harmful": 256, "harmless": 256}


def test_uploads_are_kept_once_under_a_name_of_ours(cache, monkeypatch):
    first = uploads.store_upload("../../My set!.CSV", b"x")
    assert first == cache / ".uploads" / first.parent.name / "my-set.csv"
    assert uploads.store_upload("../../My set!.CSV", b"x") == first
    for name, content, says in (("x.exe", b"x", "ending in"), ("x.csv", bytes(uploads.LARGEST + 1), "at most")):
        with pytest.raises(RefusalError, match=says):
            uploads.store_upload(name, content)
    monkeypatch.setattr(uploads, "_MOST_STORED", 2)
    for place in range(4):
        last = uploads.store_upload("x.txt", bytes([place]))
        time.sleep(0.01)
    assert last.exists()
    assert len(list((cache / ".uploads").glob("*/*"))) == 2


def test_runs_are_found_by_their_notes_and_numbers(cache):
    app = visit()
    run = store.open_run(RUN)
    assert table(app)["d"].tolist() == [run.layer_stats["crossfit_d"][:-1].max()]
    # What no run has takes no room.
    assert "note" not in app.dataframe[0].proto.column_order
    text_field(app, "Note and tags").set_value(f"#paper {HOSTILE_TITLE}"[: store.LONGEST_NOTE])
    press(app, "Save note")
    assert store.run_notes() == {RUN: f"#paper {HOSTILE_TITLE}"}
    assert "Note saved." in said(app)
    assert "note" in app.dataframe[0].proto.column_order
    app.text_input(key="runs_find").set_value("#PAPER tiny").run()
    assert len(table(app)) == 1
    app.text_input(key="runs_find").set_value("#talk").run()
    assert len(table(app)) == 0
    assert "No run has these words." in said(app)
    app.text_input(key="runs_find").set_value("").run()
    text_field(app, "Note and tags").set_value("")
    press(app, "Save note")
    assert store.run_notes() == {}


def test_a_page_that_stands_open_shows_what_another_owner_saved_and_does_not_remove_it(cache):
    app = visit()
    store.note_run(RUN, "another's note")
    store.rename_run(RUN, "Another's title")
    for label in ("Save note", "Save title"):
        press(app, label)
        assert text_field(app, "Note and tags").value == "another's note"
        assert text_field(app, "Title").value == "Another's title"
    assert (store.run_notes(), store.run_titles()) == ({RUN: "another's note"}, {RUN: "Another's title"})


def test_a_run_says_what_it_was_made_from(cache):
    run = store.open_run(RUN)
    refitted = RefitRecord(parent="another--run", left_out=3, sha256="0" * 64, activations="stored")
    (cache / RUN / "manifest.json").write_text(run.manifest.model_copy(update={"refit": refitted}).to_json())
    app = visit()
    assert table(app)["origin"].tolist() == ["refit of another--run"]
    assert "refit of another--run" in said(app)


def test_a_running_job_is_seen_on_every_page_and_its_end_is_said_once(monkeypatch):
    command = jobs.Command(f"Measuring {HOSTILE_TITLE}", "run", ("x",))
    job = jobs.Job(command, "running", "reading (prompts)", 3, 12, "", time.time(), 1.0, None)
    ended = replace(job, state="failed")
    monkeypatch.setattr(jobs, "all_jobs", lambda: [job])
    monkeypatch.setattr(jobs, "status", lambda name: job)
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120).run()
    for page in ("11_Glossary", "1_Layers"):
        app.switch_page(f"pages/{page}.py").run()
        assert [caption.value for caption in app.sidebar.caption if "25 % of this stage" in caption.value]
        assert not app.toast
    monkeypatch.setattr(jobs, "all_jobs", lambda: [ended])
    monkeypatch.setattr(jobs, "status", lambda name: ended)
    app.run()
    (notice,) = app.toast
    assert notice.value == f"{plain(command.title)}: failed"
    assert not [caption.value for caption in app.sidebar.caption if "stage" in caption.value]
    assert not app.run().toast
    assert not app.exception
