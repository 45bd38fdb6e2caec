"""Pictures of what an encoder sees, and of where a slide model looks."""
