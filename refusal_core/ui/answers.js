// A table of questions: verdict, number with its interval, and a sparkline over the layers. A row opens its page.

const WIDTH = 190, HEIGHT = 34, MARGIN = 4;
const SYMBOLS = { yes: "✓", no: "✕", unclear: "?", "not measured": "–" };
const SVG = "http://www.w3.org/2000/svg";

function element(name, text, className) {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (className) made.className = className;
    return made;
}

function shape(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
    return made;
}

function sparkline({ values, low, high, reference, site, layer }) {
    const known = [...values, ...low, ...high, reference].filter((value) => value !== null);
    const bottom = Math.min(...known), top = Math.max(...known), span = top - bottom || 1;
    const x = (place) => MARGIN + place / Math.max(values.length - 1, 1) * (WIDTH - 2 * MARGIN);
    const y = (value) => HEIGHT - MARGIN - (value - bottom) / span * (HEIGHT - 2 * MARGIN);
    const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "spark" });
    drawing.append(shape("title", {}));
    drawing.firstChild.textContent = `Over the layers, from ${bottom.toFixed(2)} to ${top.toFixed(2)}; marked: ${layer}`;
    drawing.append(shape("line", { x1: 0, x2: WIDTH, y1: y(reference), y2: y(reference), class: "reference" }));
    const places = values.map((_, place) => place).filter((place) => low[place] !== null && high[place] !== null);
    if (places.length > 1) {
        const edge = (ends, order) => order.map((place) => `${x(place)},${y(ends[place])}`);
        const points = [...edge(high, places), ...edge(low, [...places].reverse())].join(" ");
        drawing.append(shape("polygon", { points, class: "interval" }));
    }
    const points = values.map((value, place) => value === null ? null : `${x(place)},${y(value)}`).filter(Boolean);
    drawing.append(shape("polyline", { points: points.join(" "), class: "values" }));
    if (values[site] !== null)
        drawing.append(shape("circle", { cx: x(site), cy: y(values[site]), r: 3, class: "here" }));
    return drawing;
}

export default function({ parentElement, data, setTriggerValue }) {
    const table = element("table");
    const head = element("tr");
    for (const name of ["Question", "Answer", `Number, ${data.layer}`, "Over the layers"]) {
        const cell = element("th", name);
        cell.scope = "col";
        head.append(cell);
    }
    table.append(element("thead"), element("tbody"));
    table.tHead.append(head);
    for (const row of data.rows) {
        const line = element("tr");
        const question = element("th");
        question.scope = "row";
        const opens = element("button", row.question);
        opens.type = "button";
        opens.addEventListener("click", () => setTriggerValue("opened", row.key));
        question.append(opens);
        const answer = element("td");
        const verdict = element("span", null, `verdict ${row.verdict.replace(" ", "-")}`);
        verdict.append(element("span", SYMBOLS[row.verdict], "symbol"), row.verdict);
        verdict.firstChild.setAttribute("aria-hidden", "true");
        answer.append(verdict);
        const number = element("td");
        number.append(element("span", row.number || "–", "number"), element("span", row.compared, "compared"));
        const course = element("td", null, "course");
        if (row.values.some((value) => value !== null)) course.append(sparkline({ ...row, ...data }));
        line.append(question, answer, number, course);
        table.tBodies[0].append(line);
    }
    const old = parentElement.querySelector("table");
    if (old) old.replaceWith(table);
    else parentElement.append(table);
}
