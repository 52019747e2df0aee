"""What the pages share. Besides app.py and pages/, the only place that imports streamlit."""
