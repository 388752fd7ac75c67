"""Rule packs: YAML files of rules beside this module. The agent finds them by entry point `sentinel_agent.rules`."""
