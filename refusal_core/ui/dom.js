// What the dashboard knows of the pages that Streamlit draws and of the figures that Plotly draws: private to those two,
// and put before every other script here, so that an upgrade breaks in this file alone.

const PLOTLY_FIGURE = ".js-plotly-plot";
const TABLE = "[data-testid=stDataFrame] [role=grid]";
const COLUMN_HEADER = "[role=columnheader]";
const HEADING = "[data-testid=stMain] :is(h1, h2, h3, h4, h5, h6)";

/** The menu of pages: its links, the button that closes it, and the windows in which it lies over the page. */
const MENU_LINK = "[data-testid=stSidebar] a", MENU_CLOSES = "[data-testid=stSidebarCollapseButton] button";
const MENU_LIES_OVER = "(max-width: 768px)";

/** The first figure in the container of a key, once Plotly has drawn it. */
function figureIn(key) {
    const found = document.querySelector(`.st-key-${key} ${PLOTLY_FIGURE}`);
    return found && typeof found.on === "function" ? found : null;
}

/** The settings of a figure's slider. */
function sliderOf(figure) {
    return figure && figure.layout && figure.layout.sliders && figure.layout.sliders[0];
}

/** The elements of a figure's slider and buttons. */
const SLIDER = ".slider-group", BUTTON = ".updatemenu-button";

/** Whether a figure's slider can be pressed. */
function sliderIsDrawn(figure) {
    return Boolean(figure.querySelector(".slider-tick-rect"));
}

/** Move a figure's slider as a hand does, by pressing it at a step: Plotly offers pages no other way. */
function pressSlider(figure, step) {
    const tick = figure.querySelectorAll(".slider-tick-rect")[step];
    const rail = figure.querySelector(".slider-rail-touch-rect");
    if (!tick || !rail) return;
    const box = tick.getBoundingClientRect(), along = rail.getBoundingClientRect();
    const place = {
        bubbles: true, cancelable: true, view: window, button: 0,
        clientX: box.left + box.width / 2, clientY: along.top + along.height / 2,
    };
    rail.dispatchEvent(new MouseEvent("mousedown", place));
    rail.dispatchEvent(new MouseEvent("mouseup", place));
}

/** Stop telling a listener of a figure's events; Plotly may have taken the figure down already. */
function stopListening(figure, event, listener) {
    if (figure && figure.removeListener) figure.removeListener(event, listener);
}
