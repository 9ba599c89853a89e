"""Style sheet of the report: light, dark, screen, paper."""

from __future__ import annotations

import importlib.resources

CSS = "\n" + importlib.resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
