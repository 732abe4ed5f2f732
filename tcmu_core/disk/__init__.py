"""The disk: a spec, what a handler sees of it, and the handler's hooks as the engine calls them."""
