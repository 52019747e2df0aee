"""Chat models: finding, fetching, identifying and opening them, their chat templates and devices."""
