"""The endpoints, one file for each interface; every `add_routes` adds its own to an application."""
