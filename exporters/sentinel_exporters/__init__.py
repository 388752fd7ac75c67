"""Exporters, one module per kind of backend. The agent finds them by entry point, never by import."""
