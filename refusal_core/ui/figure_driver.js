// Keeps a figure that the browser moves by itself, and the page around it, at the same site: tells Python the site once
// the figure has come to rest, moves the figure when the site was changed elsewhere on the page, and adds what Plotly's
// slider and buttons lack: play and pause, keys, and names for screen readers.

const AT_REST = 250, INTERVAL = 200, PAGE = 5, NARROW = 460;
const TAKES_ARROWS = "input, textarea, select, [contenteditable=true], [role=radio], [role=tab], [role=option], " +
    "[role=grid], [role=slider], [role=combobox], [role=spinbutton], [role=menuitem]";
const drivers = new WeakMap();

function start() {
    let figure = null, container = null, tell = {}, timer = null, playing = null, narrow = false;
    // The page's site, sites told to Python that it has not answered yet, and one the figure is still to be moved to.
    let page = null, wanted = null;
    const told = [];
    const slider = () => sliderOf(figure);

    const rest = (site) => {
        clearTimeout(timer);
        timer = setTimeout(() => {
            if (site === (told.length ? told[told.length - 1] : page)) return;
            told.push(site);
            tell.site(site);
        }, AT_REST);
    };
    const started = () => clearTimeout(timer);
    const ended = (event) => { if (playing === null) rest(event.slider.active); };
    const press = (site) => pressSlider(figure, site);
    const pause = () => {
        if (playing === null) return;
        clearTimeout(playing);
        playing = null;
        if (slider()) rest(slider().active);
    };
    const play = (site, step) => {
        playing = setTimeout(() => {
            if (!slider()) return pause();
            press(site);
            if (site + 1 < slider().steps.length) play(site + 1, step);
            else pause();
        }, step);
    };
    const clicked = (event) => {
        pause();
        if (event.button.label !== "Play") return;
        clearTimeout(timer);
        const { active, steps } = slider();
        play(active + 1 < steps.length ? active + 1 : 0, event.button.args[1].frame.duration);
    };
    // A hand on the figure, but for one on its buttons, stops what plays.
    const touched = (event) => { if (event.isTrusted && event.target.closest(SLIDER)) pause(); };
    const keyed = (event) => {
        if (!slider() || event.defaultPrevented) return;
        if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
        const focused = document.activeElement;
        const inside = focused && figure.contains(focused);
        const button = inside && focused.closest(BUTTON);
        if (button && [" ", "Enter"].includes(event.key)) {
            event.preventDefault();
            const click = new MouseEvent("click", { bubbles: true, cancelable: true, view: window });
            if (!event.repeat) button.dispatchEvent(click);
            return;
        }
        const { active, steps } = slider(), last = steps.length - 1;
        const anywhere = { ArrowLeft: active - 1, ArrowRight: active + 1 };
        // Elsewhere these move the page.
        const within = {
            ArrowDown: active - 1, ArrowUp: active + 1, PageDown: active - PAGE, PageUp: active + PAGE,
            Home: 0, End: last,
        };
        const next = { ...anywhere, ...(inside && focused.closest(SLIDER) ? within : {}) }[event.key];
        if (next === undefined || (focused && !inside && focused.closest(TAKES_ARROWS))) return;
        event.preventDefault();
        pause();
        const site = Math.min(Math.max(next, 0), last);
        if (site !== active) press(site);
    };

    const describe = (element, attributes) => {
        for (const [name, value] of Object.entries(attributes))
            if (element.getAttribute(name) !== value) element.setAttribute(name, value);
    };
    const name = () => {
        for (const button of figure.querySelectorAll(BUTTON))
            describe(button, { tabindex: "0", role: "button", "aria-label": button.textContent });
        const group = figure.querySelector(SLIDER);
        if (!group || !slider()) return;
        const { active, steps } = slider();
        describe(group, {
            tabindex: "0", role: "slider", "aria-label": "Layer", "aria-valuemin": "0",
            "aria-valuemax": String(steps.length - 1), "aria-valuenow": String(active),
            "aria-valuetext": steps[active].label,
        });
    };
    const letGo = () => {
        stopListening(figure, "plotly_sliderstart", started);
        stopListening(figure, "plotly_sliderend", ended);
        stopListening(figure, "plotly_buttonclicked", clicked);
        if (figure) figure.removeEventListener("pointerdown", touched, true);
    };
    const look = () => {
        const holder = document.querySelector(`.st-key-${container}`);
        if (!holder) return;
        if (holder.clientWidth && narrow !== holder.clientWidth < NARROW) {
            narrow = holder.clientWidth < NARROW;
            tell.narrow(narrow);
        }
        const current = figureIn(container);
        if (current && current !== figure) {
            pause();
            letGo();
            figure = current;
            wanted = page;
            figure.on("plotly_sliderstart", started);
            figure.on("plotly_sliderend", ended);
            figure.on("plotly_buttonclicked", clicked);
            figure.addEventListener("pointerdown", touched, true);
        }
        if (!slider()) return;
        name();
        if (wanted !== null && sliderIsDrawn(figure)) {
            const site = wanted;
            wanted = null;
            if (slider().active !== site) press(site);
        }
    };
    document.addEventListener("keydown", keyed);
    const looking = setInterval(look, INTERVAL);
    return {
        update(data, site, narrowed) {
            container = data.container;
            narrow = data.narrow;
            tell = { site, narrow: narrowed };
            const answered = told.indexOf(data.site);
            if (answered >= 0) told.splice(0, answered + 1);
            else if (data.site !== page) {
                pause();
                wanted = data.site;
            }
            page = data.site;
            look();
        },
        stop() {
            clearInterval(looking);
            clearTimeout(timer);
            clearTimeout(playing);
            document.removeEventListener("keydown", keyed);
            letGo();
        },
    };
}

export default function({ parentElement, data, setTriggerValue, setStateValue }) {
    if (!drivers.has(parentElement)) drivers.set(parentElement, start());
    const driver = drivers.get(parentElement);
    driver.update(data, (site) => setTriggerValue("site", site), (narrow) => setStateValue("narrow", narrow));
    return () => {
        driver.stop();
        drivers.delete(parentElement);
    };
}
