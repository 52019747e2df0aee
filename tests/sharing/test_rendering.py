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
def test_a_figure_becomes_a_png_of_twice_its_size_and_an_svg_with_its_words(run):
    figure = three_questions(run, 2)
    png = rendering.render_image(figure, "png")
    assert png.startswith(PNG)
    assert size_of(png) == (2 * rendering.WIDTH, 2 * figure.layout.height)
    svg = ElementTree.fromstring(rendering.render_image(figure, "svg", dark=True))
    assert "Cohen's d" in "".join(svg.itertext())


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
    page = rendering.render_page(figure, "<b>title", dark=True).decode()
    assert "<title>&lt;b&gt;title</title>" in page
    assert "alert(1)</script>" not in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)


def test_without_a_browser_one_sentence_says_what_to_do(run, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/no/such/browser")
    assert not rendering.browser_found()
    with pytest.raises(RenderingError, match=r"none was found: install one .* BROWSER_PATH"):
        rendering.render_image(three_questions(run), "png")
