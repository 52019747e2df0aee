"""What screen readers and keyboards need of every page and Streamlit does not give.

Plotly figures and tables on canvas have no accessible name, so they are named after their own axes, legend and columns.
Streamlit's headings have the level of their size; they are told to screen readers without gaps.
"""

from __future__ import annotations

import streamlit as st

_NAME = """
const text = (html) => new DOMParser().parseFromString(html || "", "text/html").body.textContent.trim();

function figureName({ layout, data }) {
    const [x, y] = [layout.xaxis, layout.yaxis].map((axis) => text(axis && axis.title && axis.title.text));
    const panels = (layout.annotations || []).map((each) => text(each.text)).filter(Boolean).join(", ");
    const axes = [y, x].filter(Boolean).join(", against ") || text(layout.title && layout.title.text) || panels;
    const shown = (data || []).filter((trace) => trace.name && trace.showlegend !== false);
    const names = [...new Set(shown.map((trace) => text(trace.name)))];
    return `Figure: ${axes}` + (names.length ? `. Shows ${names.join("; ")}` : "");
}

function name(element, label, role) {
    if (element.getAttribute("aria-label") === label) return;
    element.setAttribute("aria-label", label);
    if (role) element.setAttribute("role", role);
}

function nameAll() {
    for (const plot of document.querySelectorAll(".js-plotly-plot"))
        if (plot.layout) name(plot, figureName(plot), "figure");
    for (const grid of document.querySelectorAll("[data-testid=stDataFrame] [role=grid]")) {
        const columns = [...grid.querySelectorAll("[role=columnheader]")].map((each) => each.textContent.trim());
        name(grid, `Table: ${columns.filter(Boolean).join(", ")}`);
    }
    const above = [];
    for (const heading of document.querySelectorAll("[data-testid=stMain] :is(h1, h2, h3, h4, h5, h6)")) {
        const size = Number(heading.tagName[1]);
        while (above.length && above[above.length - 1] >= size) above.pop();
        above.push(size);
        if (heading.getAttribute("aria-level") !== String(above.length))
            heading.setAttribute("aria-level", above.length);
    }
}

export default function() {
    nameAll();
    const timer = setInterval(nameAll, 500);
    return () => clearInterval(timer);
}
"""

# Streamlit writes white on the primary colour, which in the dark theme is a light one, makes one button too small to
# touch, and shows no focus on a table (WCAG 2.2, 1.4.3, 2.5.8 and 2.4.7).
_LOOK = """
[data-testid=stMultiSelectTagsContainer] [data-tag] *,
[data-testid=stMain] button[kind^=primary], [data-testid=stMain] button[kind^=primary] * {
    color: light-dark(LIGHT, DARK);
}
[data-testid=stMultiSelect] button[aria-label="Clear all"] { min-width: 24px; min-height: 24px; }
[data-testid=stDataFrame]:has(canvas:focus-visible) { outline: 2px solid currentColor; outline-offset: 1px; }
"""


def make_accessible() -> None:
    """Name what the page draws, for as long as it is open."""
    look = _LOOK
    for theme in ("light", "dark"):
        look = look.replace(theme.upper(), str(st.get_option(f"theme.{theme}.backgroundColor")))
    with st.sidebar:
        st.components.v2.component("accessible_names", js=_NAME, css=look, isolate_styles=False)(key="accessible_names")
