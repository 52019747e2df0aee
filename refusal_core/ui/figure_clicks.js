// Tells Python which point of a figure was clicked: of a figure that can be dragged on, Streamlit reports drags alone.

const INTERVAL = 200;

export default function({ data, setTriggerValue }) {
    let figure = null;
    const clicked = ({ points }) => {
        const identifier = points.length ? [points[0].customdata].flat()[0] : null;
        if (typeof identifier === "string") setTriggerValue("point", identifier);
    };
    const look = () => {
        const current = figureIn(data.chart);
        if (!current || current === figure) return;
        stopListening(figure, "plotly_click", clicked);
        figure = current;
        figure.on("plotly_click", clicked);
    };
    look();
    const looking = setInterval(look, INTERVAL);
    return () => {
        clearInterval(looking);
        stopListening(figure, "plotly_click", clicked);
    };
}
