// Names figures after their axes and legend, tables after their columns, and gives headings levels without gaps.

const INTERVAL = 500;

const text = (html) => new DOMParser().parseFromString(html || "", "text/html").body.textContent.trim();

function figureName({ layout, data }) {
    const [x, y] = [layout.xaxis, layout.yaxis].map((axis) => text(axis && axis.title && axis.title.text));
    const panels = (layout.annotations || []).map((note) => text(note.text)).filter(Boolean).join(", ");
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
    for (const figure of document.querySelectorAll(PLOTLY_FIGURE))
        if (figure.layout) name(figure, figureName(figure), "figure");
    for (const table of document.querySelectorAll(TABLE)) {
        const columns = [...table.querySelectorAll(COLUMN_HEADER)].map((header) => header.textContent.trim());
        name(table, `Table: ${columns.filter(Boolean).join(", ")}`);
    }
    const above = [];
    for (const heading of document.querySelectorAll(HEADING)) {
        const size = Number(heading.tagName[1]);
        while (above.length && above[above.length - 1] >= size) above.pop();
        above.push(size);
        if (heading.getAttribute("aria-level") !== String(above.length))
            heading.setAttribute("aria-level", above.length);
    }
}

export default function() {
    nameAll();
    const timer = setInterval(nameAll, INTERVAL);
    return () => clearInterval(timer);
}
