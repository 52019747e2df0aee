// A prompt's tokens on colours of where they project at one layer, and the token in hand over all layers.

const WIDTH = 260, HEIGHT = 44, MARGIN = 4;
const SVG = "http://www.w3.org/2000/svg";
const visible = (token) => token.replace(/\n/g, "⏎").replace(/\t/g, "⇥");

function shape(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
    return made;
}

function courseOf(values, site, limit) {
    const x = (place) => MARGIN + place / Math.max(values.length - 1, 1) * (WIDTH - 2 * MARGIN);
    const y = (value) => HEIGHT / 2 - Math.max(-limit, Math.min(limit, value)) / limit * (HEIGHT / 2 - MARGIN);
    const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" });
    drawing.append(
        shape("line", { x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2, class: "middle" }),
        shape("polyline", { points: values.map((value, place) => `${x(place)},${y(value)}`).join(" "), class: "course" }),
        shape("circle", { cx: x(site), cy: y(values[site]), r: 3.5, class: "here" }),
    );
    return drawing;
}

export default function({ parentElement, data }) {
    const { tokens, values, site, layer, limit, colours } = data;
    const strip = document.createElement("div"), detail = document.createElement("div");
    strip.className = "strip";
    detail.className = "detail";
    strip.tabIndex = 0;
    strip.setAttribute("role", "listbox");
    strip.setAttribute("aria-label", `Tokens, coloured by projection at ${layer}; arrow keys go through them`);
    let chosen = tokens.length - 1;
    const marks = tokens.map((token, place) => {
        const mark = document.createElement("span"), value = values[place][site];
        const strength = Math.min(Math.abs(value) / limit, 1) * 60;
        mark.textContent = visible(token);
        mark.className = "token";
        mark.id = `token-${place}`;
        mark.setAttribute("role", "option");
        mark.style.background =
            `color-mix(in srgb, ${value > 0 ? colours.harmful : colours.harmless} ${strength.toFixed(0)}%, transparent)`;
        mark.addEventListener("pointerenter", () => choose(place));
        mark.addEventListener("click", () => choose(place));
        strip.append(mark);
        return mark;
    });
    function choose(place) {
        chosen = place;
        marks.forEach((mark, other) => mark.setAttribute("aria-selected", String(other === place)));
        strip.setAttribute("aria-activedescendant", marks[place].id);
        const text = document.createElement("span"), value = values[place][site];
        text.textContent = `“${visible(tokens[place]).trim() || "␣"}” at ${layer}: ${Math.abs(value).toFixed(2)} standard ` +
            `deviations towards ${value > 0 ? "harmful" : "harmless"}`;
        detail.replaceChildren(courseOf(values[place], site, limit), text);
        marks[place].setAttribute("aria-label", text.textContent);
    }
    strip.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        event.stopPropagation();
        choose(Math.min(Math.max(chosen + step, 0), tokens.length - 1));
    });
    choose(chosen);
    parentElement.querySelectorAll(".strip, .detail").forEach((old) => old.remove());
    parentElement.append(strip, detail);
}
