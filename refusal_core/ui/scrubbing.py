"""Keeps a figure that the browser moves by itself and the page around it at the same site.

The browser moves the figure's slider without the server. This component listens to the figure's own public events,
tells Python once the figure has come to rest, moves the figure when the site was changed elsewhere on the page, and
adds what Plotly's slider and buttons lack: play and pause, keys, and names for screen readers. It moves the slider as a
hand does, by pressing it.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

_DRIVE = """
const AT_REST = 250, PAGE = 5;
const TAKES_ARROWS = "input, textarea, select, [contenteditable=true], [role=radio], [role=tab], [role=option], " +
    "[role=grid], [role=slider], [role=combobox], [role=spinbutton], [role=menuitem]";
const drivers = new WeakMap();

function start() {
    let chart = null, container = null, tell = {}, timer = null, playing = null, narrow = null;
    // The page's site, sites told to Python that it has not answered yet, and one the chart is still to be moved to.
    let page = null, wanted = null;
    const told = [];
    const slider = () => chart && chart.layout && chart.layout.sliders && chart.layout.sliders[0];

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

    const press = (site) => {
        const tick = chart.querySelectorAll(".slider-tick-rect")[site];
        const rail = chart.querySelector(".slider-rail-touch-rect");
        if (!tick || !rail) return;
        const box = tick.getBoundingClientRect(), along = rail.getBoundingClientRect();
        const where = {
            bubbles: true, cancelable: true, view: window, button: 0,
            clientX: box.left + box.width / 2, clientY: along.top + along.height / 2,
        };
        rail.dispatchEvent(new MouseEvent("mousedown", where));
        rail.dispatchEvent(new MouseEvent("mouseup", where));
    };
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
    const touched = (event) => { if (event.isTrusted && event.target.closest(".slider-group")) pause(); };
    const keyed = (event) => {
        if (!slider() || event.defaultPrevented) return;
        if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
        const focused = document.activeElement;
        const inside = focused && chart.contains(focused);
        const button = inside && focused.closest(".updatemenu-button");
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
        const next = { ...anywhere, ...(inside && focused.closest(".slider-group") ? within : {}) }[event.key];
        if (next === undefined || (focused && !inside && focused.closest(TAKES_ARROWS))) return;
        event.preventDefault();
        pause();
        const site = Math.min(Math.max(next, 0), last);
        if (site !== active) press(site);
    };

    const describe = (element, says) => {
        for (const key in says) if (element.getAttribute(key) !== says[key]) element.setAttribute(key, says[key]);
    };
    const name = () => {
        for (const button of chart.querySelectorAll(".updatemenu-button"))
            describe(button, { tabindex: "0", role: "button", "aria-label": button.textContent });
        const group = chart.querySelector(".slider-group");
        if (!group || !slider()) return;
        const { active, steps } = slider();
        describe(group, {
            tabindex: "0", role: "slider", "aria-label": "Layer", "aria-valuemin": "0",
            "aria-valuemax": String(steps.length - 1), "aria-valuenow": String(active),
            "aria-valuetext": steps[active].label,
        });
    };
    const let_go = () => {
        if (!chart || !chart.removeListener) return;
        chart.removeListener("plotly_sliderstart", started);
        chart.removeListener("plotly_sliderend", ended);
        chart.removeListener("plotly_buttonclicked", clicked);
        chart.removeEventListener("pointerdown", touched, true);
    };
    const look = () => {
        const holder = document.querySelector(`.st-key-${container}`);
        if (!holder) return;
        if (holder.clientWidth && narrow !== holder.clientWidth < 620) {
            narrow = holder.clientWidth < 620;
            tell.narrow(narrow);
        }
        const found = holder.querySelector(".js-plotly-plot");
        if (found && found !== chart && typeof found.on === "function") {
            pause();
            let_go();
            chart = found;
            wanted = page;
            chart.on("plotly_sliderstart", started);
            chart.on("plotly_sliderend", ended);
            chart.on("plotly_buttonclicked", clicked);
            chart.addEventListener("pointerdown", touched, true);
        }
        if (!slider()) return;
        name();
        if (wanted !== null && chart.querySelector(".slider-tick-rect")) {
            const site = wanted;
            wanted = null;
            if (slider().active !== site) press(site);
        }
    };
    document.addEventListener("keydown", keyed);
    const looking = setInterval(look, 200);
    return {
        update(data, site, narrowed) {
            container = data.container;
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
            let_go();
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
"""


def keep_together(container: str, site: int, moved: Callable[[int], None], narrowed: Callable[[bool], None]) -> None:
    """Keep the slider of a figure and the page at one site.

    Args:
        container: the ``key`` of the ``st.container`` that holds the figure.
        site: what the page shows; the figure is moved there.
        moved: called with the site where the figure came to rest, before the rerun that follows.
        narrowed: called with whether the container is as narrow as on a phone, when that changes.
    """
    key = f"{container}-driver"

    def forward_site() -> None:
        rested = st.session_state[key].site
        if rested is not None:
            moved(int(rested))

    _driver()(
        key=key,
        data={"container": container, "site": site},
        on_site_change=forward_site,
        on_narrow_change=lambda: narrowed(bool(st.session_state[key].narrow)),
    )


def _driver():
    return st.components.v2.component("figure_driver", js=_DRIVE)
