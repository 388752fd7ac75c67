"""`python -m sentinel_agent` is the same program as `sentinel-agent`."""

from sentinel_agent.cli import main

if __name__ == "__main__":
    main()
