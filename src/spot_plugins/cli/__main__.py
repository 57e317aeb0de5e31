"""Entry point of ``python -m spot_plugins.cli``."""

from . import main

main()
