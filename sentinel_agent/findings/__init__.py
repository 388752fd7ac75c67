"""What an incident says in plain language: pure checks over its facts, each with evidence and a next step."""
