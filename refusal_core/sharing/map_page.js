// A map of prompts on a canvas, moved through the layers by a slider; everything it draws is in the page itself.

"use strict";

const told = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("map"), slider = document.getElementById("layer");
const play = document.getElementById("play"), tip = document.getElementById("tip");
const numbers = Uint16Array.from({ length: told.sites.length * 2 * told.texts.length }, () => 0);
{
    const bytes = atob(told.places);
    for (let at = 0; at < numbers.length; at++)
        numbers[at] = bytes.charCodeAt(2 * at) | (bytes.charCodeAt(2 * at + 1) << 8);
}
const MISSING = 65535, STEP = 700, MOVE = 260, EDGE = { left: 64, right: 14, top: 12, bottom: 46 };
const count = told.texts.length;
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
let shown = Number(slider.value), from = shown, began = 0, playing = null, drawn = [];

/** Where a prompt lies at a site, as shares of the two axes. */
const place = (site, prompt) => [0, 1].map((axis) => {
    const number = numbers[(2 * site + axis) * count + prompt];
    return number === MISSING ? NaN : number / (MISSING - 1);
});

/** Round numbers between two ends, five or so. */
function ticks(low, high) {
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high; value += step)
        found.push(Number(value.toPrecision(10)));
    return found;
}

const shapes = {
    "circle": (pen, x, y, r) => pen.arc(x, y, r, 0, 7),
    "triangle-up": (pen, x, y, r) => { pen.moveTo(x, y - 1.2 * r); pen.lineTo(x + r, y + r); pen.lineTo(x - r, y + r); },
    "square": (pen, x, y, r) => pen.rect(x - r, y - r, 2 * r, 2 * r),
    "diamond": (pen, x, y, r) => {
        pen.moveTo(x, y - 1.3 * r); pen.lineTo(x + 1.3 * r, y); pen.lineTo(x, y + 1.3 * r); pen.lineTo(x - 1.3 * r, y);
    },
    "cross": (pen, x, y, r) => {
        pen.rect(x - r, y - r / 3, 2 * r, r / 1.5); pen.rect(x - r / 3, y - r, r / 1.5, 2 * r);
    },
};

function draw(now) {
    const width = canvas.clientWidth, height = canvas.clientHeight, scale = devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d"), site = told.sites[shown];
    pen.scale(scale, scale);
    const inner = [width - EDGE.left - EDGE.right, height - EDGE.top - EDGE.bottom];
    const at = (shares) => [EDGE.left + shares[0] * inner[0], EDGE.top + (1 - shares[1]) * inner[1]];
    pen.font = "12px system-ui, sans-serif";
    pen.fillStyle = told.look.muted;
    pen.strokeStyle = told.look.grid;
    pen.lineWidth = 1;
    [0, 1].forEach((axis) => {
        const [low, high] = site.ranges[axis];
        for (const value of ticks(low, high)) {
            const share = (value - low) / (high - low), [x, y] = at(axis ? [0, share] : [share, 0]);
            pen.beginPath();
            pen.moveTo(x, y);
            pen.lineTo(axis ? x + inner[0] : x, axis ? y : y - inner[1]);
            pen.stroke();
            pen.textAlign = axis ? "right" : "center";
            pen.fillText(String(value).replace("-", "\u2212"), axis ? x - 6 : x, axis ? y + 4 : y + 16);
        }
    });
    pen.textAlign = "center";
    pen.fillText(told.axes[0], EDGE.left + inner[0] / 2, height - 8);
    pen.save();
    pen.translate(14, EDGE.top + inner[1] / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(told.axes[1], 0, 0);
    pen.restore();
    const moved = still ? 1 : Math.min((now - began) / MOVE, 1), eased = 1 - (1 - moved) ** 3;
    drawn = [];
    pen.globalAlpha = 0.75;
    for (let prompt = 0; prompt < count; prompt++) {
        const ends = [place(from, prompt), place(shown, prompt)];
        if (Number.isNaN(ends[1][0] + ends[1][1])) continue;
        const start = Number.isNaN(ends[0][0] + ends[0][1]) ? ends[1] : ends[0];
        const [x, y] = at(ends[1].map((share, axis) => start[axis] + eased * (share - start[axis])));
        const [colour, shape] = told.points[prompt];
        pen.fillStyle = colour;
        pen.beginPath();
        shapes[shape](pen, x, y, 4);
        pen.fill();
        drawn.push([x, y, prompt]);
    }
    pen.globalAlpha = 1;
    if (moved < 1) requestAnimationFrame(draw);
}

function go(site) {
    from = shown;
    shown = site;
    began = performance.now();
    slider.value = String(site);
    const { label, share } = told.sites[site];
    slider.setAttribute("aria-valuetext", label);
    document.getElementById("name").textContent = label;
    document.getElementById("share").textContent = share;
    requestAnimationFrame(draw);
}

function pause() {
    clearInterval(playing);
    playing = null;
    play.textContent = "Play";
}

play.addEventListener("click", () => {
    if (playing !== null) return pause();
    play.textContent = "Pause";
    if (shown + 1 === told.sites.length) go(0);
    playing = setInterval(() => {
        if (shown + 1 < told.sites.length) go(shown + 1);
        else pause();
    }, STEP);
});
slider.addEventListener("input", () => { pause(); go(Number(slider.value)); });
canvas.addEventListener("pointermove", (event) => {
    let nearest = null, least = 100;
    for (const [x, y, prompt] of drawn) {
        const distance = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2;
        if (distance < least) [nearest, least] = [prompt, distance];
    }
    tip.hidden = nearest === null;
    if (nearest === null) return;
    // A prompt is a stranger's text: never markup.
    tip.textContent = told.texts[nearest];
    tip.style.left = `${Math.max(Math.min(event.pageX + 14, innerWidth - 340), 4)}px`;
    tip.style.top = `${event.pageY + 14}px`;
});
canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
addEventListener("resize", () => requestAnimationFrame(draw));
go(shown);
