"""The agent's end of the socket on which the workers of the embedded proxy tell what they do."""
