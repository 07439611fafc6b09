"""The async shell that serves: instances, their cache, routing, and the switcher that moves traffic."""
