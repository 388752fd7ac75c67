"""The HTTP side of the agent: REST, health, Grafana's Pyroscope API and the web page, on one address.

`guard`, `selector`, `connect` and `messages` are pure. `incidents` and `live` say where data come from; `server` listens.
aiohttp is imported when the first request comes: an agent that nobody asks pays nothing for it.
"""
