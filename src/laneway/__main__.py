"""`python -m laneway` is the command `laneway`."""

from laneway.cli.main import run

if __name__ == "__main__":
    run()
