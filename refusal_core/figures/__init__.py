"""A run to Plotly figures. Nothing here knows the dashboard."""
