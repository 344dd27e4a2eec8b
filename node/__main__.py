"""The console command `cornerstore`, and `python -m node`."""


def main() -> None:
    """Runs the command line. Ctrl-C while it is still being imported ends it as quietly as later."""
    try:
        from node.cli import main as command

        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
