"""The `ngd` command; frameworks and drawing libraries are imported only when a run needs them."""
