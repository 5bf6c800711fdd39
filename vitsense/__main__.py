"""``python -m vitsense``."""

from vitsense.cli import main

if __name__ == "__main__":
    main()
