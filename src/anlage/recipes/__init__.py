"""The recipes that come with anlage, one YAML file each."""
