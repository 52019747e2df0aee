"""Who may see the dashboard and change what it shows: settings of a server, and the guard before all it answers."""
