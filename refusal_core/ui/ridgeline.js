// All layers at once as a ridgeline, which is also a slider: a click, a drag or a key moves the figure to that layer.

const WIDTH = 190, HEIGHT = 500, LEFT = 36, TOP = 16, BOTTOM = 4, OVERLAP = 1.7, INTERVAL = 200, PAGE = 5;
const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
    return made;
}

function draw(data) {
    const sites = data.labels.length, step = (HEIGHT - TOP - BOTTOM) / sites;
    const base = (site) => TOP + (site + 1) * step;
    const drawing = shape("svg", {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: "0", role: "slider", "aria-orientation": "vertical",
        "aria-label": "All layers", "aria-valuemin": "0", "aria-valuemax": String(sites - 1),
    });
    drawing.append(shape("rect", { x: 0, width: WIDTH, height: step, class: "here" }));
    const every = Math.ceil(14 / step);
    for (let site = 0; site < sites; site++) {
        for (const label of ["harmless", "harmful"]) {
            const heights = data[label][site], last = heights.length - 1;
            const points = heights.map((height, bin) =>
                `${LEFT + bin / last * (WIDTH - LEFT - 2)},${(base(site) - height / 100 * step * OVERLAP).toFixed(1)}`);
            const area = [`${LEFT},${base(site)}`, ...points, `${WIDTH - 2},${base(site)}`].join(" ");
            drawing.append(shape("polygon", { points: area, fill: data.colours[label], class: "ridge" }));
        }
        if (site % every === 0 || site === sites - 1) {
            const name = shape("text", { x: LEFT - 6, y: base(site) - 1, class: "name" });
            name.textContent = data.shorts[site];
            drawing.append(name);
        }
    }
    return { drawing, step };
}

export default function({ parentElement, data }) {
    const { drawing, step } = draw(data), sites = data.labels.length;
    const band = drawing.querySelector(".here");
    let site = data.site, figure = null, asked = null;
    const show = (next) => {
        site = next;
        band.setAttribute("y", TOP + site * step);
        drawing.setAttribute("aria-valuenow", String(site));
        drawing.setAttribute("aria-valuetext", data.labels[site]);
    };
    const moved = (event) => show(event.slider.active);
    // At most once per frame, whatever a hand does.
    const go = (next) => {
        const target = Math.min(Math.max(next, 0), sites - 1);
        if (target === site) return;
        show(target);
        if (asked === null) requestAnimationFrame(() => { pressSlider(figure, asked); asked = null; });
        asked = target;
    };
    const under = (event) => {
        const box = drawing.getBoundingClientRect();
        go(Math.floor(((event.clientY - box.top) / box.height * HEIGHT - TOP) / step));
    };
    const pressed = (event) => {
        if (!figure) return;
        drawing.setPointerCapture(event.pointerId);
        under(event);
    };
    const dragged = (event) => { if (figure && event.buttons) under(event); };
    const keyed = (event) => {
        const next = {
            ArrowDown: site + 1, ArrowUp: site - 1, PageDown: site + PAGE, PageUp: site - PAGE, Home: 0, End: sites - 1,
        }[event.key];
        if (next === undefined || !figure) return;
        event.preventDefault();
        event.stopPropagation();
        go(next);
    };
    const look = () => {
        const current = figureIn(data.container);
        if (!current || current === figure || !sliderIsDrawn(current)) return;
        stopListening(figure, "plotly_sliderchange", moved);
        figure = current;
        figure.on("plotly_sliderchange", moved);
    };
    drawing.addEventListener("pointerdown", pressed);
    drawing.addEventListener("pointermove", dragged);
    drawing.addEventListener("keydown", keyed);
    show(site);
    look();
    const looking = setInterval(look, INTERVAL);
    const focused = parentElement.querySelector("svg:focus") !== null;
    parentElement.querySelectorAll("svg").forEach((old) => old.remove());
    parentElement.append(drawing);
    if (focused) drawing.focus();
    return () => {
        clearInterval(looking);
        stopListening(figure, "plotly_sliderchange", moved);
    };
}
