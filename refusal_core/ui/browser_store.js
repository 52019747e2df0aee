// Keeps a text in the visitor's own browser over a reload, where no other visitor sees it, and tells Python what is there.

export default function({ data, setStateValue }) {
    try {
        // What is there is told before anything is put in its place.
        if (!data.told) setStateValue("stored", localStorage.getItem(data.name) ?? "");
        else if (data.value === "") localStorage.removeItem(data.name);
        else if (data.value !== null) localStorage.setItem(data.name, data.value);
    } catch (error) {
        // A browser that lets pages keep nothing, or is full: the visit goes on without.
        if (!data.told) setStateValue("stored", "");
    }
}
