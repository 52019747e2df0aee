from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from refusal_core.errors import RenderingError
from refusal_core.figures.layers import three_questions
from refusal_core.figures.panels import linked
from refusal_core.sharing import rendering

PNG = b"\x89PNG\r\n\x1a\n"
with_browser = pytest.mark.skipif(
    not rendering.browser_found(), reason="needs Chrome or Chromium (Debian: apt-get install chromium)"
)


def size_of(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


@pytest.mark.slow
@with_browser
def test_a_figure_is_drawn_for_a_slide_and_for_a_column_with_what_it_is_of(run):
    figure, heading = three_questions(run, 2), ("Questions", "run <b> · layer 2 of 4 · 1 May 2026")
    slide = rendering.render_image(figure, "png", heading=heading)
    assert slide.startswith(PNG)
    assert size_of(slide) == (1920, 1080)
    svg = ElementTree.fromstring(rendering.render_image(figure, "svg", dark=True, use="column", heading=heading))
    assert svg.attrib["width"] == "480"
    texts = list(svg.itertext())
    assert {"Cohen's d", *heading} <= set(texts)


def test_a_heading_makes_a_figure_higher_and_leaves_its_own_title(run):
    untitled, titled = rendering._still(three_questions(run)), rendering._still(linked(run, 0))
    heights = [drawn["layout"]["height"] for drawn in (untitled, titled)]
    assert rendering._head(untitled, ("Name", "one line"), 960) > heights[0]
    assert untitled["layout"]["title"]["text"] == "Name"
    own = titled["layout"]["title"]["text"]
    rendering._head(titled, ("Name", "one line " * 20), 480)
    assert titled["layout"]["title"]["text"] == own
    assert titled["layout"]["title"]["subtitle"]["text"].count("<br>") == 2
    # A legend that lies above its figure takes a line for every entry in a column, one on a slide, and none elsewhere.
    assert [rendering._legend_lines(untitled, width) for width in (960, 480)] == [1, 3]
    assert rendering._legend_lines(titled, 480) == 0


@with_browser
def test_one_browser_draws_many_figures(run, tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.svg"]
    rendering.write_images(dict.fromkeys(files, (three_questions(run), None)))
    assert files[0].read_bytes().startswith(PNG)
    assert ElementTree.parse(files[1]).getroot().tag.endswith("svg")


def test_a_still_shows_the_frame_asked_for_and_nothing_to_operate(run):
    still = rendering._still(linked(run, 0), frame="4")
    asked = rendering._dressed(linked(run, 4), {})
    assert still["data"] == asked["data"]
    assert still["layout"]["title"]["text"] == asked["layout"]["title"]["text"]
    assert not {"sliders", "updatemenus"} & set(still["layout"])


def test_a_page_needs_no_network_and_keeps_texts_as_text(run):
    figure = three_questions(run).add_scatter(x=[0], y=[0], name="</script><script>alert(1)</script>")
    page = rendering.render_page(figure, ("<b>title", "run <i> · layer 2"), dark=True).decode()
    assert "<title>&lt;b&gt;title</title>" in page
    assert ">&lt;b&gt;title</h1>" in page
    assert ">run &lt;i&gt; · layer 2</p>" in page
    assert "alert(1)</script>" not in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)


def test_without_a_browser_one_sentence_says_what_to_do(run, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/no/such/browser")
    assert not rendering.browser_found()
    with pytest.raises(RenderingError, match=r"none was found: install one .* BROWSER_PATH"):
        rendering.render_image(three_questions(run), "png")
