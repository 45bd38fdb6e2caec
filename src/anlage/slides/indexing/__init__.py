"""From paths and URLs to a catalogue: find slides, examine each, write what was found."""
