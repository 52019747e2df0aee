// A list of prompts, two lines each and the chosen ones in full, with the searched words marked; its columns sort it.

const BEFORE = 60;
const lists = new WeakMap();

function element(name, text, className) {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (className) made.className = className;
    return made;
}

const signed = (value) => value.toFixed(2).replace("-", "−");

/** Put a text into an element with what was searched for marked; a match far into the text is brought to its start. */
function write(holder, text, find) {
    const lower = text.toLowerCase(), wanted = find.toLowerCase();
    let from = wanted && lower.length === text.length ? lower.indexOf(wanted) : -1;
    if (from < 0) return holder.append(text);
    let to = 0;
    if (from > 2 * BEFORE) {
        to = Math.max(text.lastIndexOf(" ", from - BEFORE) + 1, from - 2 * BEFORE);
        holder.append(element("span", "… ", "cut"), element("span", text.slice(0, to), "before"));
    }
    while (from >= 0) {
        holder.append(text.slice(to, from), element("mark", text.slice(from, from + wanted.length)));
        to = from + wanted.length;
        from = lower.indexOf(wanted, to);
    }
    holder.append(text.slice(to));
}

function build(list, data, told) {
    const table = element("table"), head = element("tr"), body = element("tbody");
    table.append(element("thead"), body);
    table.tHead.append(head);
    data.columns.forEach((column, place) => {
        const cell = element("th", null, column.kind), sorts = element("button", column.name);
        cell.scope = "col";
        sorts.type = "button";
        sorts.title = column.meaning;
        sorts.addEventListener("click", () => sort(place));
        cell.append(sorts);
        head.append(cell);
    });
    const lines = data.rows.map((row, order) => {
        const line = element("tr", null, row.inside ? "" : "outside"), prompt = element("td", null, "prompt");
        const opens = element("button");
        opens.type = "button";
        opens.addEventListener("click", () => {
            // At once; the page follows.
            choose(list, data.several ? toggled(list, row.id) : [row.id]);
            told(row.id);
        });
        opens.addEventListener("focus", () => roam(line));
        write(opens, row.cells[0], data.find);
        prompt.append(opens);
        line.append(prompt);
        data.columns.slice(1).forEach(({ kind }, place) => {
            const value = row.cells[place + 1], cell = element("td", null, kind);
            if (kind === "label") cell.append(element("span", null, `dot ${value}`), value);
            else cell.append(value === null ? "–" : typeof value === "number" ? signed(value) : value);
            line.append(cell);
        });
        Object.assign(line, { id: `row-${row.id}`, cellsOf: row.cells, order });
        return line;
    });
    body.append(...lines);
    const button = (line) => line.querySelector("button");
    function roam(to) {
        for (const line of body.children) button(line).tabIndex = line === to ? 0 : -1;
    }
    function sort(place) {
        const cell = head.children[place], down = cell.getAttribute("aria-sort") === "ascending";
        for (const other of head.children) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (line) => line.cellsOf[place];
        const compare = (one, other) => {
            if (value(one) === value(other)) return one.order - other.order;
            if (value(one) === null) return 1;
            if (value(other) === null) return -1;
            const rising = value(one) < value(other) ? -1 : 1;
            return down ? -rising : rising;
        };
        body.append(...lines.sort(compare));
    }
    body.addEventListener("keydown", (event) => {
        const line = event.target.closest("tr");
        const to = { ArrowDown: line.nextSibling, ArrowUp: line.previousSibling, Home: body.firstChild, End: body.lastChild };
        if (!(event.key in to)) return;
        event.preventDefault();
        event.stopPropagation();
        if (to[event.key]) button(to[event.key]).focus();
    });
    roam(body.firstChild);
    list.replaceChildren(table);
    return roam;
}

/** Show which rows are chosen. */
function choose(list, ids) {
    const chosen = new Set(ids);
    for (const line of list.querySelectorAll("tbody tr")) {
        const isChosen = chosen.has(idOf(line));
        line.classList.toggle("chosen", isChosen);
        line.querySelector("button").setAttribute("aria-pressed", String(isChosen));
    }
}

const idOf = (line) => line.id.slice("row-".length);

/** The chosen rows once one more was clicked. */
function toggled(list, id) {
    const before = [...list.querySelectorAll("tr.chosen")].map(idOf);
    return before.includes(id) ? before.filter((other) => other !== id) : [...before, id];
}

export default function({ parentElement, data, setTriggerValue }) {
    let list = parentElement.querySelector(".list");
    if (!list) {
        list = element("div", null, "list");
        parentElement.append(list);
    }
    for (const [label, colour] of Object.entries(data.colours)) list.style.setProperty(`--${label}`, colour);
    const content = JSON.stringify([data.rows, data.find, data.several]);
    const state = lists.get(list) || {};
    if (state.content !== content) {
        state.roam = build(list, data, (id) => setTriggerValue("clicked", id));
        state.content = content;
    }
    choose(list, data.chosen);
    const first = list.querySelector("tr.chosen"), last = data.chosen.join();
    if (first && last !== state.last) {
        state.roam(first);
        const head = list.querySelector("thead").offsetHeight;
        if (first.offsetTop - head < list.scrollTop) list.scrollTop = first.offsetTop - head;
        const end = first.offsetTop + first.offsetHeight - list.clientHeight;
        if (end > list.scrollTop) list.scrollTop = Math.min(end, first.offsetTop - head);
    }
    state.last = last;
    lists.set(list, state);
}
