// Keeps the browser's history at one step per page. Streamlit opens a page without options and adds those as a step of
// their own, at which Back would seem to do nothing; and every pause in typing would be a step. A search is one step, a
// typed prompt none.

export default function() {
    const withoutTypedText = (url) => {
        const options = new URLSearchParams(url.search);
        options.delete("text");
        if (options.has("find")) options.set("find", "");
        return `${url.pathname}?${options}`;
    };
    history.pushState = (state, title, url) => {
        const next = new URL(url, location);
        const opened = next.pathname === location.pathname && !location.search;
        const sameStep = opened || withoutTypedText(next) === withoutTypedText(location);
        History.prototype[sameStep ? "replaceState" : "pushState"].call(history, state, title, url);
    };
}
